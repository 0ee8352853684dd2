"""Virtual addresses by the guest's page tables (Intel SDM vol. 3A, "4-Level Paging and 5-Level Paging").

The guest may have put anything into its tables, so each entry is read once and every address is looked up in
RAM. There is no fifth level, because the processors here do not offer it.
"""

from collections.abc import Callable
from typing import Final

from nitro_vsock import GuestMemory, GuestMemoryError

CR0_PAGING: Final = 1 << 31
PRESENT: Final = 1
USER: Final = 1 << 2
LARGE: Final = 1 << 7
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
ENTRIES: Final = 512
LEVEL_SHIFTS: Final = (39, 30, 21, 12)
LARGE_SHIFTS: Final = frozenset({30, 21})
"""Levels whose entries may be pages themselves, of 1 GiB and 2 MiB."""
CANONICAL_SHIFT: Final = 47

ReadEntry = Callable[[int], int | None]
"""Eight bytes of physical memory as a number; `None` where there is no RAM."""


def entries_in(memory: GuestMemory) -> ReadEntry:
    """Reads the entries of tables in the guest's memory."""

    def read(address: int) -> int | None:
        try:
            return int.from_bytes(memory.slice(address, 8), "little")
        except GuestMemoryError:
            return None

    return read


def translate(
    address: int, *, cr0: int, cr3: int, read: ReadEntry, wanted: int = PRESENT
) -> tuple[int, int] | None:
    """Where a virtual address is in physical memory.

    Args:
        address: The virtual one.
        cr0: The control register, which says whether there is paging.
        cr3: The control register that has the address of the first table.
        read: Reads an entry.
        wanted: Bits that every entry on the way must have, `PRESENT` and perhaps `USER`.

    Returns:
        The physical address, and how many bytes from there on belong to the same page; `None` if nothing is
        mapped there.
    """
    if not cr0 & CR0_PAGING:
        return address, 0x1000 - (address & 0xFFF)
    if (address >> CANONICAL_SHIFT) not in (0, (1 << 64 - CANONICAL_SHIFT) - 1):
        return None
    table = cr3 & ADDRESS
    for shift in LEVEL_SHIFTS:
        entry = read(table + 8 * (address >> shift & ENTRIES - 1))
        if entry is None or entry & wanted != wanted:
            return None
        if shift == LEVEL_SHIFTS[-1] or (shift in LARGE_SHIFTS and entry & LARGE):
            size = 1 << shift
            offset = address & size - 1
            return (entry & ADDRESS & -size) + offset, size - offset
        table = entry & ADDRESS
    return None
