"""The fields of Linux's zero page that the loader reads or fills in.

The setup header is at the same offsets in a bzImage's first sectors and in ``struct boot_params``, so each
field stands here once (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).
"""

import struct
from typing import NamedTuple


class Field(NamedTuple):
    """A little-endian number at its offset from the start of a bzImage, and of ``boot_params``."""

    offset: int
    format: str

    def read(self, data: bytes | memoryview) -> int:
        """The field's value in ``data``, which has to reach beyond the field."""
        (value,) = struct.unpack_from(self.format, data, self.offset)
        return int(value)

    def write(self, data: bytearray, value: int) -> None:
        """Set the field in ``data``."""
        struct.pack_into(self.format, data, self.offset, value)


# The setup header. A number behind a field is the version of the boot protocol that introduced it.
HEADER_OFFSET = 0x1F1
SETUP_SECTORS = Field(0x1F1, "<B")
BOOT_FLAG = Field(0x1FE, "<H")
JUMP_OFFSET = Field(0x201, "<B")  # how far a jump over the header goes, so it says where the header ends
MAGIC = Field(0x202, "<I")  # 2.00
VERSION = Field(0x206, "<H")
TYPE_OF_LOADER = Field(0x210, "<B")
LOAD_FLAGS = Field(0x211, "<B")
RAMDISK_IMAGE = Field(0x218, "<I")
RAMDISK_SIZE = Field(0x21C, "<I")
COMMAND_LINE_POINTER = Field(0x228, "<I")  # 2.02
INITRD_ADDRESS_MAX = Field(0x22C, "<I")  # 2.03
XLOAD_FLAGS = Field(0x236, "<H")  # 2.12
COMMAND_LINE_SIZE = Field(0x238, "<I")  # 2.06, without the terminating zero
PAYLOAD_OFFSET = Field(0x248, "<I")  # 2.08, from the end of the setup sectors
PAYLOAD_LENGTH = Field(0x24C, "<I")
SETUP_DATA = Field(0x250, "<Q")  # 2.09
INIT_SIZE = Field(0x260, "<I")  # 2.10

# The rest of boot_params.
ACPI_RSDP_ADDRESS = Field(0x070, "<Q")
EXT_RAMDISK_IMAGE = Field(0x0C0, "<I")
EXT_RAMDISK_SIZE = Field(0x0C4, "<I")
E820_ENTRIES = Field(0x1E8, "<B")
E820_TABLE_OFFSET = 0x2D0
HEADER_END_MAX = 0x290
"""Where boot_params goes on after its room for the setup header."""
BOOT_PARAMS_BYTES = 4096

HDRS = int.from_bytes(b"HdrS", "little")
BOOT_FLAG_VALUE = 0xAA55
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
