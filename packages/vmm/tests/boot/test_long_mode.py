"""What a processor finds when it starts in 64-bit mode: every entry of its page tables, and its segments."""

import struct

from nitro_vmm.address_map import BOOT_GDT, BOOT_PAGE_TABLES, MIB
from nitro_vmm.boot import long_mode
from nitro_vsock import GuestMemory

PRESENT_WRITABLE_ACCESSED = 0x23
LARGE_PAGE_DIRTY = 0xC0


def test_four_gigabytes_are_mapped_one_to_one() -> None:
    ram = bytearray(MIB)

    long_mode.write(GuestMemory([(0, memoryview(ram))]))

    def table(address: int, entries: int) -> list[int]:
        return list(struct.unpack_from(f"<{entries}Q", ram, address))

    (top, nothing) = table(BOOT_PAGE_TABLES, 2)
    assert (top & 0xFFF, nothing) == (PRESENT_WRITABLE_ACCESSED, 0)
    *directories, nothing = table(top & ~0xFFF, 5)
    assert nothing == 0
    assert [entry & 0xFFF for entry in directories] == [PRESENT_WRITABLE_ACCESSED] * 4
    assert [page for entry in directories for page in table(entry & ~0xFFF, 512)] == [
        number * 2 * MIB | PRESENT_WRITABLE_ACCESSED | LARGE_PAGE_DIRTY for number in range(2048)
    ]


def test_segments_are_flat_where_linux_wants_them() -> None:
    ram = bytearray(MIB)
    long_mode.write(GuestMemory([(0, memoryview(ram))]))

    state = long_mode.entry_state(0x10_0000, rsp=0x8000)

    assert struct.unpack_from("<4Q", ram, BOOT_GDT) == (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    assert (state.gdt_address, state.gdt_limit) == (BOOT_GDT, 31)
    assert (state.code_selector, state.data_selector) == (0x10, 0x18)
    assert (state.rip, state.rsp, state.rsi) == (0x10_0000, 0x8000, 0)
