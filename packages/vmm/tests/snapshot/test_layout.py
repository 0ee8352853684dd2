"""The layout of a saved machine's file: what is refused, on both sides of each bound."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.address_map import MIB, ram_ranges
from nitro_vmm.errors import StateError
from nitro_vmm.snapshot.layout import (
    Header,
    Parameters,
    check_pages,
    difference,
    make_header,
    pack_header,
    parse_header,
    pieces,
)
from saved_states import changed
from states import description, parameters

PAGE = 4096
GIB = 1 << 30


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        *((name, "x", "") for name in ("kind", "accelerator", "processor")),
        *((name, "x" * 200, "x" * 201) for name in ("kind", "accelerator", "processor")),
        *((name, "unicorn", b"unicorn") for name in ("kind", "accelerator", "processor")),
        ("devices", ("nsm",) * 32, ("nsm",) * 33),
        ("devices", (), ("nsm", 1)),
        *((name, bytes(64), bytes(65)) for name in ("code", "kernel", "image")),
        ("command_line", bytes(65536), bytes(65537)),
        *((name, 1 << 40, (1 << 40) + 1) for name in ("memory_bytes", "ramdisk_bytes")),
        *((name, 0, -1) for name in ("memory_bytes", "ramdisk_bytes", "processors")),
        ("processors", 255, 256),
    ],
)
def test_what_a_machine_may_be(field: str, good: object, bad: object) -> None:
    assert getattr(parameters(**{field: good}), field) == good
    with pytest.raises(StateError, match=rf"Parameters\.{field} is .*, not "):
        parameters(**{field: bad})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("measurements", (bytes(48),) * 3, (bytes(48),) * 2),
        ("measurements", (bytes(48),) * 4, (bytes(48),) * 5),
        ("measurements", (bytes(48),) * 4, (bytes(48),) * 3 + (bytes(47),)),
        ("measurements", (bytes(48),) * 3, (bytes(48),) * 2 + ("x" * 48,)),
        ("cid", 0xFFFF_FFFF, 0x1_0000_0000),
        ("cid", 0, -1),
        ("ramdisk_address", 1 << 40, (1 << 40) + 1),
        ("console", bytes(1 << 20), bytes((1 << 20) + 1)),
    ],
)
def test_what_a_description_may_say(field: str, good: object, bad: object) -> None:
    assert getattr(description(**{field: good}), field) == good
    with pytest.raises(StateError, match=rf"Description\.{field} is .*, not "):
        description(**{field: bad})


@pytest.mark.parametrize(
    "extents", [(), ((0, 1024),), ((0, 1), (1, 1), (1023, 1)), ((5, 1), (7, 1017))], ids=str
)
def test_extents_follow_each_other_in_memory(extents: tuple[tuple[int, int], ...]) -> None:
    """The machine has 4 MiB, which are 1024 pages."""
    assert description(extents=extents).extents == extents


@pytest.mark.parametrize(
    "extents",
    [
        ((0, 0),),
        ((0, 1025),),
        ((1023, 2),),
        ((1024, 1),),
        ((-1, 2),),
        ((0, 2), (1, 1)),
        ((4, 1), (0, 1)),
        ((0, True),),
        ((0, 1.0),),
    ],
    ids=str,
)
def test_extents_elsewhere_are_refused(extents: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(StateError, match="extents are not in order, or not in memory"):
        description(extents=extents)


@given(st.integers(0, 16 << 20), st.integers(0, 1 << 20))
def test_pages_begin_with_a_page_of_the_file(description_bytes: int, pages: int) -> None:
    header = make_header(description_bytes, pages)

    end = len(pack_header(header)) + description_bytes
    assert end <= header.pages_offset < end + PAGE
    assert header.pages_offset % PAGE == 0
    assert header.file_bytes == header.pages_offset + PAGE * pages
    assert parse_header(pack_header(header), file_bytes=header.file_bytes) == header


HEADER_BYTES = 8 + 4 + 32 + 8 + 8 + 8


def refusal(data: bytes, file_bytes: int) -> str:
    with pytest.raises(StateError) as caught:
        parse_header(data, file_bytes=file_bytes)
    return str(caught.value)


def test_a_header_is_cut_short_when_a_byte_is_missing() -> None:
    data = pack_header(make_header(100, 1))

    assert len(data) == HEADER_BYTES
    assert parse_header(data, file_bytes=2 * PAGE)
    assert parse_header(data + b"more", file_bytes=2 * PAGE)
    assert "cut short" in refusal(data[:-1], 2 * PAGE)


@pytest.mark.parametrize("change", [-1, 1])
def test_another_format_is_named(change: int) -> None:
    data = bytearray(pack_header(make_header(100, 1)))
    (number,) = struct.unpack_from("<I", data, 8)
    struct.pack_into("<I", data, 8, number + change)

    said = refusal(bytes(data), 2 * PAGE)

    assert f"has format {number + change}, this version reads {number}" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"description_bytes": (16 << 20) + 1, "pages_offset": make_header((16 << 20) + 1, 0).pages_offset},
        {"pages_offset": 2 * PAGE},
        {"pages_offset": 0},
        {"description_bytes": 8 * PAGE, "pages_offset": 9 * PAGE},  # behind the end
        {"file_bytes": 4 * PAGE + 1},
    ],
    ids=str,
)
def test_a_header_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    values: dict[str, Any] = {**changes}
    header = make_header(100, 3)._replace(**values)
    if "description_bytes" in changes and changes["description_bytes"] > 16 << 20:
        header = header._replace(file_bytes=header.pages_offset)

    assert "header cannot be" in refusal(pack_header(header), header.file_bytes)


def test_a_file_without_pages_is_one() -> None:
    header = make_header(16 << 20, 0)

    assert parse_header(pack_header(header), file_bytes=header.file_bytes) == header


@pytest.mark.parametrize("pages", [1, 3])
def test_as_many_pages_as_the_extents_have(pages: int) -> None:
    two = description(extents=((0, 1), (9, 1)))

    check_pages(make_header(100, 2), two)
    with pytest.raises(StateError, match="not the pages that it says"):
        check_pages(make_header(100, pages), two)


def test_memory_is_whole_pages() -> None:
    odd = description(parameters=parameters(memory_bytes=4 * MIB + 1))

    with pytest.raises(StateError, match="no whole number of pages"):
        check_pages(make_header(100, 0), odd)


@pytest.mark.parametrize("field", Parameters._fields)
def test_the_first_difference_is_named(field: str) -> None:
    saved = parameters()
    value = getattr(saved, field)
    other = {str: "other", bytes: b"other", int: 77, tuple: ("other",)}[type(value)]
    change: dict[str, Any] = {field: other}
    wanted = changed(saved, **change)

    said = difference(saved, wanted)

    assert difference(saved, saved) == ""
    assert said.startswith("it ")
    # Digests tell people nothing.
    assert (f"{value}, and here it is {other}" in said) == (not isinstance(value, bytes))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6), st.integers(0, 8))
def test_pieces_are_the_extents_without_the_hole(gaps: list[tuple[int, int]], before: int) -> None:
    """Of a machine with memory on both sides of the hole below 4 GiB, around the hole."""
    low, high = ram_ranges(4 * GIB)
    page = low.size // PAGE - before
    extents = []
    for gap, count in gaps:
        extents.append((page + gap, count))
        page += gap + count

    found = pieces(description(parameters=parameters(memory_bytes=4 * GIB), extents=tuple(extents)))

    wanted = [number for first, count in extents for number in range(first, first + count)]
    addresses = [
        number * PAGE if number * PAGE < low.size else high.address + number * PAGE - low.size
        for number in wanted
    ]
    pages = [(address + at, start + at) for address, start, size in found for at in range(0, size, PAGE)]
    assert pages == [(address, index * PAGE) for index, address in enumerate(addresses)]
    assert all(size > 0 for _, _, size in found)
    assert len(found) <= len(extents) + 1


def test_a_header_names_its_parts() -> None:
    header = Header(bytes(range(32)), 5, PAGE, 2 * PAGE)

    assert parse_header(pack_header(header), file_bytes=2 * PAGE) == header
