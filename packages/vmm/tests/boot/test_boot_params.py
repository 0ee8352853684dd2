import struct
from collections.abc import Sequence

from boot_images import FakeRam, make_bzimage
from nitro_vmm import address_map
from nitro_vmm.address_map import GIB, MIB, RamRange, ram_ranges
from nitro_vmm.boot import boot_params, kernel
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.initramfs import Initramfs

SEED = bytes(range(32))
INITRAMFS = Initramfs(0x123_4000, 0x5678)


def written(
    ram: FakeRam,
    ranges: Sequence[RamRange] | None = None,
    initramfs: Initramfs = INITRAMFS,
) -> bytes:
    boot_params.write(
        ram,
        setup_header=kernel.parse(make_bzimage(b""), memory_bytes=64 * MIB).setup_header,
        ram_ranges=ranges or ram.ranges,
        command_line=b"quiet",
        initramfs=initramfs,
        rng_seed=SEED,
    )
    return ram.read(address_map.BOOT_PARAMS, 4096)


def test_the_setup_header_is_the_kernels_and_the_loader_fills_in_its_part() -> None:
    ram = FakeRam(2 * MIB)
    page = written(ram)

    assert page[0x202:0x206] == b"HdrS"
    assert header.VERSION.read(page) == 0x20F
    assert header.TYPE_OF_LOADER.read(page) == 0xFF
    assert header.RAMDISK_IMAGE.read(page) == 0x123_4000
    assert header.RAMDISK_SIZE.read(page) == 0x5678
    assert header.ACPI_RSDP_ADDRESS.read(page) == address_map.ACPI_RSDP
    assert ram.read(header.COMMAND_LINE_POINTER.read(page), 6) == b"quiet\0"


def test_the_sentinel_is_clear() -> None:
    # Linux zeroes parts of boot_params if the byte at 0x1ef is not (zero-page.rst, "sentinel").
    assert written(FakeRam(2 * MIB))[0x1EF] == 0


def test_a_ramdisk_above_4_gib_is_told_in_two_halves() -> None:
    page = written(FakeRam(2 * MIB), initramfs=Initramfs(0x1_2345_6000, 0x2_0000_0001))

    assert (header.RAMDISK_IMAGE.read(page), header.EXT_RAMDISK_IMAGE.read(page)) == (0x2345_6000, 1)
    assert (header.RAMDISK_SIZE.read(page), header.EXT_RAMDISK_SIZE.read(page)) == (1, 2)


def test_e820_says_what_is_ram() -> None:
    page = written(FakeRam(2 * MIB), ranges=ram_ranges(5 * GIB))

    count = page[0x1E8]
    assert [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(count)] == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (MIB, 0xD000_0000 - MIB, 1),
        (4 * GIB, 5 * GIB - 0xD000_0000, 1),
    ]


def test_the_seed_is_a_setup_data_block_in_usable_ram() -> None:
    ram = FakeRam(2 * MIB)
    address = header.SETUP_DATA.read(written(ram))

    assert 0x1000 <= address < address_map.LOW_RAM_END
    assert struct.unpack("<QII", ram.read(address, 16)) == (0, 9, 32)
    assert ram.read(address + 16, 32) == SEED
