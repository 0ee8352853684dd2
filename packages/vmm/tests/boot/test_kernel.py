from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boot_images import COMPRESSIONS, SETUP_SECTORS, make_bzimage, small_elf
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.kernel import Kernel, parse
from nitro_vmm.errors import ImageError


def parse_64_mib(image: bytes) -> Kernel:
    return parse(image, memory_bytes=64 * MIB)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_bzimage_gives_its_vmlinux(name: str) -> None:
    image = make_bzimage(COMPRESSIONS[name](small_elf()), behind=b"signature of the boot loader")
    assert b"".join(parse_64_mib(image).elf) == small_elf()


def test_a_bzimage_gives_its_limits_and_setup_header() -> None:
    image = make_bzimage(COMPRESSIONS["gzip"](b""), command_line_size=255)
    kernel = parse_64_mib(image)

    assert kernel.command_line_bytes_max == 255
    assert kernel.setup_header == image[0x1F1:0x26C]


def test_a_kernel_that_cannot_be_above_4_gib_wants_its_ramdisk_below_its_limit() -> None:
    image = make_bzimage(
        COMPRESSIONS["gzip"](b""), xload_flags=header.XLF_KERNEL_64, initrd_address_max=0x37FF_FFFF
    )
    assert parse_64_mib(image).initrd_end_max == 0x3800_0000


def test_a_kernel_older_than_init_size_is_bounded_by_memory() -> None:
    image = make_bzimage(COMPRESSIONS["gzip"](small_elf()), version=0x208, xload_flags=0, init_size=0)
    assert b"".join(parse_64_mib(image).elf) == small_elf()


def test_a_vmlinux_is_taken_as_it_is_with_a_setup_header_of_ours() -> None:
    kernel = parse_64_mib(small_elf())

    page = bytes(header.HEADER_OFFSET) + kernel.setup_header
    assert header.MAGIC.read(page) == header.HDRS
    assert header.VERSION.read(page) >= 0x20C
    assert header.BOOT_FLAG.read(page) == 0xAA55
    assert header.LOAD_FLAGS.read(page) == 1, "loaded high"
    assert header.XLOAD_FLAGS.read(page) == 3, "64 bits, and anywhere in memory"
    # As Linux's arch/x86/boot/header.S and its COMMAND_LINE_SIZE have them.
    assert header.INITRD_ADDRESS_MAX.read(page) == 0x7FFF_FFFF
    assert header.COMMAND_LINE_SIZE.read(page) == kernel.command_line_bytes_max == 2048 - 1
    assert kernel.initrd_end_max == 1 << 64
    assert b"".join(kernel.elf) == small_elf()


