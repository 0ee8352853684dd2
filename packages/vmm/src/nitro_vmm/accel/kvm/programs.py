"""How a processor comes from the kernel to a program and back, done from outside.

While a guest is watched (see `stops`), the instructions by which its kernel returns to a program are
replaced, and what they would have done is done here. A system call in a program's name is the other
direction.

Source: Intel SDM vol. 2, "SYSCALL", "SYSRET", "SWAPGS" and "IRET/IRETD/IRETQ", for 64-bit mode.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nitro_vmm.accel.kvm.ioctl import VcpuFile
from nitro_vmm.accel.kvm.structures import Segment
from nitro_vmm.accel.state import ProgramState
from nitro_vsock import GuestMemory, GuestMemoryError

MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_FMASK: Final = 0xC000_0084
MSR_KERNEL_GS_BASE: Final = 0xC000_0102
EFER_SYSCALL: Final = 1
EFER_LONG_MODE: Final = 1 << 10
USER: Final = 3
"""The privilege of programs."""

RFLAGS_ALWAYS_SET: Final = 1 << 1
RFLAGS_RESUME: Final = 1 << 16
RFLAGS_LOADED: Final = 0x3C_7FD7
"""Those that SYSRET takes from R11; IRET takes RFLAGS.RF, too."""
U64: Final = (1 << 64) - 1
QUADWORD: Final = 8
FRAME_QUADWORDS: Final = 5
"""RIP CS RFLAGS RSP SS, as IRET finds them on the stack."""

CODE: Final = Segment(0, 0xFFFF_FFFF, 0, 0xB, present=1, s=1, l=1, g=1)
STACK: Final = Segment(0, 0xFFFF_FFFF, 0, 3, present=1, db=1, s=1, g=1)
GENERAL: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
"""The order of `ProgramState.general`."""


def program_of(file: VcpuFile) -> ProgramState | None:
    """The 64-bit program before whose next instruction a processor stands; `None` if there is none."""
    system = file.system_registers()
    code = system.segments[0]
    if not (system.efer & EFER_LONG_MODE and code.l and code.selector & 3 == USER):
        return None
    registers = file.registers()
    return ProgramState(tuple(getattr(registers, name) for name in GENERAL), registers.rip, system.cr3)


def set_general(file: VcpuFile, values: Sequence[int]) -> None:
    """Change the general registers, in the order of `ProgramState.general`."""
    file.set_registers(file.registers()._replace(**dict(zip(GENERAL, values, strict=True))))


def enter_system_call(file: VcpuFile) -> bool:
    """Go on as if a program had executed SYSCALL before its next instruction; false if it cannot."""
    system = file.system_registers()
    if not system.efer & EFER_SYSCALL or program_of(file) is None:
        return False
    msrs = dict(file.msrs((MSR_STAR, MSR_LSTAR, MSR_FMASK)))
    registers = file.registers()
    selector = msrs[MSR_STAR] >> 32 & 0xFFFC
    code = CODE._replace(selector=selector)
    stack = STACK._replace(selector=selector + 8)
    file.set_system_registers(replace(system, segments=_with(system.segments, code, stack)))
    file.set_registers(
        registers._replace(
            rcx=registers.rip,
            r11=registers.rflags & ~RFLAGS_RESUME,
            rip=msrs[MSR_LSTAR],
            rflags=registers.rflags & ~(msrs[MSR_FMASK] | RFLAGS_RESUME) | RFLAGS_ALWAYS_SET,
        )
    )
    return True


def system_return(file: VcpuFile) -> None:
    """SYSRET to 64-bit code."""
    system, registers = file.system_registers(), file.registers()
    ((_, star),) = file.msrs((MSR_STAR,))
    base = star >> 48
    code = CODE._replace(selector=base + 16 | USER, dpl=USER)
    stack = STACK._replace(selector=base + 8 | USER, dpl=USER)
    file.set_system_registers(replace(system, segments=_with(system.segments, code, stack)))
    flags = registers.r11 & RFLAGS_LOADED | RFLAGS_ALWAYS_SET
    file.set_registers(registers._replace(rip=registers.rcx, rflags=flags))


def interrupt_return(file: VcpuFile, memory: GuestMemory) -> None:
    """SWAPGS and IRET in the kernel's 64-bit code, to a program.

    Raises:
        LookupError: There is no such frame on the stack.
    """
    system, registers = file.system_registers(), file.registers()
    frame = [
        read_quadword(file, memory, registers.rsp + QUADWORD * index & U64)
        for index in range(FRAME_QUADWORDS)
    ]
    rip, code_selector, flags, rsp, stack_selector = frame
    segments = [
        _load(file, memory, system.gdt.base, selector & 0xFFFF)
        for selector in (code_selector, stack_selector)
    ]
    ((_, gs_base),) = file.msrs((MSR_KERNEL_GS_BASE,))
    code, data, extra, fs, gs, *others = _with(system.segments, *segments)
    file.set_msrs([(MSR_KERNEL_GS_BASE, gs.base)])
    swapped = (code, data, extra, fs, gs._replace(base=gs_base), *others)
    file.set_system_registers(replace(system, segments=swapped))
    flags = flags & (RFLAGS_LOADED | RFLAGS_RESUME) | RFLAGS_ALWAYS_SET
    file.set_registers(registers._replace(rip=rip, rflags=flags, rsp=rsp))


def read_quadword(file: VcpuFile, memory: GuestMemory, address: int) -> int:
    """Eight bytes of virtual memory, within a page, as a number.

    Raises:
        LookupError: There is no RAM.
    """
    physical = file.translate(address)
    if physical is not None:
        try:
            return int.from_bytes(memory.slice(physical, QUADWORD), "little")
        except GuestMemoryError:
            pass
    raise LookupError(f"there is no memory at {address:#x}")


def _with(segments: tuple[Segment, ...], code: Segment, stack: Segment) -> tuple[Segment, ...]:
    """The segment registers (CS DS ES FS GS SS TR LDT) with others for code and stack."""
    return (code, *segments[1:5], stack, *segments[6:])


def _load(file: VcpuFile, memory: GuestMemory, table: int, selector: int) -> Segment:
    """What a segment register has after a selector was loaded (Intel SDM vol. 3A, "Segment Descriptors")."""
    if selector < 4 or selector & 4:
        raise LookupError(f"the kernel returns to the segment {selector:#x}")
    descriptor = read_quadword(file, memory, table + (selector & ~7) & U64)
    granular = descriptor >> 55 & 1
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    return Segment(
        base=descriptor >> 16 & 0xFF_FFFF | descriptor >> 56 << 24,
        limit=limit << 12 | 0xFFF if granular else limit,
        selector=selector,
        type=descriptor >> 40 & 0xF | 1,
        present=descriptor >> 47 & 1,
        dpl=descriptor >> 45 & 3,
        db=descriptor >> 54 & 1,
        s=descriptor >> 44 & 1,
        l=descriptor >> 53 & 1,
        g=granular,
        avl=descriptor >> 52 & 1,
    )
