import pytest
from hypothesis import given
from hypothesis import strategies as st

from boot_images import FakeRam
from nitro_vmm.address_map import GIB, HOLE_END, HOLE_START, MIB, RamRange
from nitro_vmm.boot.initramfs import LZ4_LEGACY_MAGIC, Initramfs, place
from nitro_vmm.errors import ImageError

MEMORY_BYTES = 64 * MIB
KERNEL_END = 20 * MIB
NO_LIMIT = 1 << 64


def place_in_64_mib(ramdisks: list[bytes], ram: FakeRam | None = None) -> Initramfs:
    ram = ram or FakeRam(MEMORY_BYTES)
    return place(ramdisks, ram, ram.ranges, start_min=KERNEL_END, end_max=NO_LIMIT)


@given(st.lists(st.binary(max_size=64).map(lambda data: b"0" + data), min_size=1, max_size=6))
def test_ramdisks_follow_each_other_with_zeros_up_to_multiples_of_four(ramdisks: list[bytes]) -> None:
    ram = FakeRam(MEMORY_BYTES)
    address, size = place_in_64_mib(ramdisks, ram)

    image = ram.read(address, size)
    position = 0
    for ramdisk in ramdisks:
        assert position % 4 == 0
        assert image[position : position + len(ramdisk)] == ramdisk
        position += len(ramdisk)
        gap = image[position : position + -position % 4]
        assert not any(gap)
        position += len(gap)
    assert size <= position


def test_they_are_at_the_top_of_memory_on_a_page() -> None:
    assert place_in_64_mib([bytes(4097)]) == (MEMORY_BYTES - 8192, 4097)


def test_no_ramdisk_is_nowhere() -> None:
    assert place_in_64_mib([]) == (0, 0)
    assert place_in_64_mib([b""]) == (0, 0)


def test_linux_finds_the_end_of_an_lz4_archive() -> None:
    ram = FakeRam(MEMORY_BYTES)
    address, size = place_in_64_mib([LZ4_LEGACY_MAGIC + b"block", b"070701"], ram)

    assert ram.read(address, size) == LZ4_LEGACY_MAGIC + b"block" + bytes(4 + 3) + b"070701"


def test_an_old_kernel_gets_them_below_its_limit() -> None:
    ram = FakeRam(MEMORY_BYTES)
    placed = place([b"ramdisk"], ram, ram.ranges, start_min=KERNEL_END, end_max=0x380_0000)
    assert placed.address == 0x380_0000 - 4096


class SparseRam:
    """Ranges of gigabytes of which one address is of interest."""

    written: tuple[int, int]

    def slice(self, address: int, length: int) -> memoryview:
        self.written = (address, length)
        return memoryview(bytearray(length))


def test_what_does_not_fit_below_the_hole_goes_above_it() -> None:
    ranges = [RamRange(0, KERNEL_END + 4096), RamRange(HOLE_END, GIB)]
    ram = SparseRam()
    placed = place([bytes(5000)], ram, ranges, start_min=KERNEL_END, end_max=NO_LIMIT)

    assert placed.address == HOLE_END + GIB - 8192
    assert ram.written == (placed.address, 5000)


def test_a_limit_below_4_gib_keeps_them_below_the_hole() -> None:
    ranges = [RamRange(0, HOLE_START), RamRange(HOLE_END, GIB)]
    placed = place([bytes(5000)], SparseRam(), ranges, start_min=KERNEL_END, end_max=0x8000_0000)
    assert placed.address == 0x8000_0000 - 8192


def test_just_what_fits_is_taken() -> None:
    assert place_in_64_mib([bytes(44 * MIB)]) == (KERNEL_END, 44 * MIB)


def test_the_first_ramdisk_that_does_not_fit_is_named_with_a_remedy() -> None:
    ramdisks = [bytes(30 * MIB), bytes(20 * MIB), b"small"]
    with pytest.raises(
        ImageError,
        match=r"ramdisk 2 of 3 has 20971520 bytes, but memory has room for 14680064 .* give --memory-mib 201",
    ) as caught:
        place_in_64_mib(ramdisks)
    assert caught.value.section == "ramdisk 2"


def test_no_room_at_all_is_said() -> None:
    ram = FakeRam(MEMORY_BYTES)
    with pytest.raises(ImageError, match=r"room for 0 of them .* give --memory-mib 65 \(ramdisk 1\)"):
        place([b"x"], ram, ram.ranges, start_min=MEMORY_BYTES, end_max=NO_LIMIT)
