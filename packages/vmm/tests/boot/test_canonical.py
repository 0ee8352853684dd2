"""Ramdisks in a place that does not depend on them: what Linux would find there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.address_map import MIB
from nitro_vmm.boot import canonical
from nitro_vmm.boot.canonical import PAGE_BYTES, empty, fill, is_read_early, room_for
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
