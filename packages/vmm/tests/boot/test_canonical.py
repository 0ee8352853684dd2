"""Ramdisks in a place that does not depend on them: what Linux would find there."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.address_map import BOOT_PARAMS, MIB
from nitro_vmm.boot import canonical
from nitro_vmm.boot.canonical import PAGE_BYTES, empty, fill, find, is_read_early, room_for
from nitro_vsock import GuestMemory

ADDRESS = 1 * MIB
FIELDS = range(6, 110, 8)
DIRECTORY = 0o040000


def entry(data: bytes, at: int) -> tuple[int, int]:
    """Type and end of an archive's entry, as Linux computes it (init/initramfs.c, ``do_header``)."""
    assert data[at : at + 6] == b"070701"
    fields = [int(data[at + field : at + field + 8], 16) for field in FIELDS]
    mode, file_bytes, name_bytes = fields[1], fields[6], fields[11]
    aligned_name_bytes = (name_bytes + 1 & ~3) + 2
    return mode & 0o170000, (at + 110 + aligned_name_bytes + file_bytes + 3) & ~3


ramdisks = st.lists(
    st.integers(1, 3 * MIB).map(lambda size: b"070701" + b"x" * size) | st.binary(min_size=4, max_size=200),
    max_size=3,
)


@given(ramdisks)
def test_all_that_is_not_ramdisks_is_skipped(disks: list[bytes]) -> None:
    room = room_for(disks)
    ram = bytearray(ADDRESS + room)
    memory = GuestMemory([(0, memoryview(ram))])
    start = ADDRESS
    for part in empty(room):
        ram[start : start + len(part)] = part
        start += len(part)
    fill(memory, ADDRESS, room, disks)

    place = bytes(ram[ADDRESS:])
    kind, at = entry(place, 0)
    assert (kind, at) == (DIRECTORY, PAGE_BYTES)
    for disk in disks:
        at = -(-at // 4) * 4
        at = place.index(disk[:4], at)
        assert place[at : at + len(disk)] == disk
        at += len(disk)
    while place[at] == 0:
        at += 1
    assert at % 4 == 0
    assert entry(place, at) == (DIRECTORY, room)


@given(ramdisks)
def test_rooms_are_few_and_at_most_half_as_large_again(disks: list[bytes]) -> None:
    room = room_for(disks)

    assert room % (MIB // 2) == 0
    assert room <= max(2 * MIB, 1.5 * sum(map(len, disks)) + 3 * PAGE_BYTES)


@pytest.mark.parametrize(
    ("size_mib", "more", "room_mib"), [(2, 0, 2), (2, 4, 3), (3, 0, 3), (3, 4, 4), (4, 0, 4), (4, 4, 6)]
)
def test_a_room_holds_a_page_the_ramdisk_and_the_entry_behind_it(
    size_mib: int, more: int, room_mib: int
) -> None:
    disk = b"070701".ljust(size_mib * MIB - PAGE_BYTES - 112 + more, b"x")

    assert room_for([disk]) == room_mib * MIB


@pytest.mark.parametrize(
    ("disks", "end"),
    [
        ([], 0),
        ([b"070701" + bytes(6)], 12),
        ([b"070701" + bytes(7)], 16),
        ([b"070702" + bytes(6)], 12),
        ([b"lz4.." + bytes(7)], 16),
        ([b"lz4.." + bytes(8)], 20),
        ([b"lz4.." + bytes(7), b"070701" + bytes(6)], 24),
    ],
)
def test_what_is_left_behind_the_ramdisks_is_one_entry(disks: list[bytes], end: int) -> None:
    """Zeros are between, so that an archive that lz4 has packed ends."""
    room = 2 * MIB
    ram = bytearray(b"*" * (ADDRESS + room))

    fill(GuestMemory([(0, memoryview(ram))]), ADDRESS, room, disks)

    at = ADDRESS + PAGE_BYTES + end
    assert ram[at : at + 112] == skipped(room - PAGE_BYTES - end)
    assert ram[at + 112 : at + 116] == b"****"


def skipped(length: int) -> bytes:
    """A directory's entry with so many bytes, as ``cpio -H newc`` would write it."""
    fields = (0, 0o040755, 0, 0, 2, 0, length - 112, 0, 0, 0, 0, 2, 0)
    return b"070701" + b"".join(b"%08X" % field for field in fields) + b"x\0"


def test_the_first_page_is_an_entry_that_is_skipped() -> None:
    page, rest = empty(2 * MIB)

    assert bytes(page) == skipped(PAGE_BYTES) + bytes(PAGE_BYTES - 112)
    assert bytes(rest) == bytes(2 * MIB - PAGE_BYTES)


@pytest.mark.parametrize(("address", "size"), [(0x7F00_0000, 3 * MIB), (0x12_3456_7000, 0x1_8000_0000)])
def test_the_ramdisks_are_where_the_kernel_was_told(address: int, size: int) -> None:
    ram = bytearray(MIB)
    for place, number in ((0x218, address), (0x21C, size), (0xC0, address >> 32), (0xC4, size >> 32)):
        struct.pack_into("<I", ram, BOOT_PARAMS + place, number & 0xFFFF_FFFF)

    assert find(GuestMemory([(0, memoryview(ram))])) == (address, size)


def test_the_first_page_is_the_same_for_all() -> None:
    pages = {bytes(empty(room_for([bytes(size)]))[0]) for size in (1, MIB, 5 * MIB)}

    assert len(pages) == 1


@pytest.mark.parametrize(
    ("disks", "early"),
    [
        ([], False),
        ([b"070701" + bytes(200)], False),
        ([b"070701..kernel/x86/microcode/GenuineIntel.bin.."], True),
        ([b"070701..kernel/firmware/acpi/DSDT.aml.."], True),
        ([b"070701" + bytes(9), b"\x1f\x8bkernel/x86/microcode/in-something-packed"], False),
        ([b"070701" + bytes(9), b"rest" + canonical.BOOT_CONFIG_MAGIC], True),
        ([b"070701" + canonical.BOOT_CONFIG_MAGIC, b"rest"], False),
    ],
)
def test_what_a_kernel_takes_before_it_unpacks_is_noticed(disks: list[bytes], early: bool) -> None:  # noqa: FBT001
    assert is_read_early(disks) is early
