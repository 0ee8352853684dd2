"""Where everything is in the guest's physical memory, I/O ports and interrupt lines.

The loader describes this to the kernel (e820, MP table, ACPI) and the machine wires it, so it stands once,
here. The map is the PC's as far as Linux knows places by heart (COM1, RTC, i8042, APICs, the BIOS area); the
rest is free choice.
"""

from typing import Final, NamedTuple

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_BITS: Final = 12
"""Pages are of 4 KiB."""

# Low memory. The pages below LOW_RAM_END hold what the loader writes for the kernel's first instructions.
BOOT_STACK_TOP: Final = 0x8FF0
BOOT_PARAMS: Final = 0x7000
BOOT_GDT: Final = 0x9000
BOOT_PAGE_TABLES: Final = 0xA000
"""Six pages: PML4, PDPT and four page directories that map 4 GiB one to one."""
SETUP_DATA: Final = 0x11000
COMMAND_LINE: Final = 0x20000
COMMAND_LINE_BYTES_MAX: Final = 0x10000

LOW_RAM_END: Final = 0x9FC00
"""End of conventional memory; the rest below 1 MiB is reserved (where a PC has its EBDA, video and BIOS)."""
MP_TABLE: Final = 0x9FC00
"""In the last kilobyte of base memory, where the MultiProcessor Specification 1.4 §4 lets systems look."""
ACPI_RSDP: Final = 0xE0000
"""In the BIOS read-only area, 16-byte aligned (ACPI 6.5 §5.2.5.1); the other tables follow."""
GENERATION_ID: Final = 0xFF000
"""Which life of the machine this is, for guests with ACPI; in a page of its own."""
BIOS_RESET: Final = 0xFFFF0
"""Where a processor starts after a reset, and where real-mode code jumps to for one."""
BIOS_AREA_END: Final = 0x100000
HIGH_RAM_START: Final = 0x100000

# RAM ends below the devices' hole and goes on above 4 GiB.
HOLE_START: Final = 0xD000_0000
HOLE_END: Final = 4 * GIB

# Memory-mapped devices.
VIRTIO_MMIO: Final = 0xD000_0000
VIRTIO_MMIO_STRIDE: Final = 0x1000
IO_APIC: Final = 0xFEC0_0000
LOCAL_APIC: Final = 0xFEE0_0000

# I/O ports.
COM1: Final = 0x3F8
I8042_DATA: Final = 0x60
I8042_COMMAND: Final = 0x64
CMOS_INDEX: Final = 0x70
CMOS_DATA: Final = 0x71
ACPI_SLEEP_CONTROL: Final = 0x600
ACPI_SLEEP_STATUS: Final = 0x601
ACPI_RESET: Final = 0x602
ACPI_RESET_VALUE: Final = 0x01
ACPI_SLEEP_TYPE_S5: Final = 5

# Interrupt lines: IO-APIC pins, one to one with ISA's numbers.
IO_APIC_PINS: Final = 24
IO_APIC_ID: Final = 15
"""The largest of four bits, so that processors can have the lower ones."""
LOCAL_APIC_ID: Final = 0
"""Of the first processor; the next ones follow."""
PROCESSORS_MAX: Final = IO_APIC_ID
ACPI_EVENT_IRQ: Final = 3
"""Rises when something happens that ACPI tells of."""
COM1_IRQ: Final = 4
VIRTIO_IRQ: Final = 5
"""Of the first virtio device; the next ones follow."""


class RamRange(NamedTuple):
    """A stretch of RAM: guest-physical address and size, bytes."""

    address: int
    size: int


def ram_ranges(memory_bytes: int) -> tuple[RamRange, ...]:
    """How ``memory_bytes`` of RAM lie around the hole below 4 GiB."""
    below = min(memory_bytes, HOLE_START)
    ranges = [RamRange(0, below)]
    if memory_bytes > below:
        ranges.append(RamRange(HOLE_END, memory_bytes - below))
    return tuple(ranges)


class VirtioSlot(NamedTuple):
    """Where a virtio-mmio device's registers are (address and size, bytes), and its interrupt line."""

    address: int
    size: int
    irq: int


def virtio_slot(index: int) -> VirtioSlot:
    """The ``index``-th place for a virtio device, from 0; its interrupt is level-triggered, active high."""
    return VirtioSlot(VIRTIO_MMIO + index * VIRTIO_MMIO_STRIDE, VIRTIO_MMIO_STRIDE, VIRTIO_IRQ + index)
