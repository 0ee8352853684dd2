"""What of the guest's page tables the processor remembers, and for how long."""

import struct
from collections.abc import Iterator

import pytest

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from page_tables import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    GLOBAL_PAGES_OFF,
    GLOBAL_PAGES_ON,
    LARGE,
    LAST_TABLE,
    MAPPED,
    PAGE_FAULT,
    PRESENT,
    SWITCH,
    TABLES,
    WRITABLE,
    set_entry,
    write_page_tables,
)
from tiny_guest import HLT, LIDT, STORE_RAX, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

PAGE_A, PAGE_B = 0x31_0000, 0x31_1000
NO_EXECUTE = 1 << 63
RESERVED = 1 << 45

FILL_LAST_TABLE = "48b9 {table} 48b8 {entry} bf00020000 488901 4883c108 ffcf 75f5"
"""Write the same entry 512 times: mov rcx,table; mov rax,entry; mov edi,512; loop."""
ENABLE_NO_EXECUTE = "b9800000c0 0f32 80cc08 0f30"
ENABLE_WRITE_PROTECTION = "0f20c0 0d00000100 0f22c0"
LOAD = "488b0425" + struct.pack("<I", MAPPED).hex()  # mov rax,[MAPPED]
STORE = "48890425" + struct.pack("<I", MAPPED).hex()  # mov [MAPPED],rax
CALL = "b8" + struct.pack("<I", MAPPED).hex() + "ffd0"  # call MAPPED
INVLPG = "0f013c25" + struct.pack("<I", MAPPED).hex()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    write_page_tables(guest)
    guest.ram.slice(PAGE_A, 8)[:] = struct.pack("<Q", 0xA)
    guest.ram.slice(PAGE_B, 8)[:] = struct.pack("<Q", 0xB)
    guest.gate(PAGE_FAULT, "58" + STORE_RAX + HLT)  # pop rax: the error code
    yield guest
    guest.cpu.stop()


def last_entry(guest: Guest, index: int = 0) -> int:
    (entry,) = struct.unpack("<Q", guest.ram.slice(LAST_TABLE + 8 * index, 8))
    assert isinstance(entry, int)
    return entry


@pytest.mark.parametrize("prepare", ["", GLOBAL_PAGES_ON])
def test_a_write_to_cr3_forgets_a_page(guest: Guest, prepare: str) -> None:
    code = prepare + set_entry(PAGE_A | PRESENT) + SWITCH + LOAD + set_entry(PAGE_B | PRESENT) + SWITCH + LOAD

    stopped = guest.run(code + STORE_RAX + HLT)

    assert (stopped, guest.result) == (Stopped.HALTED, 0xB)


def test_a_write_to_cr3_keeps_a_global_page(guest: Guest) -> None:
    """Programs may not count on that; but it is what makes it quick."""
    old, new = (set_entry(page | PRESENT | GLOBAL) for page in (PAGE_A, PAGE_B))

    guest.run(GLOBAL_PAGES_ON + old + SWITCH + LOAD + new + SWITCH + LOAD + STORE_RAX + HLT)

    assert guest.result == 0xA


def test_a_global_bit_means_nothing_until_it_is_enabled(guest: Guest) -> None:
    old, new = (set_entry(page | PRESENT | GLOBAL) for page in (PAGE_A, PAGE_B))

    guest.run(old + SWITCH + LOAD + new + SWITCH + LOAD + STORE_RAX + HLT)

    assert guest.result == 0xB


@pytest.mark.parametrize("forget", [INVLPG, GLOBAL_PAGES_OFF], ids=["INVLPG", "CR4.PGE"])
def test_a_global_page_is_forgotten_when_the_guest_asks_for_it(guest: Guest, forget: str) -> None:
    old, new = (set_entry(page | PRESENT | GLOBAL) for page in (PAGE_A, PAGE_B))

    guest.run(GLOBAL_PAGES_ON + old + SWITCH + LOAD + new + forget + LOAD + STORE_RAX + HLT)

    assert guest.result == 0xB


