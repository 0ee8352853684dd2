"""Page tables and segment descriptors for a processor that starts in 64-bit mode.

Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol") requires that virtual
and physical addresses are the same, and the selectors ``__BOOT_CS`` = 0x10 and ``__BOOT_DS`` = 0x18.
"""

import struct
from typing import Final

from nitro_vmm.accel.state import EntryState
from nitro_vmm.address_map import BOOT_GDT, BOOT_PAGE_TABLES
from nitro_vmm.boot.ram import Ram

CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18
GDT: Final = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
"""Flat 64-bit code and flat data, both marked accessed."""
GDT_LIMIT: Final = len(GDT) * 8 - 1

PAGE_BYTES: Final = 4096
LARGE_PAGE_BYTES: Final = 2 << 20
PAGE_DIRECTORIES: Final = 4
# Bits of page table entries. Accessed and dirty are set, so that the processor need not write them.
PRESENT_WRITABLE_ACCESSED: Final = 0x23
LARGE_DIRTY: Final = 0xC0


def write(ram: Ram) -> None:
    """Write page tables that map 4 GiB one to one by pages of 2 MiB, and the GDT."""
    pml4, pdpt, first_directory = (BOOT_PAGE_TABLES + PAGE_BYTES * index for index in range(3))
    ram.slice(pml4, 8)[:] = struct.pack("<Q", pdpt | PRESENT_WRITABLE_ACCESSED)
    ram.slice(pdpt, 8 * PAGE_DIRECTORIES)[:] = struct.pack(
        f"<{PAGE_DIRECTORIES}Q",
        *(
            first_directory + PAGE_BYTES * index | PRESENT_WRITABLE_ACCESSED
            for index in range(PAGE_DIRECTORIES)
        ),
    )
    count = PAGE_DIRECTORIES * PAGE_BYTES // 8
    ram.slice(first_directory, PAGE_DIRECTORIES * PAGE_BYTES)[:] = struct.pack(
        f"<{count}Q",
        *(index * LARGE_PAGE_BYTES | PRESENT_WRITABLE_ACCESSED | LARGE_DIRTY for index in range(count)),
    )
    ram.slice(BOOT_GDT, GDT_LIMIT + 1)[:] = struct.pack(f"<{len(GDT)}Q", *GDT)


def entry_state(rip: int, *, rsp: int, rsi: int = 0, command_line: bytes = b"") -> EntryState:
    """The registers of a processor that starts on what `write` has written; see `EntryState`."""
    return EntryState(
        rip=rip,
        rsi=rsi,
        rsp=rsp,
        cr3=BOOT_PAGE_TABLES,
        gdt_address=BOOT_GDT,
        gdt_limit=GDT_LIMIT,
        code_selector=CODE_SELECTOR,
        data_selector=DATA_SELECTOR,
        command_line=command_line,
    )
