"""Fills in Linux's zero page, ``struct boot_params`` (Documentation/arch/x86/zero-page.rst)."""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nitro_vmm.address_map import (
    ACPI_RSDP,
    BIOS_AREA_END,
    BOOT_PARAMS,
    COMMAND_LINE,
    LOW_RAM_END,
    SETUP_DATA,
    RamRange,
)
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.initramfs import Initramfs
from nitro_vmm.boot.ram import Ram

# struct boot_e820_entry: addr size type
E820_ENTRY = struct.Struct("<QQI")
E820_RAM = 1
E820_RESERVED = 2

# struct setup_data: next type len, then the data
SETUP_DATA_HEADER = struct.Struct("<QII")
SETUP_RNG_SEED = 9

UNDEFINED_LOADER = 0xFF


class E820Entry(NamedTuple):
    """A stretch of the physical address space: address and size in bytes, and what is there."""

    address: int
    size: int
    type: int


def e820(ram_ranges: Sequence[RamRange]) -> Iterator[E820Entry]:
    """The memory map for the kernel, in the order of the addresses. The rest of them is for devices."""
    yield E820Entry(0, LOW_RAM_END, E820_RAM)
    yield E820Entry(LOW_RAM_END, BIOS_AREA_END - LOW_RAM_END, E820_RESERVED)
    for address, size in ram_ranges:
        # The first range begins at 0, and its first MiB is described above.
        start = max(address, BIOS_AREA_END)
        yield E820Entry(start, address + size - start, E820_RAM)


def write(
    ram: Ram,
    *,
    setup_header: bytes,
    ram_ranges: Sequence[RamRange],
    command_line: bytes,
    initramfs: Initramfs,
    rng_seed: bytes,
) -> None:
    """Write the zero page, the command line and the seed of the guest's random number generator."""
    page = bytearray(header.BOOT_PARAMS_BYTES)
    page[header.HEADER_OFFSET : header.HEADER_OFFSET + len(setup_header)] = setup_header
    header.TYPE_OF_LOADER.write(page, UNDEFINED_LOADER)
    header.ACPI_RSDP_ADDRESS.write(page, ACPI_RSDP)
    header.COMMAND_LINE_POINTER.write(page, COMMAND_LINE)
    header.RAMDISK_IMAGE.write(page, initramfs.address & 0xFFFF_FFFF)
    header.EXT_RAMDISK_IMAGE.write(page, initramfs.address >> 32)
    header.RAMDISK_SIZE.write(page, initramfs.size & 0xFFFF_FFFF)
    header.EXT_RAMDISK_SIZE.write(page, initramfs.size >> 32)
    header.SETUP_DATA.write(page, SETUP_DATA)
    entries = list(e820(ram_ranges))
    header.E820_ENTRIES.write(page, len(entries))
    for index, entry in enumerate(entries):
        E820_ENTRY.pack_into(page, header.E820_TABLE_OFFSET + index * E820_ENTRY.size, *entry)

    ram.slice(BOOT_PARAMS, len(page))[:] = page
    ram.slice(COMMAND_LINE, len(command_line) + 1)[:] = command_line + b"\0"
    seed = SETUP_DATA_HEADER.pack(0, SETUP_RNG_SEED, len(rng_seed)) + rng_seed
    ram.slice(SETUP_DATA, len(seed))[:] = seed