def test_a_write_to_cr3_forgets_any_number_of_pages(guest: Guest) -> None:
    add_up = "31c0 b900024000 bf00020000 0301 81c100100000 ffcf 75f4"  # the word at 0x200 of 512 pages
    fill = [
        FILL_LAST_TABLE.format(
            table=struct.pack("<Q", LAST_TABLE).hex(), entry=struct.pack("<Q", page | PRESENT).hex()
        )
        for page in (PAGE_A, PAGE_B)
    ]
    guest.ram.slice(PAGE_A + 0x200, 4)[:] = struct.pack("<I", 1)
    guest.ram.slice(PAGE_B + 0x200, 4)[:] = struct.pack("<I", 3)

    guest.run(GLOBAL_PAGES_ON + fill[0] + SWITCH + add_up + fill[1] + SWITCH + add_up + STORE_RAX + HLT)

    assert guest.result == 3 * 512


def test_a_write_to_cr3_forgets_the_code_of_a_page(guest: Guest) -> None:
    guest.put(PAGE_A, "b80a000000 c3")
    guest.put(PAGE_B, "b80b000000 c3")

    code = set_entry(PAGE_A | PRESENT) + SWITCH + CALL + set_entry(PAGE_B | PRESENT) + SWITCH + CALL
    guest.run(GLOBAL_PAGES_ON + code + STORE_RAX + HLT)

    assert guest.result == 0xB


def test_invlpg_forgets_the_code_of_a_whole_large_page(guest: Guest) -> None:
    place = 0x5000
    guest.put(place, "b80a000000 c3")
    guest.put(0x20_0000 + place, "b80b000000 c3")
    old, new = (
        set_entry(page | PRESENT | LARGE | GLOBAL, table=TABLES + 0x2000, index=2) for page in (0, 0x20_0000)
    )
    call = "b8" + struct.pack("<I", MAPPED + place).hex() + "ffd0"

    guest.run(GLOBAL_PAGES_ON + old + SWITCH + call + new + INVLPG + call + STORE_RAX + HLT)

    assert guest.result == 0xB


@pytest.mark.parametrize(
    ("access", "marks"), [(LOAD, ACCESSED), (STORE, ACCESSED | DIRTY), (LOAD + STORE, ACCESSED | DIRTY)]
)
def test_an_access_marks_the_page(guest: Guest, access: str, marks: int) -> None:
    code = set_entry(PAGE_A | PRESENT | WRITABLE) + SWITCH + access + HLT

    guest.run(code)

    assert last_entry(guest) == PAGE_A | PRESENT | WRITABLE | marks
    (above,) = struct.unpack("<Q", guest.ram.slice(TABLES, 8))
    assert above & ACCESSED


@pytest.mark.parametrize(
    ("entry", "access", "error_code"),
    [
        (0, LOAD, 0),
        (PAGE_A | PRESENT, STORE, 3),
        (PAGE_A | PRESENT | NO_EXECUTE, CALL, 0x11),
        (PAGE_A | PRESENT | RESERVED, LOAD, 9),
    ],
    ids=["not present", "not writable", "not executable", "reserved bit"],
)
def test_what_a_page_does_not_allow_faults(guest: Guest, entry: int, access: str, error_code: int) -> None:
    enable = LIDT + ENABLE_NO_EXECUTE + ENABLE_WRITE_PROTECTION

    stopped = guest.run(enable + set_entry(entry) + SWITCH + access + HLT)

    assert (stopped, guest.result) == (Stopped.HALTED, error_code)


def test_a_table_may_lie_where_there_is_no_ram(guest: Guest) -> None:
    """Wherever the guest says, a device's registers included."""
    outside = set_entry(0x8000_0000 | PRESENT, table=TABLES + 0x2000, index=2)

    guest.run(outside + SWITCH + LOAD + HLT)

    assert guest.bus.asked[0][:2] == ("load", 0x8000_0000)
