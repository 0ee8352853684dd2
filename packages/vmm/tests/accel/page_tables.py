"""Page tables of a tiny guest's own, whose last one a test fills as it likes."""

import struct

from tiny_guest import Guest

TABLES = 0x30_0000
"""Four of them; the last one maps from `MAPPED` on, and the others all RAM where it is."""
LAST_TABLE = TABLES + 0x3000
MAPPED = 0x40_0000
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, GLOBAL = (1 << bit for bit in (0, 1, 2, 5, 6, 7, 8))
PAGE_FAULT = 14
UPPER = 0xFFFF_8000_0000_0000
"""Where the upper half of the address space begins, where kernels are."""
GLOBAL_PAGES_ON, GLOBAL_PAGES_OFF = "0f20e0 0c80 0f22e0", "0f20e0 247f 0f22e0"
SET_CR3 = "48b8 {tables} 0f22d8"
SWITCH = SET_CR3.format(tables=struct.pack("<Q", TABLES).hex())
"""Code that uses them from now on."""


def write_page_tables(guest: Guest) -> None:
    """Write all of them but the last one, which maps nothing yet."""
    table = PRESENT | WRITABLE | USER
    for index, entry in enumerate((TABLES + 0x1000, TABLES + 0x2000)):
        guest.ram.slice(TABLES + 0x1000 * index, 8)[:] = struct.pack("<Q", entry | table)
    large = PRESENT | WRITABLE | LARGE | GLOBAL
    entries = (large, 0x20_0000 | large, LAST_TABLE | table)
    guest.ram.slice(TABLES + 0x2000, 24)[:] = struct.pack("<3Q", *entries)


def map_upper_half(guest: Guest) -> None:
    """Have the upper half begin with the pages of the lower one."""
    tables = guest.ram.slice(TABLES, 0x1000)
    tables[256 * 8 : 257 * 8] = tables[:8]


def set_entry(entry: int, *, table: int = LAST_TABLE, index: int = 0) -> str:
    """Code that writes an entry of a table; it changes RAX."""
    return f"48b8 {struct.pack('<Q', entry).hex()} 48a3 {struct.pack('<Q', table + 8 * index).hex()}"
