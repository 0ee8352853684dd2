"""The ACPI tables (ACPI 6.5 chapter 5) of a machine whose hardware is reduced to what virtual machines need.

Distribution kernels find everything here: the interrupt controllers in the MADT, the devices in the DSDT,
power-off and reset in the FADT. "Hardware-reduced" (§4.1) also tells Linux that there are no PIC, no PIT and
no ACPI timer, so it does not look for them.
"""

import struct
from collections.abc import Sequence

from nitro_vmm import address_map
from nitro_vmm.address_map import VirtioSlot
from nitro_vmm.boot import aml
from nitro_vmm.boot.checksum import checksum

# signature length revision checksum oem_id oem_table_id oem_revision creator_id creator_revision
HEADER = struct.Struct("<4sIBB6s8sI4sI")
# signature checksum oem_id revision rsdt_address length xsdt_address extended_checksum, 3 reserved
RSDP = struct.Struct("<8sB6sBIIQB3x")
RSDP_VERSION_1_BYTES = 20
# Generic Address Structure: address_space_id register_bit_width register_bit_offset access_size address
GENERIC_ADDRESS = struct.Struct("<BBBBQ")
SYSTEM_IO, BYTE_ACCESS = 1, 1
# The FADT behind its header, where it is not zero: IAPC_BOOT_ARCH, flags, RESET_REG, RESET_VALUE, minor
# version, X_DSDT, SLEEP_CONTROL_REG, SLEEP_STATUS_REG, hypervisor vendor identity (§5.2.9).
FADT = struct.Struct("<73xHxI12sB2xB8xQ96x12s12s8s")
# local APIC address, flags
MADT = struct.Struct("<II")
# type length processor_uid apic_id flags
MADT_LOCAL_APIC = struct.Struct("<BBBBI")
# type length io_apic_id reserved address global_system_interrupt_base
MADT_IO_APIC = struct.Struct("<BBBBII")
# type length processor_uid flags lint
MADT_LOCAL_APIC_NMI = struct.Struct("<BBBHB")

OEM_ID, OEM_TABLE_ID, CREATOR_ID = b"NITROV", b"ENCLAVE ", b"NVMM"
HYPERVISOR_VENDOR = b"NITROVMM"

# IAPC_BOOT_ARCH (§5.2.9.3). The flag for an i8042 is not among them, so that Linux does not spend time on
# looking for a keyboard. It still resets the machine through the i8042 when told to (reboot=k).
LEGACY_DEVICES, VGA_NOT_PRESENT, MSI_NOT_SUPPORTED, CMOS_RTC_NOT_PRESENT = 1 << 0, 1 << 2, 1 << 3, 1 << 5
# Fixed feature flags (§5.2.9). Buttons and RTC wake are not in fixed registers.
WBINVD, POWER_BUTTON, SLEEP_BUTTON, FIX_RTC = 1 << 0, 1 << 4, 1 << 5, 1 << 6
RESET_REGISTER_SUPPORTED, HARDWARE_REDUCED = 1 << 10, 1 << 20
PROCESSOR_ENABLED = 1
ALL_PROCESSORS = 0xFF
NMI_LINT = 1
GENERATION = "VGEN"
GENERATION_CHANGED = 0x80


