"""The kernel's interface to KVM: its requests, and a thin class for each kind of file.

Source: Linux, Documentation/virt/kvm/api.rst for what each request does, include/uapi/linux/kvm.h for the
numbers. The structures that requests carry are in `structures`.

KVM has three kinds of files. ``/dev/kvm`` is the whole of it (`System`), makes a file for each machine
(`VmFile`), which in turn makes one for each processor (`VcpuFile`). All die with the process, or when closed.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

from nitro_vmm.accel.kvm.structures import (
    CLOCK,
    COALESCED_ZONE,
    CPUID_ENTRY,
    CPUID_HEADER,
    DEBUG_REGISTERS_BYTES,
    EVENTS_BYTES,
    GUEST_DEBUG,
    IOEVENTFD,
    IRQ_LEVEL,
    IRQCHIP,
    LAPIC_BYTES,
    MEMORY_REGION,
    MP_STATE,
    MSR_ENTRY,
    MSR_LIST_HEADER,
    MSRS_HEADER,
    REGS,
    ROUTING_ENTRY,
    ROUTING_HEADER,
    RUN_EXIT_REASON,
    SIGNAL_MASK,
    SREGS_BYTES,
    TRANSLATION,
    XCRS_BYTES,
    XSAVE_BYTES,
    CpuidEntry,
    Registers,
    SystemRegisters,
)
from nitro_vmm.errors import HostError

DEVICE: Final = Path("/dev/kvm")
API_VERSION: Final = 12
"""Of every kernel since 2.6.22; a program refuses any other (api.rst §4.1)."""

NONE, WRITE, READ = 0, 1, 2
"""Which way a request's structure goes, as the program sees it (Linux, uapi/asm-generic/ioctl.h)."""


def _request(number: int, direction: int = NONE, size: int = 0) -> int:
    """The number of a request, which contains its direction, the size of its structure, and KVM's letter."""
    return direction << 30 | size << 16 | 0xAE << 8 | number


class Request(IntEnum):
    """Requests, by their names in api.rst without ``KVM_``."""

    GET_API_VERSION = _request(0x00)
    CREATE_VM = _request(0x01)
    CHECK_EXTENSION = _request(0x03)
    GET_VCPU_MMAP_SIZE = _request(0x04)
    GET_MSR_INDEX_LIST = _request(0x02, READ | WRITE, MSR_LIST_HEADER.size)
    GET_SUPPORTED_CPUID = _request(0x05, READ | WRITE, CPUID_HEADER.size)
    CREATE_VCPU = _request(0x41)
    SET_USER_MEMORY_REGION = _request(0x46, WRITE, MEMORY_REGION.size)
    SET_TSS_ADDR = _request(0x47)
    CREATE_IRQCHIP = _request(0x60)
    IRQ_LINE = _request(0x61, WRITE, IRQ_LEVEL.size)
    GET_IRQCHIP = _request(0x62, READ | WRITE, IRQCHIP.size)
    SET_IRQCHIP = _request(0x63, READ, IRQCHIP.size)
    SET_GSI_ROUTING = _request(0x6A, WRITE, ROUTING_HEADER.size)
    REGISTER_COALESCED_MMIO = _request(0x67, WRITE, COALESCED_ZONE.size)
    IOEVENTFD = _request(0x79, WRITE, IOEVENTFD.size)
    SET_CLOCK = _request(0x7B, WRITE, CLOCK.size)
    GET_CLOCK = _request(0x7C, READ, CLOCK.size)
    RUN = _request(0x80)
    GET_REGS = _request(0x81, READ, REGS.size)
    SET_REGS = _request(0x82, WRITE, REGS.size)
    GET_SREGS = _request(0x83, READ, SREGS_BYTES)
    SET_SREGS = _request(0x84, WRITE, SREGS_BYTES)
    GET_MSRS = _request(0x88, READ | WRITE, MSRS_HEADER.size)
    SET_MSRS = _request(0x89, WRITE, MSRS_HEADER.size)
    SET_GUEST_DEBUG = _request(0x9B, WRITE, GUEST_DEBUG.size)
    TRANSLATE = _request(0x85, READ | WRITE, TRANSLATION.size)
    SET_SIGNAL_MASK = _request(0x8B, WRITE, 4)
    GET_LAPIC = _request(0x8E, READ, LAPIC_BYTES)
    SET_LAPIC = _request(0x8F, WRITE, LAPIC_BYTES)
    SET_CPUID2 = _request(0x90, WRITE, CPUID_HEADER.size)
    GET_MP_STATE = _request(0x98, READ, MP_STATE.size)
    SET_MP_STATE = _request(0x99, WRITE, MP_STATE.size)
    GET_VCPU_EVENTS = _request(0x9F, READ, EVENTS_BYTES)
    SET_VCPU_EVENTS = _request(0xA0, WRITE, EVENTS_BYTES)
    GET_DEBUGREGS = _request(0xA1, READ, DEBUG_REGISTERS_BYTES)
    SET_DEBUGREGS = _request(0xA2, WRITE, DEBUG_REGISTERS_BYTES)
    GET_TSC_KHZ = _request(0xA3)
    GET_XSAVE = _request(0xA4, READ, XSAVE_BYTES)
    SET_XSAVE = _request(0xA5, WRITE, XSAVE_BYTES)
    GET_XCRS = _request(0xA6, READ, XCRS_BYTES)
    SET_XCRS = _request(0xA7, WRITE, XCRS_BYTES)
    GET_XSAVE2 = _request(0xCF, READ, XSAVE_BYTES)

    @property
    def size(self) -> int:
        """The size of its structure as the number has it, bytes. Some structures have more behind that."""
        return self.value >> 16 & 0x3FFF


