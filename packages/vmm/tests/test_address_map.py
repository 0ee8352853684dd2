"""What Linux and the PC's specifications expect at fixed places, and what must not overlap."""

from itertools import pairwise

import pytest

from nitro_vmm import address_map as at


def test_a_pc_has_its_parts_where_software_looks_for_them() -> None:
    assert (at.COM1, at.COM1_IRQ) == (0x3F8, 4)
    assert (at.I8042_DATA, at.I8042_COMMAND) == (0x60, 0x64)
    assert (at.CMOS_INDEX, at.CMOS_DATA) == (0x70, 0x71)
    assert (at.IO_APIC, at.LOCAL_APIC) == (0xFEC0_0000, 0xFEE0_0000)
    assert (at.IO_APIC_PINS, at.IO_APIC_ID, at.LOCAL_APIC_ID) == (24, 15, 0)
    assert at.BIOS_RESET == 0xFFFF0
    assert (at.LOW_RAM_END, at.BIOS_AREA_END) == (0x9FC00, 0x100000)


def test_tables_are_where_a_kernel_looks_for_them() -> None:
    # MultiProcessor Specification 1.4 §4: the last kilobyte of base memory, on a boundary of 16 bytes.
    assert at.MP_TABLE in range(639 << 10, 640 << 10, 16)
    # ACPI 6.5 §5.2.5.1: the BIOS read-only area, on a boundary of 16 bytes.
    assert at.ACPI_RSDP in range(0xE0000, 0x100000, 16)


def test_what_the_loader_writes_into_low_memory_does_not_overlap() -> None:
    places = [
        (at.BOOT_PARAMS, 0x1000),
        (at.BOOT_STACK_TOP, 0),
        (at.BOOT_GDT, 0x1000),
        (at.BOOT_PAGE_TABLES, 6 * 0x1000),
        (at.SETUP_DATA, 0x1000),
        (at.COMMAND_LINE, at.COMMAND_LINE_BYTES_MAX),
        (at.LOW_RAM_END, 0),
    ]

    for (start, size), (following, _) in pairwise(places):
        assert start + size <= following
    assert at.BOOT_PAGE_TABLES % 0x1000 == 0
    assert at.BOOT_STACK_TOP % 16 == 0


@pytest.mark.parametrize(
    ("memory_bytes", "ranges"),
    [
        (64 << 20, [(0, 64 << 20)]),
        (0xD000_0000, [(0, 0xD000_0000)]),
        (0xD000_0001, [(0, 0xD000_0000), (1 << 32, 1)]),
        (8 << 30, [(0, 0xD000_0000), (1 << 32, (8 << 30) - 0xD000_0000)]),
    ],
)
def test_ram_lies_around_the_hole_of_the_devices(memory_bytes: int, ranges: list[tuple[int, int]]) -> None:
    assert list(at.ram_ranges(memory_bytes)) == ranges


def test_virtio_devices_have_a_page_and_an_interrupt_each() -> None:
    assert at.virtio_slot(0) == (at.HOLE_START, 0x1000, 5)
    assert at.virtio_slot(3) == (at.HOLE_START + 0x3000, 0x1000, 8)
    assert at.virtio_slot(18).irq < at.IO_APIC_PINS
    assert at.virtio_slot(18).address < at.IO_APIC
