"""What Unicorn keeps to itself and a machine needs: the one place that knows its memory layout.

Unicorn delivers no interrupts, offers no error codes, and makes asynchronous stops unsafe; QEMU's own
structures inside it have all that. The offsets below are those of the wheel of Unicorn 2.1.4 for Linux on
x86-64. `PrivateState` proves them before it is used: every pointer is looked up in the process's memory map
before it is followed, and values written through the public interface must be found where the table says.
A build that does not match is refused.
"""

import ctypes
import os
from pathlib import Path
from typing import Final, NamedTuple

from nitro_vmm.accel.unicorn import public
from nitro_vmm.accel.unicorn.public import Register, Uc
from nitro_vmm.errors import HostError

UNICORN_VERSION: Final = "2.1.4"

# struct uc_struct
UC_CPU: Final = 440
UC_TARGET_PAGE_SIZE: Final = 1984
UC_NO_EXIT_REQUEST: Final = 2034
UC_INIT_DONE: Final = 2035

# struct CPUState
CPU_INTERRUPT_REQUEST: Final = 28
CPU_ENV: Final = 296
CPU_ICOUNT_DECR: Final = 304
CPU_EXCEPTION_INDEX: Final = 33184
CPU_CLASS: Final = 33200

# struct CPUClass
CLASS_DO_INTERRUPT: Final = 16

# struct CPUX86State (CR2 is cr[2], the segments are in the order ES CS SS DS FS GS)
ENV_REGS: Final = 0
ENV_EIP: Final = 128
ENV_HFLAGS: Final = 176
ENV_SEGS: Final = 184
ENV_TR: Final = 352
ENV_GDT: Final = 376
ENV_IDT: Final = 400
ENV_CR: Final = 424
ENV_EFER: Final = 592
ENV_FPUS: Final = 608
ENV_FPUC: Final = 610
ENV_MXCSR: Final = 816
ENV_XMM: Final = 824
ENV_SYSENTER_CS: Final = 4800
ENV_SYSENTER_ESP: Final = 4808
ENV_SYSENTER_EIP: Final = 4816
ENV_STAR: Final = 4824
ENV_LSTAR: Final = 4840
ENV_FMASK: Final = 4856
ENV_ERROR_CODE: Final = 5384
ENV_EXCEPTION_IS_INT: Final = 5388
ENV_VM_VMCB: Final = 5504
ENV_TSC_OFFSET: Final = 5512
ENV_END_RESET_FIELDS: Final = 5568
"""Up to here lies what a reset clears: all of the processor's state, and no pointers."""
ENV_BYTES: Final = 7008

INTERRUPT_VIRQ_BYTE: Final = 1
"""CPU_INTERRUPT_VIRQ is 0x100: the second byte of ``interrupt_request``, written alone so that nothing else
in that word is touched while the processor's thread runs."""
VIRQ_VECTOR: Final = 0x64
"""Where QEMU reads the vector of a VIRQ: ``vm_vmcb + offsetof(struct vmcb, control.int_vector)``, and vm_vmcb
stays 0 without SVM. The page belongs to what Linux leaves to the BIOS."""

SAVED_BYTES: Final = ENV_END_RESET_FIELDS

CS: Final = 1
SS: Final = 2


class Segment(NamedTuple):
    """A segment register's hidden part."""

    selector: int
    base: int
    limit: int
    flags: int
    """The high half of the descriptor, as in memory."""


# The high half of flat descriptors (SDM vol. 3A, "Segment Descriptors"): 64-bit code, data.
FLAT_CODE: Final = 0x00A0_9B00
FLAT_DATA: Final = 0x00C0_9300
FLAT_LIMIT: Final = 0xFFFF_FFFF


class SegmentCache(ctypes.Structure):
    """QEMU's struct of that name."""

    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )
    selector: int
    base: int
    limit: int
    flags: int


