"""Small kernels, built as Linux's build does it, and RAM to load them into."""

import bz2
import lzma
import mmap
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import lz4.block

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from nitro_vmm.address_map import MIB, RamRange, ram_ranges
from nitro_vmm.boot import payload
from nitro_vmm.boot import setup_header as header
from nitro_vmm.testing import KERNEL_ENTRY, ElfSegment, elf_kernel

ENTRY = KERNEL_ENTRY
ENTRY_VIRTUAL = 0xFFFF_FFFF_8100_0000
SETUP_SECTORS = 3
REAL_KERNEL = Path(__file__).parents[5] / "shared/guest/bzImage-nitro"


class FakeRam:
    """RAM as the machine has it: zero pages that cost nothing until they are written."""

    def __init__(self, memory_bytes: int) -> None:
        self.ranges: tuple[RamRange, ...] = ram_ranges(memory_bytes)
        self._regions = [(place, memoryview(mmap.mmap(-1, place.size))) for place in self.ranges]

    def slice(self, address: int, length: int) -> memoryview:
        for place, view in self._regions:
            if place.address <= address and address + length <= place.address + place.size:
                return view[address - place.address : address - place.address + length]
        raise AssertionError(f"{length} bytes at {address:#x} are not RAM")

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.slice(address, length))


def small_elf(text: bytes = b"kernel text", *, entry: int = ENTRY) -> bytes:
    return elf_kernel(
        [
            ElfSegment(ENTRY, text, 0x1000, ENTRY_VIRTUAL),
            ElfSegment(ENTRY + 0x1000, b"data" * 3000, 0x8000, ENTRY_VIRTUAL + 0x1000),
        ],
        entry=entry,
    )


def make_bzimage(
    packed: bytes,
    *,
    version: int = 0x20F,
    xload_flags: int = header.XLF_KERNEL_64 | header.XLF_CAN_BE_LOADED_ABOVE_4G,
    init_size: int = 32 * MIB,
    command_line_size: int = 2047,
    initrd_address_max: int = 0x7FFF_FFFF,
    behind: bytes = b"",
) -> bytes:
    """A bzImage around a compressed payload; what would decompress it in the guest is left out."""
    start = 0x2C0
    setup = bytearray((1 + SETUP_SECTORS) * 512)
    header.SETUP_SECTORS.write(setup, SETUP_SECTORS)
    header.BOOT_FLAG.write(setup, header.BOOT_FLAG_VALUE)
    header.JUMP_OFFSET.write(setup, 0x6A)
    header.MAGIC.write(setup, header.HDRS)
    header.VERSION.write(setup, version)
    header.LOAD_FLAGS.write(setup, header.LOADED_HIGH)
    header.INITRD_ADDRESS_MAX.write(setup, initrd_address_max)
    header.XLOAD_FLAGS.write(setup, xload_flags)
    header.COMMAND_LINE_SIZE.write(setup, command_line_size)
    header.PAYLOAD_OFFSET.write(setup, start)
    header.PAYLOAD_LENGTH.write(setup, len(packed))
    header.INIT_SIZE.write(setup, init_size)
    return bytes(setup) + bytes(start) + packed + behind


def _appended_size(contents: bytes) -> bytes:
    return struct.pack("<I", len(contents))


def _xz(contents: bytes) -> bytes:
    """As Linux's xz_wrap.sh does it: CRC32, and the x86 branch filter."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(contents, check=lzma.CHECK_CRC32, filters=filters) + _appended_size(contents)


def _lz4(contents: bytes) -> bytes:
    packed = struct.pack("<I", payload.LZ4_LEGACY_MAGIC)
    for start in range(0, len(contents), payload.LZ4_BLOCK_BYTES_MAX):
        block = lz4.block.compress(contents[start : start + payload.LZ4_BLOCK_BYTES_MAX], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed + _appended_size(contents)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda contents: zlib.compress(contents, wbits=31),
    "bzip2": lambda contents: bz2.compress(contents) + _appended_size(contents),
    "lzma": lambda contents: lzma.compress(contents, format=lzma.FORMAT_ALONE) + _appended_size(contents),
    "xz": _xz,
    "lz4": _lz4,
    "zstd": lambda contents: (
        zstd.compress(contents, options={zstd.CompressionParameter.content_size_flag: 0})
        + _appended_size(contents)
    ),
}

COMMANDS: dict[str, list[str]] = {
    "gzip": ["gzip", "-n", "-9"],
    "bzip2": ["bzip2", "-9"],
    "lzma": ["lzma", "-9"],
    "xz": ["xz", "--check=crc32", "--x86", "--lzma2=,dict=32MiB"],
    "lz4": ["lz4", "-l", "-9", "-", "-"],
    "zstd": ["zstd", "-19"],
}
"""What Linux's scripts/Makefile.lib runs, each as a filter."""


def compress_with_command(name: str, contents: bytes) -> bytes:
    packed = subprocess.run(COMMANDS[name], input=contents, capture_output=True, check=True).stdout
    return packed if name == "gzip" else packed + _appended_size(contents)