def build(virtio: Sequence[VirtioSlot], *, processors: int = 1, kvm_clock: bool = False) -> bytes:
    """The tables, to be written at `ACPI_RSDP`: the root pointer (RSDP), and all that it leads to.

    Args:
        virtio: Where the virtio-mmio devices are, in the order of their unit numbers.
        processors: How many there are.
        kvm_clock: Whether they have kvm-clock. Then the tables say that there is no CMOS clock. Linux would
            set its time of day by that again, late in its boot, although it has whole seconds only.
    """
    image = bytearray(RSDP.size)

    def add(signature: bytes, revision: int, body: bytes) -> int:
        """Append a table; returns its address."""
        image.extend(bytes(-len(image) % 16))
        address = address_map.ACPI_RSDP + len(image)
        image.extend(_table(signature, revision, body))
        return address

    dsdt = add(b"DSDT", 2, _dsdt(virtio, cmos_clock=not kvm_clock))
    fadt = add(b"FACP", 6, _fadt(dsdt, cmos_clock=not kvm_clock))
    madt = add(b"APIC", 5, _madt(processors))
    xsdt = add(b"XSDT", 1, struct.pack("<QQ", fadt, madt))

    rsdp = bytearray(RSDP.pack(b"RSD PTR ", 0, OEM_ID, 2, 0, RSDP.size, xsdt, 0))
    rsdp[8] = checksum(rsdp[:RSDP_VERSION_1_BYTES])
    rsdp[32] = checksum(rsdp)
    image[: RSDP.size] = rsdp
    return bytes(image)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    table = bytearray(
        HEADER.pack(signature, HEADER.size + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
        + body
    )
    table[9] = checksum(table)
    return bytes(table)


def _port(number: int) -> bytes:
    return GENERIC_ADDRESS.pack(SYSTEM_IO, 8, 0, BYTE_ACCESS, number)


def _fadt(dsdt: int, *, cmos_clock: bool) -> bytes:
    return FADT.pack(
        LEGACY_DEVICES | VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | (0 if cmos_clock else CMOS_RTC_NOT_PRESENT),
        WBINVD | POWER_BUTTON | SLEEP_BUTTON | FIX_RTC | RESET_REGISTER_SUPPORTED | HARDWARE_REDUCED,
        _port(address_map.ACPI_RESET),
        address_map.ACPI_RESET_VALUE,
        5,  # ACPI 6.5
        dsdt,
        _port(address_map.ACPI_SLEEP_CONTROL),
        _port(address_map.ACPI_SLEEP_STATUS),
        HYPERVISOR_VENDOR,
    )


def _madt(processors: int) -> bytes:
    local_apics = (
        MADT_LOCAL_APIC.pack(
            0, MADT_LOCAL_APIC.size, number, address_map.LOCAL_APIC_ID + number, PROCESSOR_ENABLED
        )
        for number in range(processors)
    )
    return (
        MADT.pack(address_map.LOCAL_APIC, 0)
        + b"".join(local_apics)
        + MADT_IO_APIC.pack(1, MADT_IO_APIC.size, address_map.IO_APIC_ID, 0, address_map.IO_APIC, 0)
        + MADT_LOCAL_APIC_NMI.pack(4, MADT_LOCAL_APIC_NMI.size, ALL_PROCESSORS, 0, NMI_LINT)
    )


def _dsdt(virtio: Sequence[VirtioSlot], *, cmos_clock: bool) -> bytes:
    console = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.io_ports(address_map.COM1, 8), aml.interrupt(address_map.COM1_IRQ, level=False)
            ),
        ),
    )
    # It has no interrupt, because it has no alarm. Where it is what the kernel has its time from, it must be
    # listed all the same, because Linux assumes an RTC with interrupt 8 where none is listed.
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resource_template(aml.io_ports(address_map.CMOS_INDEX, 2))),
    )
    devices = [
        aml.device(
            f"VR{index:02}",
            # The virtio specification names no id; this is the one that Linux's and other drivers look for.
            aml.name("_HID", aml.string("LNRO0005")),
            aml.name("_UID", aml.integer(index)),
            aml.name(
                "_CRS",
                aml.resource_template(
                    aml.memory32_fixed(slot.address, slot.size), aml.interrupt(slot.irq, level=True)
                ),
            ),
        )
        for index, slot in enumerate(virtio)
    ]
    # The specification leaves the hardware id to us; drivers look for the compatible one.
    generation = aml.device(
        GENERATION,
        aml.name("_HID", aml.string("NVMM0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(aml.integer(address_map.GENERATION_ID), aml.integer(0))),
    )
    # Hardware-reduced machines tell of events through this device (ACPI 6.5 §5.6.9). There is one event.
    events = aml.device(
        "EVNT",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(address_map.ACPI_EVENT_IRQ, level=False))),
        aml.method("_EVT", 1, aml.notify(GENERATION, GENERATION_CHANGED)),
    )
    clocks = [clock] if cmos_clock else []
    s5 = aml.package(*(aml.integer(value) for value in (address_map.ACPI_SLEEP_TYPE_S5, 0, 0, 0)))
    return aml.name("_S5", s5) + aml.scope("_SB", console, *clocks, generation, events, *devices)