class PrivateState:
    """One processor's inner state, by name.

    Raises:
        HostError: This is not the Unicorn that the offsets were measured on.
    """

    def __init__(self, uc: Uc) -> None:
        _check_build()
        uc.reg_read(Register.RIP)  # Unicorn initialises itself at the first use
        mapped = _Mapped()
        structure = engine_address(uc)
        mapped.require(structure, UC_INIT_DONE + 1, "uc_struct")
        neighbours = (_u32(structure + UC_TARGET_PAGE_SIZE).value, _u8(structure + UC_INIT_DONE).value)
        if neighbours != (4096, 1) or _u8(structure + UC_NO_EXIT_REQUEST).value:
            raise mismatch("uc_struct.no_exit_request has other neighbours")
        cpu = mapped.follow(structure + UC_CPU, CPU_CLASS + 8, "uc_struct.cpu")
        env = mapped.follow(cpu + CPU_ENV, ENV_BYTES, "CPUState.env_ptr")
        icount = mapped.follow(cpu + CPU_ICOUNT_DECR, 4, "CPUState.icount_decr_ptr")
        cpu_class = mapped.follow(cpu + CPU_CLASS, CLASS_DO_INTERRUPT + 8, "CPUState.cc")
        function = _u64(cpu_class + CLASS_DO_INTERRUPT).value
        if not mapped.is_unicorn_code(function):
            raise mismatch("CPUClass.do_interrupt is no function of Unicorn")

        self.registers = (ctypes.c_uint64 * 16).from_address(env + ENV_REGS)
        """RAX RCX RDX RBX RSP RBP RSI RDI R8-R15."""
        self.control = (ctypes.c_uint64 * 5).from_address(env + ENV_CR)
        self.rip = _u64(env + ENV_EIP)
        self.hflags = _u32(env + ENV_HFLAGS)
        self.efer = _u64(env + ENV_EFER)
        self.star = _u64(env + ENV_STAR)
        self.lstar = _u64(env + ENV_LSTAR)
        self.fmask = _u32(env + ENV_FMASK)
        self.error_code = _u32(env + ENV_ERROR_CODE)
        self.exception_is_int = _u32(env + ENV_EXCEPTION_IS_INT)
        self.tsc_offset = ctypes.c_int64.from_address(env + ENV_TSC_OFFSET)
        """What is added to the host's time stamp counter."""
        self.exception_index = ctypes.c_int32.from_address(cpu + CPU_EXCEPTION_INDEX)
        self.interrupt_pending = _u8(cpu + CPU_INTERRUPT_REQUEST + INTERRUPT_VIRQ_BYTE)
        self.leave_block = ctypes.c_uint16.from_address(icount + 2)
        """Write 0xFFFF, from any thread, and ``interrupt_pending`` is looked at before the next block."""
        self._segments = (SegmentCache * 6).from_address(env + ENV_SEGS)
        self.task_register = SegmentCache.from_address(env + ENV_TR)
        self.gdt = SegmentCache.from_address(env + ENV_GDT)
        """Only base and limit have a meaning, as for the IDT."""
        self.idt = SegmentCache.from_address(env + ENV_IDT)
        self._env = env
        self._cpu = cpu
        self._do_interrupt = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(function)
        self._prove(uc)
        # Before the first translation: else an exit asked for from another thread can make an instruction
        # that reads and writes memory run twice.
        self._no_exit_request = _u8(structure + UC_NO_EXIT_REQUEST)
        self._no_exit_request.value = 1

    def exits_within_blocks(self, *, allowed: bool) -> None:
        """Whether what is translated from now on may end in the middle of a block, for a debugger's step."""
        self._no_exit_request.value = not allowed

    def deliver_exception(self) -> None:
        """QEMU's own delivery of ``exception_index``. Must not fault: it would jump over Python's frames."""
        self._do_interrupt(self._cpu)

    def save(self) -> bytes:
        """All registers, `SAVED_BYTES` of them; while no guest code runs."""
        return ctypes.string_at(self._env, SAVED_BYTES)

    def load(self, registers: bytes) -> None:
        """Go on with registers that `save` gave; before any guest code has run."""
        ctypes.memmove(self._env, registers, SAVED_BYTES)

    def set_segment(self, index: int, segment: Segment) -> None:
        """Load a segment register, in the order ES CS SS DS FS GS, without its descriptor."""
        cache = self._segments[index]
        cache.selector, cache.base, cache.limit, cache.flags = segment

    def _prove(self, uc: Uc) -> None:
        general = (
            *(Register.RAX, Register.RCX, Register.RDX, Register.RBX),
            *(Register.RSP, Register.RBP, Register.RSI, Register.RDI),
            *range(Register.R8, Register.R8 + 8),
        )
        places = [
            (f"register {index}", register, self._env + 8 * index) for index, register in enumerate(general)
        ]
        places += [
            ("RIP", Register.RIP, self._env + ENV_EIP),
            ("CR2", Register.CR2, self._env + ENV_CR + 16),
        ]
        for number, (name, register, at) in enumerate(places):
            value = 0x5EED_0000_1234_0000 + number
            before = uc.reg_read(register)
            uc.reg_write(register, value)
            if _u64(at).value != value:
                raise mismatch(f"{name} is elsewhere")
            uc.reg_write(register, before)
        for name, register, at, value in (
            ("FPSW", Register.FPSW, ENV_FPUS, 0x0101),
            ("FPCW", Register.FPCW, ENV_FPUC, 0x0300),
            ("MXCSR", Register.MXCSR, ENV_MXCSR, 0x1FA0),
            ("XMM0", Register.XMM0, ENV_XMM, 0x5EED_1234),
        ):
            before = uc.reg_read(register)
            uc.reg_write(register, value)
            if _u32(self._env + at).value & 0xFFFF != value & 0xFFFF:
                raise mismatch(f"{name} is elsewhere")
            uc.reg_write(register, before)
        for name, msr, at in (
            ("SYSENTER_CS", 0x174, ENV_SYSENTER_CS),
            ("SYSENTER_ESP", 0x175, ENV_SYSENTER_ESP),
            ("SYSENTER_EIP", 0x176, ENV_SYSENTER_EIP),
            ("STAR", 0xC000_0081, ENV_STAR),
            ("LSTAR", 0xC000_0082, ENV_LSTAR),
            ("FMASK", 0xC000_0084, ENV_FMASK),
        ):
            uc.reg_write(Register.MSR, (msr, 0x1234_5678))
            if _u64(self._env + at).value & 0xFFFF != 0x5678:
                raise mismatch(f"{name} is elsewhere")
            uc.reg_write(Register.MSR, (msr, 0))
        for name, register, found in (
            ("TR", Register.TR, self.task_register),
            ("GDTR", Register.GDTR, self.gdt),
            ("IDTR", Register.IDTR, self.idt),
        ):
            before = uc.reg_read(register)
            uc.reg_write(register, (0, 0x1234_5000, 0x765, 0))
            if (found.base, found.limit) != (0x1234_5000, 0x765):
                raise mismatch(f"{name} is elsewhere")
            uc.reg_write(register, before)
        if (
            _u64(self._env + ENV_VM_VMCB).value
            or self.exception_index.value != -1
            or self.interrupt_pending.value
        ):
            raise mismatch("a fresh processor has exceptions or interrupts pending")