@pytest.mark.parametrize(
    ("image", "said", "offset"),
    [
        (b"", "neither a bzImage .* has 0 bytes", 0),
        (bytes(4096), "neither a bzImage", 0),
        (bytes(0x38) + b"ARM\x64" + bytes(1000), "arm64", 0x38),
        (make_bzimage(b"", version=0x207), "boot protocol 2.07; 2.08", 0x206),
        (make_bzimage(b"", xload_flags=0), "32-bit kernel", 0x236),
        (make_bzimage(b"payload")[:-1], "payload is 7 bytes at 0xac0, but the kernel has 2758 bytes", 0x248),
        (make_bzimage(b"payload")[:0x290], "cut short", 0x248),
        (make_bzimage(b"payload")[:0x28F], "neither a bzImage", 0),
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes, said: str, offset: int) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        parse_64_mib(image)
    assert caught.value.section == "kernel"
    assert caught.value.offset == offset


def test_a_setup_header_that_ends_early_is_refused() -> None:
    image = bytearray(make_bzimage(b"payload"))
    header.JUMP_OFFSET.write(image, 0x40)
    with pytest.raises(ImageError, match="ends at 0x242"):
        parse_64_mib(bytes(image))


def test_a_kernel_that_needs_more_memory_than_there_is_says_how_much() -> None:
    image = make_bzimage(COMPRESSIONS["gzip"](small_elf()), init_size=64 * MIB + 1)
    with pytest.raises(ImageError, match=r"needs 67108865 bytes .* --memory-mib 65"):
        parse_64_mib(image)


def test_a_payload_that_is_larger_than_init_size_is_refused() -> None:
    image = make_bzimage(COMPRESSIONS["gzip"](bytes(1001)), init_size=1000)
    with pytest.raises(ImageError, match="more than the 1000 bytes"):
        list(parse_64_mib(image).elf)


@given(st.binary(max_size=2048), st.integers(0, 0x290))
def test_any_setup_header_gives_a_kernel_or_an_image_error(noise: bytes, start: int) -> None:
    image = bytearray(make_bzimage(COMPRESSIONS["gzip"](small_elf())))
    image[start : start + len(noise)] = noise
    header.MAGIC.write(image, header.HDRS)
    with suppress(ImageError):
        kernel = parse_64_mib(bytes(image))
        assert header.HEADER_OFFSET + len(kernel.setup_header) <= header.HEADER_END_MAX
        list(kernel.elf)


def test_four_setup_sectors_are_meant_by_none() -> None:
    image = bytearray(make_bzimage(COMPRESSIONS["gzip"](small_elf())))
    header.SETUP_SECTORS.write(image, 0)
    image[(1 + SETUP_SECTORS) * 512 : (1 + SETUP_SECTORS) * 512] = bytes(512)
    assert b"".join(parse_64_mib(bytes(image)).elf) == small_elf()


@pytest.mark.parametrize(
    ("version", "changes", "refused"),
    [
        pytest.param(0x208, {"init_size": 65 * MIB}, "", id="2.08 has no init_size"),
        pytest.param(0x209, {"init_size": 65 * MIB}, "", id="nor has 2.09"),
        pytest.param(0x20A, {"init_size": 65 * MIB}, "needs 68157440 bytes", id="2.10 has it"),
        pytest.param(0x20A, {"init_size": 64 * MIB}, "", id="all of memory is enough"),
        pytest.param(0x20B, {"xload_flags": 0}, "", id="2.11 has no flags"),
        pytest.param(0x20C, {"xload_flags": 0}, "32-bit kernel", id="2.12 has them"),
        pytest.param(0x20C, {"xload_flags": 2}, "32-bit kernel", id="and those of 32 bits"),
    ],
)
def test_what_a_version_of_the_protocol_says(version: int, changes: dict[str, int], refused: str) -> None:
    """Linux, Documentation/arch/x86/boot.rst, "Details of Header Fields": the protocol of each field."""
    fields: dict[str, Any] = {"version": version, **changes}
    image = make_bzimage(COMPRESSIONS["gzip"](small_elf()), **fields)

    if refused:
        with pytest.raises(ImageError, match=refused):
            parse_64_mib(image)
    else:
        assert b"".join(parse_64_mib(image).elf) == small_elf()


@pytest.mark.parametrize(
    ("version", "flags", "end"),
    [
        pytest.param(0x20C, 3, 1 << 64, id="anywhere"),
        pytest.param(0x20C, 1, 0x3800_0000, id="not above 4 GiB"),
        pytest.param(0x20B, 3, 0x3800_0000, id="too old to say so"),
    ],
)
def test_where_ramdisks_may_be(version: int, flags: int, end: int) -> None:
    image = make_bzimage(
        COMPRESSIONS["gzip"](b""), version=version, xload_flags=flags, initrd_address_max=0x37FF_FFFF
    )

    assert parse_64_mib(image).initrd_end_max == end


def test_the_setup_header_must_reach_to_where_the_payload_is() -> None:
    """It ends where the jump at 0x200 goes, which has two bytes itself."""
    image = bytearray(make_bzimage(COMPRESSIONS["gzip"](b"")))
    header.JUMP_OFFSET.write(image, 0x250 - 0x202)

    assert len(parse_64_mib(bytes(image)).setup_header) == 0x250 - 0x1F1
    header.JUMP_OFFSET.write(image, 0x250 - 0x202 - 1)
    with pytest.raises(ImageError, match="ends at 0x24f"):
        parse_64_mib(bytes(image))


def test_a_setup_header_has_no_more_room_than_boot_params_give() -> None:
    image = bytearray(make_bzimage(COMPRESSIONS["gzip"](b"")))
    header.JUMP_OFFSET.write(image, 0xFF)

    assert len(parse_64_mib(bytes(image)).setup_header) == 0x290 - 0x1F1
