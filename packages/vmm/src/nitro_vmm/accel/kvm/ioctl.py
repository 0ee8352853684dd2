"""The kernel's interface to KVM: requests, the structures that they carry, and a thin class for each file.

Sources: Linux, Documentation/virt/kvm/api.rst for what each request does, include/uapi/linux/kvm.h and
arch/x86/include/uapi/asm/kvm.h for the numbers and layouts (stable since Linux 2.6.22). A structure stands
here once, beside a check of its size: a wrong size would also make a wrong request number, because the number
contains it.

KVM has three kinds of files. ``/dev/kvm`` is the whole of it (`System`), makes a file for each machine
(`VmFile`), which in turn makes one for each processor (`VcpuFile`). All die with the process, or when closed.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

from nitro_vmm.errors import HostError

DEVICE: Final = Path("/dev/kvm")
API_VERSION: Final = 12
"""Of every kernel since 2.6.22; a program refuses any other (api.rst §4.1)."""

# struct kvm_userspace_memory_region: slot flags guest_phys_addr memory_size userspace_addr
MEMORY_REGION: Final = struct.Struct("<IIQQQ")
# struct kvm_irq_level: irq level
IRQ_LEVEL: Final = struct.Struct("<II")
# struct kvm_irq_routing: nr flags, then struct kvm_irq_routing_entry: gsi type flags pad, irqchip pin,
# padding
ROUTING_HEADER: Final = struct.Struct("<II")
ROUTING_ENTRY: Final = struct.Struct("<IIII II 24x")
# struct kvm_ioeventfd: datamatch addr len fd flags, padding
IOEVENTFD: Final = struct.Struct("<QQIiI36x")
# struct kvm_coalesced_mmio_zone: addr size pio
COALESCED_ZONE: Final = struct.Struct("<QII")
# struct kvm_cpuid2: nent padding, then struct kvm_cpuid_entry2: function index flags eax ebx ecx edx, padding
CPUID_HEADER: Final = struct.Struct("<II")
CPUID_ENTRY: Final = struct.Struct("<7I12x")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags
REGS: Final = struct.Struct("<18Q")
# struct kvm_segment: base limit selector type present dpl db s l g avl unusable padding
SEGMENT: Final = struct.Struct("<QIH10B")
# struct kvm_dtable: base limit padding
TABLE: Final = struct.Struct("<QH6x")
# The end of struct kvm_sregs: cr0 cr2 cr3 cr4 cr8 efer apic_base, interrupt_bitmap
CONTROL: Final = struct.Struct("<7Q32x")
SREGS_BYTES: Final = 8 * SEGMENT.size + 2 * TABLE.size + CONTROL.size
# struct kvm_mp_state: mp_state
MP_STATE: Final = struct.Struct("<I")
# struct kvm_signal_mask: len, then a sigset of the kernel
SIGNAL_MASK: Final = struct.Struct("<IQ")

# struct kvm_run, the memory that is shared with the kernel; offsets of what is used.
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = struct.Struct("<8xI")
RUN_EXIT: Final = 32
"""Where the union begins that says more about an exit."""
# direction size port count data_offset
RUN_IO: Final = struct.Struct("<BBHIQ")
# phys_addr data len is_write
RUN_MMIO: Final = struct.Struct("<Q8sIB")
RUN_MMIO_DATA: Final = RUN_EXIT + 8
# hardware_entry_failure_reason
RUN_FAIL_ENTRY: Final = struct.Struct("<Q")
# suberror ndata; for an instruction that was not emulated: flags insn_size insn_bytes
RUN_INTERNAL: Final = struct.Struct("<I4xQB15s")

assert (MEMORY_REGION.size, IRQ_LEVEL.size, ROUTING_ENTRY.size, IOEVENTFD.size) == (32, 8, 48, 64)  # noqa: S101
assert (CPUID_ENTRY.size, REGS.size, SEGMENT.size, TABLE.size, SREGS_BYTES) == (40, 144, 24, 16, 312)  # noqa: S101

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
    GET_SUPPORTED_CPUID = _request(0x05, READ | WRITE, CPUID_HEADER.size)
    CREATE_VCPU = _request(0x41)
    SET_USER_MEMORY_REGION = _request(0x46, WRITE, MEMORY_REGION.size)
    SET_TSS_ADDR = _request(0x47)
    CREATE_IRQCHIP = _request(0x60)
    IRQ_LINE = _request(0x61, WRITE, IRQ_LEVEL.size)
    SET_GSI_ROUTING = _request(0x6A, WRITE, ROUTING_HEADER.size)
    REGISTER_COALESCED_MMIO = _request(0x67, WRITE, COALESCED_ZONE.size)
    IOEVENTFD = _request(0x79, WRITE, IOEVENTFD.size)
    RUN = _request(0x80)
    GET_REGS = _request(0x81, READ, REGS.size)
    SET_REGS = _request(0x82, WRITE, REGS.size)
    GET_SREGS = _request(0x83, READ, SREGS_BYTES)
    SET_SREGS = _request(0x84, WRITE, SREGS_BYTES)
    SET_SIGNAL_MASK = _request(0x8B, WRITE, 4)
    SET_CPUID2 = _request(0x90, WRITE, CPUID_HEADER.size)
    GET_MP_STATE = _request(0x98, READ, MP_STATE.size)
    GET_TSC_KHZ = _request(0xA3)


CAP_IRQCHIP: Final = 0
CAP_USER_MEMORY: Final = 3
CAP_EXT_CPUID: Final = 7
CAP_NR_VCPUS: Final = 9
CAP_MP_STATE: Final = 14
CAP_COALESCED_MMIO: Final = 15
CAP_IRQ_ROUTING: Final = 25
CAP_IOEVENTFD: Final = 36
CAP_GET_TSC_KHZ: Final = 61
CAP_MAX_VCPUS: Final = 66
CAP_TSC_DEADLINE_TIMER: Final = 72
CAP_IMMEDIATE_EXIT: Final = 136
CAP_COALESCED_PIO: Final = 162

EXIT_UNKNOWN: Final = 0
EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17
EXIT_SYSTEM_EVENT: Final = 24

IO_OUT: Final = 1
INTERNAL_EMULATION: Final = 1
INTERNAL_HAS_BYTES: Final = 1
"""In the flags: the instruction's bytes are there."""
IOEVENTFD_DATAMATCH: Final = 1
ROUTING_IRQCHIP: Final = 1
IRQCHIP_IOAPIC: Final = 2
CPUID_ENTRIES_MAX: Final = 256
"""KVM_MAX_CPUID_ENTRIES."""