CAP_COALESCED_MMIO: Final = 15
CAP_TSC_DEADLINE_TIMER: Final = 72
CAP_COALESCED_PIO: Final = 162
CAP_SET_GUEST_DEBUG2: Final = 195
CAP_XSAVE2: Final = 208

EXIT_IO: Final = 2
EXIT_DEBUG: Final = 4
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17

IO_OUT: Final = 1
INTERNAL_EMULATION: Final = 1
INTERNAL_HAS_BYTES: Final = 1
"""In the flags: the instruction's bytes are there."""
IOEVENTFD_DATAMATCH: Final = 1
ROUTING_IRQCHIP: Final = 1
IRQCHIP_IOAPIC: Final = 2
CPUID_ENTRIES_MAX: Final = 256
"""KVM_MAX_CPUID_ENTRIES."""
MSRS_MAX: Final = 2048
"""Several times as many as any kernel lists."""
MSRS_AT_ONCE: Final = 255
"""The kernel takes less than 256."""

MP_STATE_UNINITIALIZED: Final = 1
MP_STATE_HALTED: Final = 3


class _File:
    """A file of KVM's.

    Args:
        fd: Its descriptor, owned from now on.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the file; once more does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, request: Request) -> bytes:
        """A structure that is only kept, to be put back by `put`.

        Raises:
            HostError: The kernel refuses.
        """
        answer = bytearray(request.size)
        _call(self.fd, request, answer)
        return bytes(answer)

    def put(self, request: Request, data: bytes) -> None:
        """Put back what `get` gave.

        Raises:
            HostError: The kernel refuses.
        """
        _call(self.fd, request, bytearray(data))

    def _ask(self, request: Request, argument: int | bytes | bytearray = 0) -> int:
        """Make a request; a `bytearray` gets the answer.

        Raises:
            HostError: The kernel refuses.
        """
        try:
            # Of `bytes` it would make a copy and return that, instead of the number.
            argument = bytearray(argument) if isinstance(argument, bytes) else argument
            return fcntl.ioctl(self.fd, request, argument)
        except OSError as error:
            raise _refused(request, error.errno) from error


def _refused(request: Request, number: int | None) -> HostError:
    reason = os.strerror(number) if number else "an unknown error"
    return HostError(
        f"KVM_{request.name}: {reason}",
        hint="`vmm doctor` says whether this host's KVM can run enclaves; --accel unicorn does without",
    )


class System(_File):
    """``/dev/kvm``.

    Args:
        path: Where it is.

    Raises:
        HostError: It cannot be opened, or speaks another version of the interface.
    """

    def __init__(self, path: Path = DEVICE) -> None:
        super().__init__(_open(path))
        try:
            version = self._ask(Request.GET_API_VERSION)
        except HostError as error:
            self.close()
            hint = "remove it, and load the module kvm_intel or kvm_amd"
            raise HostError(f"{path} is not KVM: {error}", hint=hint, code="M22") from error
        if version != API_VERSION:
            self.close()
            raise HostError(
                f"{path} speaks version {version} of KVM's interface, not {API_VERSION}", code="M22"
            )

    def extension(self, number: int) -> int:
        """What the kernel says of one of its capabilities; 0 for one that it lacks."""
        return self._ask(Request.CHECK_EXTENSION, number)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can answer in a guest of this host."""
        answer = bytearray(CPUID_HEADER.size + CPUID_ENTRIES_MAX * CPUID_ENTRY.size)
        CPUID_HEADER.pack_into(answer, 0, CPUID_ENTRIES_MAX, 0)
        _call(self.fd, Request.GET_SUPPORTED_CPUID, answer)
        count, _ = CPUID_HEADER.unpack_from(answer)
        places = range(CPUID_HEADER.size, CPUID_HEADER.size + count * CPUID_ENTRY.size, CPUID_ENTRY.size)
        return [CpuidEntry(*CPUID_ENTRY.unpack_from(answer, place)) for place in places]

    def msrs(self) -> list[int]:
        """The numbers of the model-specific registers that a guest's state consists of."""
        answer = bytearray(MSR_LIST_HEADER.size + 4 * MSRS_MAX)
        MSR_LIST_HEADER.pack_into(answer, 0, MSRS_MAX)
        _call(self.fd, Request.GET_MSR_INDEX_LIST, answer)
        (count,) = MSR_LIST_HEADER.unpack_from(answer)
        return [number for (number,) in MSR_LIST_HEADER.iter_unpack(answer[4 : 4 + 4 * count])]

    def create_vm(self) -> "VmFile":
        """A machine without memory and processors."""
        run_bytes = self._ask(Request.GET_VCPU_MMAP_SIZE)
        return VmFile(self._ask(Request.CREATE_VM, 0), run_bytes)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hints = {
            errno.ENOENT: "load the module kvm_intel or kvm_amd; in a virtual machine, nesting must be on",
            errno.EACCES: "add yourself to the group kvm and log in again",
            errno.EPERM: "the container that this runs in must be given the device",
            errno.ENODEV: "this processor has no virtualization, or the firmware has switched it off",
        }
        raise HostError(
            f"{path}: {error.strerror}", hint=hints.get(error.errno or 0, ""), code="M22"
        ) from error


