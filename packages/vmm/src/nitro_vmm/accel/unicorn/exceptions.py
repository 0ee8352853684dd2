"""Whether an exception can be delivered, and what becomes of it when it cannot.

QEMU delivers exceptions natively, but when the IDT, the TSS or the stack is not there it raises the next
one by a long jump, over the Python frames of the hook that called it. So the way is walked here first, with
the checks of the Intel SDM vol. 3A ("Interrupt and Exception Handling in 64-bit mode"), and what would fault
is combined into a double or triple fault ("Conditions for Generating a Double Fault") before QEMU is asked.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

DOUBLE_FAULT: Final = 8
INVALID_TSS: Final = 10
NOT_PRESENT: Final = 11
STACK_FAULT: Final = 12
GENERAL_PROTECTION: Final = 13
PAGE_FAULT: Final = 14
CONTRIBUTORY: Final = frozenset({0, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION})

# Page table entries (SDM vol. 3A, "4-Level Paging").
PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
LARGE: Final = 1 << 7
NO_EXECUTE: Final = 1 << 63
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
CR0_WRITE_PROTECT: Final = 1 << 16
CR4_SMAP: Final = 1 << 21
EFER_NXE: Final = 1 << 11

# Error code of a page fault.
FAULT_PROTECTION: Final = 1 << 0
FAULT_WRITE: Final = 1 << 1
FAULT_RESERVED: Final = 1 << 3

U64: Final = (1 << 64) - 1
"""Addresses go round at their end."""
PAGE_MASK: Final = U64 & ~0xFFF

FRAME_BYTES_MAX: Final = 48
"""SS RSP RFLAGS CS RIP and an error code."""


class Fault(NamedTuple):
    """An exception to be delivered."""

    vector: int
    error_code: int = 0
    address: int | None = None
    """CR2, for a page fault."""


class Table(NamedTuple):
    """Base and limit of a descriptor table."""

    base: int
    limit: int


class State(NamedTuple):
    """What delivery depends on, read once."""

    privilege: int
    rsp: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    idt: Table
    gdt: Table
    tss: Table


ReadPhysical = Callable[[int], int | None]
"""The little-endian quadword at a physical address; None where there is no RAM."""


class _Refused(Exception):  # noqa: N818 - not an error of anybody's
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def obstacle(state: State, vector: int, read: ReadPhysical, *, software: bool = False) -> Fault | None:
    """What delivering ``vector`` would raise; None when it can be delivered.

    Args:
        state: The processor.
        vector: The exception.
        read: Physical memory.
        software: Whether an INT instruction asked, and the gate's privilege counts.
    """
    try:
        _walk_delivery(state, vector, read, software=software)
    except _Refused as refused:
        return refused.fault
    return None


def combined(first: int, second: Fault) -> Fault | None:
    """What becomes of an exception that came while ``first`` was delivered; None is a triple fault."""
    if first == DOUBLE_FAULT:
        return None
    both_contribute = first in CONTRIBUTORY and second.vector in CONTRIBUTORY
    if both_contribute or (first == PAGE_FAULT and second.vector in CONTRIBUTORY | {PAGE_FAULT}):
        return Fault(DOUBLE_FAULT, 0, second.address)
    return second


def _walk_delivery(state: State, vector: int, read: ReadPhysical, *, software: bool) -> None:
    selector_error = vector * 8 + 2  # "IDT" is bit 1
    if vector * 16 + 15 > state.idt.limit:
        raise _Refused(Fault(GENERAL_PROTECTION, selector_error))
    low = _read_virtual(state, state.idt.base + vector * 16, read)
    _read_virtual(state, state.idt.base + vector * 16 + 8, read)
    kind, gate_privilege, present = low >> 40 & 0x1F, low >> 45 & 3, low >> 47 & 1
    if kind not in (14, 15) or (software and gate_privilege < state.privilege):
        raise _Refused(Fault(GENERAL_PROTECTION, selector_error))
    if not present:
        raise _Refused(Fault(NOT_PRESENT, selector_error))
    code_privilege = _code_segment(state, low >> 16 & 0xFFFF, read)
    stack_number = low >> 32 & 7
    if stack_number or code_privilege < state.privilege:
        index = 8 * (stack_number + 3 if stack_number else code_privilege) + 4
        if index + 7 > state.tss.limit:
            raise _Refused(Fault(INVALID_TSS))
        stack = _read_virtual(state, state.tss.base + index, read)
    else:
        stack = state.rsp
    stack &= ~0xF
    for address in {(stack - FRAME_BYTES_MAX) & PAGE_MASK, (stack - 8) & PAGE_MASK}:
        if not _is_canonical(address):
            raise _Refused(Fault(STACK_FAULT))
        _translate(state, address, read, write=True)


def _code_segment(state: State, selector: int, read: ReadPhysical) -> int:
    """The privilege that the handler runs at."""
    error = selector & 0xFFFC
    in_gdt = not selector & 4
    if not error or not in_gdt or error + 7 > state.gdt.limit:
        raise _Refused(Fault(GENERAL_PROTECTION, error))
    descriptor = _read_virtual(state, state.gdt.base + error, read) >> 32
    privilege = descriptor >> 13 & 3
    is_code = descriptor & 1 << 12 and descriptor & 1 << 11
    if not is_code or privilege > state.privilege:
        raise _Refused(Fault(GENERAL_PROTECTION, error))
    if not descriptor & 1 << 15:
        raise _Refused(Fault(NOT_PRESENT, error))
    long_mode, default_32 = descriptor & 1 << 21, descriptor & 1 << 22
    if not long_mode or default_32:
        raise _Refused(Fault(GENERAL_PROTECTION, error))
    return state.privilege if descriptor & 1 << 10 else privilege


def _read_virtual(state: State, address: int, read: ReadPhysical) -> int:
    """A quadword of supervisor data, which may cross a page."""
    address &= U64
    low = _quadword(state, address & ~7, read)
    shift = 8 * (address & 7)
    if not shift:
        return low
    high = _quadword(state, (address & ~7) + 8 & U64, read)
    return (low >> shift | high << 64 - shift) & U64


def _quadword(state: State, address: int, read: ReadPhysical) -> int:
    value = read(_translate(state, address, read, write=False))
    if value is None:
        raise _Refused(Fault(PAGE_FAULT, FAULT_PROTECTION | FAULT_RESERVED, address))
    return value


def _is_canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1_FFFF)


def _translate(state: State, address: int, read: ReadPhysical, *, write: bool) -> int:
    """The physical address of a quadword of supervisor data, which must be RAM."""
    if not _is_canonical(address):
        raise _Refused(Fault(GENERAL_PROTECTION))
    access = FAULT_WRITE if write else 0

    def fault(bits: int) -> _Refused:
        return _Refused(Fault(PAGE_FAULT, access | bits, address))

    writable, user = True, True
    table = state.cr3 & ADDRESS
    for shift in (39, 30, 21, 12):
        entry = read(table + (address >> shift & 0x1FF) * 8)
        if entry is None:
            raise fault(FAULT_PROTECTION | FAULT_RESERVED)
        if not entry & PRESENT:
            raise fault(0)
        if entry & NO_EXECUTE and not state.efer & EFER_NXE:
            raise fault(FAULT_PROTECTION | FAULT_RESERVED)
        writable = writable and bool(entry & WRITABLE)
        user = user and bool(entry & USER)
        table = entry & ADDRESS
        if entry & LARGE and shift > 12:
            if shift != 21 or entry & 0x1F_E000:  # no 1 GiB pages here; reserved bits of a 2 MiB page
                raise fault(FAULT_PROTECTION | FAULT_RESERVED)
            table = (entry & ADDRESS & ~0x1F_FFFF) | address & 0x1F_FFFF
            break
    if (write and not writable and state.cr0 & CR0_WRITE_PROTECT) or (user and state.cr4 & CR4_SMAP):
        raise fault(FAULT_PROTECTION)
    physical = table | address & 0xFFF
    if read(physical) is None:
        raise fault(FAULT_PROTECTION | FAULT_RESERVED)
    return physical