MP_STATE_RUNNABLE: Final = 0
MP_STATE_UNINITIALIZED: Final = 1
MP_STATE_HALTED: Final = 3


class CpuidEntry(NamedTuple):
    """What CPUID answers for one leaf."""

    function: int
    """EAX as the guest asks."""
    subleaf: int
    """ECX as the guest asks, where ``flags`` says that it matters."""
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class Registers(NamedTuple):
    """The general registers."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


class Segment(NamedTuple):
    """A segment register with what it was loaded with (Intel SDM vol. 3A, "Segment Descriptors")."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the descriptor's own name
    g: int = 0
    avl: int = 0
    unusable: int = 0
    padding: int = 0


class Table(NamedTuple):
    """A descriptor table: address, and size in bytes less one."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class SystemRegisters:
    """Segments, descriptor tables and control registers."""

    segments: tuple[Segment, ...]
    """CS, DS, ES, FS, GS, SS, TR, LDT."""
    gdt: Table
    idt: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    pending: bytes
    """Interrupts that wait to be delivered, a set of 256 bits."""

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Self:
        """Read ``struct kvm_sregs``."""
        segments = tuple(Segment(*SEGMENT.unpack_from(data, SEGMENT.size * number)) for number in range(8))
        place = 8 * SEGMENT.size
        gdt, idt = (Table(*TABLE.unpack_from(data, place + TABLE.size * number)) for number in range(2))
        place += 2 * TABLE.size
        cr0, cr2, cr3, cr4, cr8, efer, apic_base = CONTROL.unpack_from(data, place)
        return cls(segments, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, bytes(data[-32:]))

    def pack(self) -> bytes:
        """Make ``struct kvm_sregs``."""
        segments = b"".join(SEGMENT.pack(*segment) for segment in self.segments)
        tables = TABLE.pack(*self.gdt) + TABLE.pack(*self.idt)
        control = (self.cr0, self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.apic_base)
        return segments + tables + CONTROL.pack(*control)[:-32] + self.pending


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
        if (version := self._ask(Request.GET_API_VERSION)) != API_VERSION:
            self.close()
            raise HostError(f"{path} speaks version {version} of KVM's interface, not {API_VERSION}")

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
        raise HostError(f"{path}: {error.strerror}", hint=hints.get(error.errno or 0, "")) from error


_libc: Final = ctypes.CDLL(None, use_errno=True)


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


class VmFile(_File):
    """One machine; made by `System.create_vm`.

    Args:
        fd: Its descriptor.
        run_bytes: The size of the memory that each processor shares with the kernel.
    """

    def __init__(self, fd: int, run_bytes: int) -> None:
        super().__init__(fd)
        self._run_bytes = run_bytes

    def set_memory(self, slot: int, address: int, memory: mmap.mmap) -> None:
        """Make memory of this process RAM of the guest, at a guest-physical address; it must stay mapped."""
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._ask(Request.SET_USER_MEMORY_REGION, MEMORY_REGION.pack(slot, 0, address, len(memory), place))

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
        try:
            fcntl.ioctl(self.fd, Request.RUN, 0)
        except InterruptedError:
            raise
        except BlockingIOError:
            # A processor that waited for its start has got it, and is to be run again.
            return EXIT_INTR
        except OSError as error:
            raise _refused(Request.RUN, error.errno) from error
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

    def mp_state(self) -> int:
        """Whether the processor runs, sleeps in HLT, or waits for its start (``MP_STATE_...``)."""
        answer = bytearray(MP_STATE.size)
        self._ask(Request.GET_MP_STATE, answer)
        return int(MP_STATE.unpack(answer)[0])

    def tsc_khz(self) -> int:
        """The frequency of the guest's time stamp counter, kHz."""
        return self._ask(Request.GET_TSC_KHZ)