_libc: Final = ctypes.CDLL(None, use_errno=True)
_run: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, use_errno=True)(
    ("ioctl", _libc)
)
"""ioctl(2) as it is, because that of Python 3.14 is called again after EINTR, and no guest would stop."""


def _call(fd: int, request: Request, argument: int | bytearray) -> int:
    """`fcntl.ioctl` for arguments that it does not take: above 31 bits, or larger than their request says.

    Raises:
        HostError: The kernel refuses.
    """
    place = argument if isinstance(argument, int) else ctypes.addressof(ctypes.c_char.from_buffer(argument))
    result: int = _libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.c_ulong(place))
    if result < 0:
        raise _refused(request, ctypes.get_errno())
    return result


def _msrs(msrs: Iterable[tuple[int, int]]) -> bytes:
    entries = [MSR_ENTRY.pack(*msr) for msr in msrs]
    return MSRS_HEADER.pack(len(entries)) + b"".join(entries)


class VmFile(_File):
    """One machine; made by `System.create_vm`.

    Args:
        fd: Its descriptor.
        run_bytes: The size of the memory that each processor shares with the kernel.
    """

    def __init__(self, fd: int, run_bytes: int) -> None:
        super().__init__(fd)
        self._run_bytes = run_bytes

    def set_memory(
        self, slot: int, address: int, memory: mmap.mmap, *, start: int = 0, length: int | None = None
    ) -> None:
        """Make memory of this process RAM of the guest, at a guest-physical address; it must stay mapped.

        Args:
            slot: The number of the piece of RAM; one that is there already goes away with a length of 0.
            address: Guest-physical.
            memory: The memory.
            start: Where in it the piece begins.
            length: Of the piece; all of the memory if it is left out.
        """
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + start
        size = len(memory) if length is None else length
        self._ask(Request.SET_USER_MEMORY_REGION, MEMORY_REGION.pack(slot, 0, address, size, place))

    def set_tss_address(self, address: int) -> None:
        """Give KVM three pages for itself, which some processors of Intel's need.

        Args:
            address: Guest-physical, where neither RAM nor a device is.
        """
        _call(self.fd, Request.SET_TSS_ADDR, address)

    def create_irqchip(self) -> None:
        """Let the kernel emulate the interrupt controllers; before the processors are made."""
        self._ask(Request.CREATE_IRQCHIP)

    def route_to_io_apic(self, pins: int) -> None:
        """Lead each interrupt line to the IO-APIC's pin of the same number, and nowhere else."""
        entries = b"".join(
            ROUTING_ENTRY.pack(pin, ROUTING_IRQCHIP, 0, 0, IRQCHIP_IOAPIC, pin) for pin in range(pins)
        )
        _call(self.fd, Request.SET_GSI_ROUTING, bytearray(ROUTING_HEADER.pack(pins, 0) + entries))

    def set_irq_line(self, irq: int, level: int) -> None:
        """Drive an interrupt line; from any thread."""
        self._ask(Request.IRQ_LINE, IRQ_LEVEL.pack(irq, level))

    def signal_on_write(self, address: int, value: int, eventfd: int) -> None:
        """Have the kernel answer guests' writes of four bytes with this value by a signal to an eventfd."""
        self._ask(Request.IOEVENTFD, IOEVENTFD.pack(value, address, 4, eventfd, IOEVENTFD_DATAMATCH))

    def collect_writes(self, port: int) -> None:
        """Have the kernel collect writes to a port (see `collected`); after the first processor was made."""
        self._ask(Request.REGISTER_COALESCED_MMIO, COALESCED_ZONE.pack(port, 1, 1))

    def xsave_bytes(self) -> int:
        """How much `VcpuFile.xsave` saves; after the first processor got its CPUID."""
        return max(self._ask(Request.CHECK_EXTENSION, CAP_XSAVE2), XSAVE_BYTES)

    def controller(self, number: int) -> bytes:
        """The state of an interrupt controller, as ``KVM_SET_IRQCHIP`` takes it."""
        answer = bytearray(IRQCHIP.pack(number, b""))
        self._ask(Request.GET_IRQCHIP, answer)
        return bytes(answer)

    def create_vcpu(self, number: int) -> "VcpuFile":
        """A processor with this APIC id."""
        return VcpuFile(self._ask(Request.CREATE_VCPU, number), self._run_bytes)


