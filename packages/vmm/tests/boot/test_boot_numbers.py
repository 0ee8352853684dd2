"""The numbers that kernels know by heart, written out as their documents have them.

The other tests use the loader's own names for these, and would not notice if one were wrong.
"""

import struct

import pytest

from boot_images import FakeRam
from nitro_vmm import address_map
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import boot_params, elf, long_mode, mp_table, setup_header

# Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", and zero-page.rst.
FIELDS = {
    "SETUP_SECTORS": (0x1F1, 1),
    "BOOT_FLAG": (0x1FE, 2),
    "JUMP_OFFSET": (0x201, 1),
    "MAGIC": (0x202, 4),
    "VERSION": (0x206, 2),
    "TYPE_OF_LOADER": (0x210, 1),
    "LOAD_FLAGS": (0x211, 1),
    "RAMDISK_IMAGE": (0x218, 4),
    "RAMDISK_SIZE": (0x21C, 4),
    "COMMAND_LINE_POINTER": (0x228, 4),
    "INITRD_ADDRESS_MAX": (0x22C, 4),
    "XLOAD_FLAGS": (0x236, 2),
    "COMMAND_LINE_SIZE": (0x238, 4),
    "PAYLOAD_OFFSET": (0x248, 4),
    "PAYLOAD_LENGTH": (0x24C, 4),
    "SETUP_DATA": (0x250, 8),
    "INIT_SIZE": (0x260, 4),
    "ACPI_RSDP_ADDRESS": (0x070, 8),
    "EXT_RAMDISK_IMAGE": (0x0C0, 4),
    "EXT_RAMDISK_SIZE": (0x0C4, 4),
    "E820_ENTRIES": (0x1E8, 1),
}
LOADER = {
    "HEADER_OFFSET": 0x1F1,
    "E820_TABLE_OFFSET": 0x2D0,
    "HEADER_END_MAX": 0x290,
    "BOOT_PARAMS_BYTES": 4096,
    "HDRS": 0x5372_6448,
    "BOOT_FLAG_VALUE": 0xAA55,
    "LOADED_HIGH": 1,
    "XLF_KERNEL_64": 1,
    "XLF_CAN_BE_LOADED_ABOVE_4G": 2,
}
ZERO_PAGE = {"E820_RAM": 1, "E820_RESERVED": 2, "SETUP_RNG_SEED": 9, "UNDEFINED_LOADER": 0xFF}
# System V ABI, "ELF Header"; AMD64 supplement, "Machine Information".
ELF = {"IDENT_64_LITTLE": b"\x7fELF\x02\x01", "EM_X86_64": 62, "PT_LOAD": 1}


def test_fields_of_the_setup_header_are_where_the_boot_protocol_has_them() -> None:
    found = {name: getattr(setup_header, name) for name in FIELDS}

    assert {name: (field.offset, struct.calcsize(field.format)) for name, field in found.items()} == FIELDS
    assert all(field.format[0] == "<" for field in found.values())


@pytest.mark.parametrize(
    ("module", "numbers"), [(setup_header, LOADER), (boot_params, ZERO_PAGE), (elf, ELF)]
)
def test_constants_have_the_numbers_of_their_sources(module: object, numbers: dict[str, object]) -> None:
    assert {name: getattr(module, name) for name in numbers} == numbers


def test_the_first_4_gib_are_mapped_one_to_one_by_pages_of_2_mib() -> None:
    ram = FakeRam(2 * MIB)

    long_mode.write(ram)

    entry = long_mode.entry_state(0, rsp=0)
    (top,) = struct.unpack("<Q", ram.read(entry.cr3, 8))
    directories = struct.unpack("<4Q", ram.read(top & ~0xFFF, 32))
    pages = [page for one in directories for page in struct.unpack("<512Q", ram.read(one & ~0xFFF, 4096))]
    # Intel SDM vol. 3A, "4-Level Paging": present, writable, accessed; for pages also dirty and large.
    assert {top & 0xFFF, *(one & 0xFFF for one in directories)} == {0x23}
    assert pages == [number << 21 | 0xE3 for number in range(2048)]
    assert max(directories) & ~0xFFF == address_map.BOOT_PAGE_TABLES + 5 * 4096


def test_segments_are_flat_and_have_the_selectors_of_the_boot_protocol() -> None:
    ram = FakeRam(2 * MIB)

    long_mode.write(ram)

    entry = long_mode.entry_state(0, rsp=0)
    table = struct.unpack("<4Q", ram.read(entry.gdt_address, 32))
    assert entry.gdt_limit == 31
    assert (entry.code_selector, entry.data_selector) == (0x10, 0x18)
    # Intel SDM vol. 3A, "Segment Descriptors": limit 0xFFFFF in pages, present, 64-bit code and 32-bit data.
    assert table == (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)


def test_the_mp_table_says_what_processors_are_and_where_their_pins_lead() -> None:
    table = mp_table.build(())

    # MultiProcessor Specification 1.4, tables 4-4, 4-5 and 4-10.
    assert table[16 + 6] == 4
    processor = table[16 + 44 :][:20]
    assert struct.unpack("<BBBBII8x", processor) == (0, address_map.LOCAL_APIC_ID, 0x14, 3, 0x600, 0x201)
    assert table[16 + 44 + 20 :][:8] == b"\x01\x00ISA   "
    external, non_maskable = table[-16:-8], table[-8:]
    assert struct.unpack("<BBHBBBB", external) == (4, 3, 0, 0, 0, 0xFF, 0)
    assert struct.unpack("<BBHBBBB", non_maskable) == (4, 1, 0, 0, 0, 0xFF, 1)
    assert {table[at] for at in range(16 + 44 + 37, len(table) - 16, 8)} == {0}, "ordinary interrupts"