def engine_address(uc: Uc) -> int:
    """Where ``struct uc_struct`` is."""
    return int(uc._uch.value or 0)  # noqa: SLF001


def _check_build() -> None:
    found = public.version()
    if found != UNICORN_VERSION:
        raise HostError(
            f"this is Unicorn {found}, and its inner layout is known for {UNICORN_VERSION} only",
            hint=f"pip install unicorn=={UNICORN_VERSION}",
            code="M21",
        )
    host = os.uname()
    if (host.sysname, host.machine) != ("Linux", "x86_64"):
        raise HostError(
            f"Unicorn's inner layout is not known for {host.sysname} on {host.machine}",
            hint="run on Linux on x86-64",
            code="M21",
        )


def mismatch(what: str) -> HostError:
    """The error for a Unicorn that is not the one that we know."""
    return HostError(
        f"this build of Unicorn is laid out differently: {what}",
        hint=f"pip install --force-reinstall --only-binary :all: unicorn=={UNICORN_VERSION}",
        code="M21",
    )


class _Mapped:
    """What is mapped in this process, so that a wrong offset is an error and not a crash."""

    def __init__(self) -> None:
        self._readable: list[tuple[int, int]] = []
        self._code: list[tuple[int, int]] = []
        for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
            fields = line.split(None, 5)
            start, end = (int(part, 16) for part in fields[0].split("-"))
            if fields[1].startswith("r"):
                if self._readable and self._readable[-1][1] == start:
                    self._readable[-1] = (self._readable[-1][0], end)
                else:
                    self._readable.append((start, end))
            if fields[1][2] == "x" and "libunicorn" in fields[-1]:
                self._code.append((start, end))

    def require(self, address: int, size: int, what: str) -> None:
        if not any(start <= address and address + size <= end for start, end in self._readable):
            raise mismatch(f"{what} points nowhere")

    def follow(self, pointer: int, size: int, what: str) -> int:
        address = _u64(pointer).value
        self.require(address, size, what)
        return address

    def is_unicorn_code(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._code)


def _u8(address: int) -> ctypes.c_uint8:
    return ctypes.c_uint8.from_address(address)


def _u32(address: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(address)


def _u64(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)
