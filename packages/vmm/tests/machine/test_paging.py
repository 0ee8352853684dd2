"""Virtual addresses by tables that a test has made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.machine.paging import translate

# Bits as the Intel SDM vol. 3A has them, "4-Level Paging".
PRESENT, USER, LARGE = 1, 4, 0x80
CR0_PAGING = 0x8000_0000
TABLE, LINK = 0x1000, PRESENT | 2
KERNEL = 0xFFFF_FFFF_8100_0123


def tables(*levels: tuple[int, int]) -> dict[int, int]:
    """Entries by their addresses: one table after the other, each with one entry (its index and value)."""
    return {TABLE * (number + 1) + 8 * index: entry for number, (index, entry) in enumerate(levels)}


def look_up(address: int, entries: dict[int, int], cr0: int = CR0_PAGING) -> tuple[int, int] | None:
    return translate(address, cr0=cr0, cr3=TABLE | 0x18, read=lambda at: entries.get(at, 0))


def test_without_paging_addresses_are_physical() -> None:
    assert look_up(0x1234, {}, cr0=0) == (0x1234, 0xDCC)


def test_pages_of_each_size() -> None:
    to_kernel = ((511, TABLE * 2 | LINK), (510, TABLE * 3 | LINK))
    small = tables(*to_kernel, (8, TABLE * 4 | LINK), (0, 0x5000 | LINK | 1 << 63))
    large = tables(*to_kernel, (8, 0x40_0000 | LARGE | LINK))
    huge = tables((511, TABLE * 2 | LINK), (510, 0x4000_0000 | LARGE | LINK))

    assert look_up(KERNEL, small) == (0x5123, 0xEDD)
    assert look_up(KERNEL, large) == (0x40_0123, 0x1F_FEDD)
    assert look_up(KERNEL, huge) == (0x4100_0123, 0x3EFF_FEDD)


def test_each_level_has_nine_bits_of_an_address() -> None:
    entries = tables(
        (0x01, TABLE * 2 | LINK),
        (0x102, TABLE * 3 | LINK),
        (0x103, TABLE * 4 | LINK),
        (0x104, 0x5000 | LINK),
    )

    assert look_up(0x01 << 39 | 0x102 << 30 | 0x103 << 21 | 0x104 << 12 | 0x105, entries) == (0x5105, 0xEFB)


def test_what_is_above_an_address_in_an_entry_is_no_part_of_it() -> None:
    """Bits 52 to 62 are ignored or protection keys; 63 forbids execution."""
    entries = tables((511, TABLE * 2 | LINK), (510, 0xFFF0_0000_4000_0000 | LARGE | LINK | 0x1000))

    assert look_up(KERNEL, entries) == (0x4100_0123, 0x3EFF_FEDD)


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        (0x7FFF_FFFF_F000, True),
        (0x8000_0000_0000, False),
        (0xFFFF_7FFF_FFFF_F000, False),
        (0xFFFF_8000_0000_0000, True),
        (0xFFFF_FFFF_FFFF_FFFF, True),
        (0, True),
    ],
)
def test_addresses_have_48_bits(address: int, canonical: bool) -> None:  # noqa: FBT001
    place = translate(address, cr0=CR0_PAGING, cr3=TABLE, read=lambda _: TABLE | LINK)

    assert (place is not None) == canonical


def test_what_is_not_mapped() -> None:
    linked = (511, TABLE * 2 | LINK)

    assert look_up(KERNEL, {}) is None
    assert look_up(KERNEL, tables(linked, (510, TABLE * 3))) is None
    assert look_up(0x8000_0000_0000_0000, tables(linked)) is None, "not canonical"
    assert translate(KERNEL, cr0=CR0_PAGING, cr3=TABLE, read=lambda _: None) is None, "a table outside of RAM"


def test_a_bit_that_is_wanted_must_be_in_every_entry() -> None:
    mixed = tables((511, TABLE * 2 | LINK | USER), (510, 0x4000_0000 | LARGE | LINK))

    place = translate(KERNEL, cr0=CR0_PAGING, cr3=TABLE, read=mixed.get, wanted=PRESENT | USER)

    assert place is None
    assert look_up(KERNEL, mixed) is not None


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_any_tables_give_a_place_within_a_page_or_nothing(address: int, cr3: int, entry: int) -> None:
    place = translate(address, cr0=CR0_PAGING, cr3=cr3, read=lambda _: entry)

    if place is not None:
        physical, size = place
        assert 0 <= physical < 1 << 52
        assert 0 < size <= 1 << 30
