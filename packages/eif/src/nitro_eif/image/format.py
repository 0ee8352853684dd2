"""The layout of an Enclave Image File (aws-nitro-enclaves-image-format README, "Format Specification").

A header of 548 bytes, then sections: 12 bytes of header and the data, one after the other without padding.
The header's table says where each section is; the hypervisor goes by it. All integers are big-endian.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from nitro_eif.architecture import Architecture

SPECIFICATION: Final = "aws-nitro-enclaves-image-format README, versions 2 to 4"

MAGIC: Final = b".eif"
VERSIONS: Final = (2, 3, 4)
"""2: the first public one; 3 may have a signature; 4 must have metadata. 0 and 1 were never published."""
LATEST_VERSION: Final = 4

SECTIONS_MAX: Final = 32
SECTIONS_MIN: Final = 2
SIGNATURE_BYTES_MAX: Final = 32768
CUSTOM_METADATA_BYTES_MAX: Final = 4096

DEFAULT_MEMORY_BYTES: Final = 1 << 30
"""What AWS's writer puts into ``default_mem``, which nobody reads."""
DEFAULT_CPUS: Final = 2
"""What AWS's writer puts into ``default_cpus``, which nobody reads."""

# magic version flags default_mem default_cpus reserved num_sections offsets[32] sizes[32] reserved crc32
HEADER: Final = struct.Struct(f">4sHHQQHH{SECTIONS_MAX}Q{SECTIONS_MAX}QII")
HEADER_BYTES: Final = 548
CRC_OFFSET: Final = HEADER_BYTES - 4
SECTION_COUNT_OFFSET: Final = 0x1A
TABLE_OFFSET: Final = 0x1C
SIZES_OFFSET: Final = 0x11C

# section_type flags section_size
SECTION_HEADER: Final = struct.Struct(">HHQ")
SECTION_HEADER_BYTES: Final = 12

FLAG_AARCH64: Final = 1


class SectionType(IntEnum):
    """What a section holds (README, "EifSectionHeader")."""

    INVALID = 0
    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


MEASURED: Final = frozenset({SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 548 bytes of the file, as they stand there."""

    magic: bytes = MAGIC
    version: int = LATEST_VERSION
    flags: int = 0
    default_memory_bytes: int = DEFAULT_MEMORY_BYTES
    default_cpus: int = DEFAULT_CPUS
    reserved: int = 0
    section_count: int = 0
    section_offsets: tuple[int, ...] = (0,) * SECTIONS_MAX
    """Where each section's header starts, bytes from the start of the file."""
    section_sizes: tuple[int, ...] = (0,) * SECTIONS_MAX
    """Bytes of each section's data, without its header."""
    unused: int = 0
    crc32: int = 0

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        """Read the header from the first 548 bytes of ``data``, without judging them."""
        fields = HEADER.unpack_from(data)
        return cls(
            magic=fields[0],
            version=fields[1],
            flags=fields[2],
            default_memory_bytes=fields[3],
            default_cpus=fields[4],
            reserved=fields[5],
            section_count=fields[6],
            section_offsets=fields[7 : 7 + SECTIONS_MAX],
            section_sizes=fields[7 + SECTIONS_MAX : 7 + 2 * SECTIONS_MAX],
            unused=fields[-2],
            crc32=fields[-1],
        )

    def pack(self) -> bytes:
        """The 548 bytes."""
        return HEADER.pack(
            self.magic,
            self.version,
            self.flags,
            self.default_memory_bytes,
            self.default_cpus,
            self.reserved,
            self.section_count,
            *self.section_offsets,
            *self.section_sizes,
            self.unused,
            self.crc32,
        )

    @property
    def architecture(self) -> Architecture:
        """The processor the image is for."""
        return Architecture.AARCH64 if self.flags & FLAG_AARCH64 else Architecture.X86_64


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its place in the file and a view of its data."""

    index: int
    """Its place in the header's table."""
    type: int
    """A `SectionType`, or any other number in a broken file."""
    flags: int
    offset: int
    """Where its 12-byte header starts, bytes from the start of the file."""
    data: memoryview

    @property
    def end(self) -> int:
        """The offset of the first byte after the data."""
        return self.offset + SECTION_HEADER_BYTES + len(self.data)

    @property
    def type_name(self) -> str:
        """The type in words, also of numbers that the format does not know."""
        return type_name(self.type)


def type_name(section_type: int) -> str:
    """A section's type in words, also of numbers that the format does not know."""
    try:
        return SectionType(section_type).name.lower()
    except ValueError:
        return f"unknown type {section_type}"
