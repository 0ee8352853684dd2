import struct
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boot_images import ENTRY, ENTRY_VIRTUAL, FakeRam, small_elf
from nitro_vmm.address_map import HOLE_START, MIB, RamRange
from nitro_vmm.boot import elf
from nitro_vmm.boot.elf import load
from nitro_vmm.errors import ImageError
from nitro_vmm.testing import ElfSegment, elf_kernel

MEMORY_BYTES = 32 * MIB
LOW_RAM = RamRange(0, MEMORY_BYTES)


def load_whole(image: bytes, ram: FakeRam | None = None) -> elf.LoadedElf:
    return load(iter([image]), ram or FakeRam(MEMORY_BYTES), LOW_RAM)


def chunks(image: bytes, sizes: list[int]) -> Iterator[bytes]:
    position = 0
    for size in sizes:
        yield image[position : position + size]
        position += size
    yield image[position:]


def test_segments_are_at_their_physical_addresses() -> None:
    ram = FakeRam(MEMORY_BYTES)
    loaded = load_whole(small_elf(), ram)

    assert loaded == (ENTRY, ENTRY + 0x9000)
    assert ram.read(ENTRY, 12) == b"kernel text\0"
    assert ram.read(ENTRY + 0x1000, 12004) == b"data" * 3000 + bytes(4)


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_it_does_not_matter_in_which_pieces_the_file_comes(sizes: list[int]) -> None:
    ram = FakeRam(MEMORY_BYTES)
    load(chunks(small_elf(), sizes), ram, LOW_RAM)

    assert ram.read(ENTRY, 12) == b"kernel text\0"
    assert ram.read(ENTRY + 0x1000, 12004) == b"data" * 3000 + bytes(4)


@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 64 + 56, 64 + 2 * 56])
def test_the_headers_may_come_in_any_pieces(first: int) -> None:
    """The ELF header has 64 bytes, and each program header 56."""
    assert load(chunks(small_elf(), [first]), FakeRam(MEMORY_BYTES), LOW_RAM).entry == ENTRY


@pytest.mark.parametrize(("end", "said"), [(0x1_0000, ""), (0x1_0001, "program headers end at 0x10001")])
def test_the_headers_are_in_the_first_64_kib(end: int, said: str) -> None:
    image = bytearray(small_elf())
    table = image[64 : 64 + 2 * 56]
    image += bytes(0x1_1000 - len(image))
    image[end - len(table) : end] = table
    struct.pack_into("<Q", image, 0x20, end - len(table))

    with pytest.raises(ImageError, match=said) if said else nullcontext():
        load_whole(bytes(image))


def test_what_is_not_to_be_loaded_may_be_anywhere() -> None:
    """A note, which is no part of memory, and a segment of no size; below 1 MiB neither could be."""
    image = bytearray(
        elf_kernel([ElfSegment(ENTRY, b"x", 0x1000), ElfSegment(0x10, b"", 0), ElfSegment(0x10, b"note", 16)])
    )
    struct.pack_into("<I", image, 64 + 2 * 56, 4)

    assert load_whole(bytes(image)) == (ENTRY, ENTRY + 0x1000)


def test_a_virtual_entry_point_becomes_a_physical_one() -> None:
    assert load_whole(small_elf(entry=ENTRY_VIRTUAL + 5)).entry == ENTRY + 5


def test_a_segment_may_reach_the_end_of_memory_and_no_further() -> None:
    load_whole(elf_kernel([ElfSegment(ENTRY, b"x", MEMORY_BYTES - ENTRY)]))
    with pytest.raises(
        ImageError, match=r"the memory below 4 GiB at 0x2000000; .* --memory-mib 33 \(kernel\)"
    ):
        load_whole(elf_kernel([ElfSegment(ENTRY, b"x", MEMORY_BYTES - ENTRY + 1)]))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "ends after 0 bytes; its headers need 64"),
        (small_elf()[:63], "ends after 63 bytes"),
        (small_elf()[:100], "ends after 100 bytes; its headers need 176"),
        (small_elf()[:-1], "segment 1 is 12000 bytes at 0xbb .* cut short"),
        (b"\x7fELF\x01\x01" + bytes(100), "no 64-bit little-endian ELF"),
        (elf_kernel([ElfSegment(ENTRY, b"x", 1)], machine=183), "machine 183"),
        (elf_kernel([]), "0 segments to load"),
        (elf_kernel([ElfSegment(ENTRY + number, b"x", 1) for number in range(65)]), "65 segments"),
        (elf_kernel([ElfSegment(ENTRY, b"xx", 1)]), "2 bytes in the file but 1 in memory"),
        (elf_kernel([ElfSegment(0xFFFFF, b"x", 1)]), "below 1 MiB"),
        (
            elf_kernel([ElfSegment(HOLE_START, b"x", 1)]),
            "no memory of this machine reaches beyond 0xd0000000",
        ),
        (elf_kernel([ElfSegment((1 << 64) - 1, b"x", 1)]), "no memory of this machine"),
        (
            elf_kernel([ElfSegment(ENTRY, b"x", 9), ElfSegment(ENTRY + 8, b"y", 1)]),
            f"segments 0 and 1 overlap at {ENTRY + 8:#x}",
        ),
        (elf_kernel([ElfSegment(ENTRY, b"x", 1)], entry=ENTRY + 1), f"entry point {ENTRY + 1:#x} is in none"),
    ],
)
def test_what_cannot_be_loaded_is_refused(image: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        load_whole(image)


def test_headers_far_into_the_file_are_refused() -> None:
    image = bytearray(small_elf())
    image[32:40] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(ImageError, match="program headers end at"):
        load_whole(bytes(image))


@given(st.data())
def test_any_elf_file_is_loaded_into_ram_or_refused(data: st.DataObject) -> None:
    image = bytearray(small_elf())
    for _ in range(data.draw(st.integers(0, 4))):
        position = data.draw(st.integers(0, 200))
        image[position : position + 8] = data.draw(
            st.one_of(
                st.binary(min_size=8, max_size=8),
                st.integers(0, 1 << 25).map(lambda n: n.to_bytes(8, "little")),
            )
        )
    with suppress(ImageError):
        loaded = load_whole(bytes(image))
        assert MIB <= loaded.entry < loaded.end <= MEMORY_BYTES