class VcpuFile(_File):
    """One processor; made by `VmFile.create_vcpu`.

    Args:
        fd: Its descriptor.
        run_bytes: The size of `shared`.
    """

    def __init__(self, fd: int, run_bytes: int) -> None:
        super().__init__(fd)
        self.shared = mmap.mmap(fd, run_bytes, flags=mmap.MAP_SHARED)
        """``struct kvm_run``: what the kernel says of the last exit."""

    def close(self) -> None:
        """Close the file and give the shared memory back."""
        self.shared.close()
        super().close()

    def run(self) -> int:
        """Run the guest; returns the reason of its exit. Other threads run meanwhile.

        Raises:
            InterruptedError: A signal came.
            HostError: The kernel cannot run the guest.
        """
        if _run(self.fd, Request.RUN, 0) < 0:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                raise InterruptedError
            if number == errno.EAGAIN:
                # A processor that waited for its start has got it, and is to be run again.
                return EXIT_INTR
            raise _refused(Request.RUN, number)
        (reason,) = RUN_EXIT_REASON.unpack_from(self.shared)
        return int(reason)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Choose what CPUID answers; before the first `run`."""
        table = b"".join(CPUID_ENTRY.pack(*entry) for entry in entries)
        _call(self.fd, Request.SET_CPUID2, bytearray(CPUID_HEADER.pack(len(entries), 0) + table))

    def set_signals(self, blocked: Iterable[int]) -> None:
        """Choose which signals stay blocked during `run`, instead of the thread's own choice."""
        mask = sum(1 << number - 1 for number in blocked)
        # The request's own size counts the length field only.
        _call(self.fd, Request.SET_SIGNAL_MASK, bytearray(SIGNAL_MASK.pack(8, mask)))

    def registers(self) -> Registers:
        """The general registers."""
        answer = bytearray(REGS.size)
        self._ask(Request.GET_REGS, answer)
        return Registers(*REGS.unpack(answer))

    def set_registers(self, registers: Registers) -> None:
        """Set the general registers."""
        self._ask(Request.SET_REGS, REGS.pack(*registers))

    def system_registers(self) -> SystemRegisters:
        """Segments, descriptor tables and control registers."""
        answer = bytearray(SREGS_BYTES)
        self._ask(Request.GET_SREGS, answer)
        return SystemRegisters.unpack(answer)

    def set_system_registers(self, registers: SystemRegisters) -> None:
        """Set segments, descriptor tables and control registers."""
        self._ask(Request.SET_SREGS, registers.pack())

    def xsave(self, size: int) -> bytes:
        """The registers of x87, SSE, AVX and what comes after, as ``KVM_SET_XSAVE`` takes them.

        Args:
            size: See `VmFile.xsave_bytes`.
        """
        answer = bytearray(size)
        # A kernel that does not know the newer request never has more than the older one gives.
        _call(self.fd, Request.GET_XSAVE2 if size > XSAVE_BYTES else Request.GET_XSAVE, answer)
        return bytes(answer)

    def msrs(self, numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Those of the model-specific registers that can be read, by number and value."""
        found: list[tuple[int, int]] = []
        waiting = list(numbers)
        while waiting:
            asked = waiting[:MSRS_AT_ONCE]
            answer = bytearray(_msrs((number, 0) for number in asked))
            done = _call(self.fd, Request.GET_MSRS, answer)
            place = MSRS_HEADER.size
            found += MSR_ENTRY.iter_unpack(answer[place : place + MSR_ENTRY.size * done])
            # The kernel stops at the first that cannot be read.
            waiting = waiting[done if done == len(asked) else done + 1 :]
        return tuple(found)

    def set_msrs(self, msrs: Sequence[tuple[int, int]]) -> int:
        """Set model-specific registers in their order; returns how many could be set."""
        for start in range(0, len(msrs), MSRS_AT_ONCE):
            asked = msrs[start : start + MSRS_AT_ONCE]
            done = _call(self.fd, Request.SET_MSRS, bytearray(_msrs(asked)))
            if done != len(asked):
                return start + done
        return len(msrs)

    def set_guest_debug(self, control: int, registers: Sequence[int]) -> None:
        """Let the guest stop for a debugger.

        Args:
            control: ``KVM_GUESTDBG_...``.
            registers: DR0 to DR7, as far as the control says that they are used.
        """
        self._ask(Request.SET_GUEST_DEBUG, GUEST_DEBUG.pack(control, *registers))

    def translate(self, address: int) -> int | None:
        """Where a virtual address is in the guest's physical memory; `None` where nothing is mapped."""
        answer = bytearray(TRANSLATION.pack(address, 0, 0))
        self._ask(Request.TRANSLATE, answer)
        _, physical, valid = TRANSLATION.unpack(answer)
        return int(physical) if valid else None

    def mp_state(self) -> int:
        """Whether the processor runs, sleeps in HLT, or waits for its start (``MP_STATE_...``)."""
        answer = bytearray(MP_STATE.size)
        self._ask(Request.GET_MP_STATE, answer)
        return int(MP_STATE.unpack(answer)[0])

    def tsc_khz(self) -> int:
        """The frequency of the guest's time stamp counter, kHz."""
        return self._ask(Request.GET_TSC_KHZ)
