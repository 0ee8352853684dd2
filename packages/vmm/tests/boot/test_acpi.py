import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from nitro_vmm import address_map
from nitro_vmm.address_map import virtio_slot
from nitro_vmm.boot import acpi

IMAGE = acpi.build([virtio_slot(0), virtio_slot(1)])
NAMES = {b"DSDT": "dsdt", b"FACP": "fadt", b"APIC": "madt", b"XSDT": "xsdt"}


def at(address: int, image: bytes = IMAGE) -> bytes:
    """The table at a guest-physical address."""
    start = address - address_map.ACPI_RSDP
    (length,) = struct.unpack_from("<I", image, start + 4)
    return image[start : start + length]


def pointed_to(image: bytes = IMAGE) -> dict[bytes, bytes]:
    """All tables, found as an operating system finds them: from the RSDP on."""
    (xsdt,) = struct.unpack_from("<Q", image, 24)
    tables = [at(xsdt, image)]
    tables += [at(address, image) for (address,) in struct.iter_unpack("<Q", at(xsdt, image)[36:])]
    fadt = next(table for table in tables if table[:4] == b"FACP")
    (dsdt,) = struct.unpack_from("<Q", fadt, 140)
    tables.append(at(dsdt, image))
    return {table[:4]: table for table in tables}


def test_the_rsdp_adds_up_in_both_its_lengths() -> None:
    assert IMAGE[:8] == b"RSD PTR "
    assert sum(IMAGE[:20]) % 256 == 0
    assert sum(IMAGE[:36]) % 256 == 0
    assert IMAGE[15] == 2, "the revision that has an XSDT"
    assert address_map.ACPI_RSDP % 16 == 0


def test_all_tables_are_found_and_add_up() -> None:
    tables = pointed_to()

    assert tables.keys() == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    assert all(sum(table) % 256 == 0 for table in tables.values())


def test_the_revisions_are_those_that_the_tables_follow() -> None:
    revisions = {signature: table[8] for signature, table in pointed_to().items()}

    assert revisions == {b"XSDT": 1, b"FACP": 6, b"APIC": 5, b"DSDT": 2}
    assert pointed_to()[b"FACP"][131] == 5, "and the FADT's minor one, for ACPI 6.5"
    assert {table[10:][:14] for table in pointed_to().values()} == {b"NITROVENCLAVE "}


def test_as_many_devices_as_there_are_interrupts_fit_the_bios_area() -> None:
    slots = [virtio_slot(index) for index in range(address_map.IO_APIC_PINS - address_map.VIRTIO_IRQ)]
    assert address_map.ACPI_RSDP + len(acpi.build(slots)) <= address_map.BIOS_RESET


def test_the_fadt_says_how_to_reset_and_power_off() -> None:
    fadt = pointed_to()[b"FACP"]
    port = b"\x01\x08\x00\x01"

    assert len(fadt) == 276, "revision 6"
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags & 1 << 20, "hardware-reduced"
    assert flags & 1 << 10, "reset register supported"
    assert fadt[116:128] == port + struct.pack("<Q", address_map.ACPI_RESET)
    assert fadt[128] == address_map.ACPI_RESET_VALUE
    assert fadt[244:256] == port + struct.pack("<Q", address_map.ACPI_SLEEP_CONTROL)
    assert fadt[256:268] == port + struct.pack("<Q", address_map.ACPI_SLEEP_STATUS)


def test_what_a_guest_need_not_look_for() -> None:
    fadt = pointed_to()[b"FACP"]

    (boot_architecture,) = struct.unpack_from("<H", fadt, 109)
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert boot_architecture == 1 << 0 | 1 << 2 | 1 << 3, "devices on ports, no VGA, no MSI, no i8042"
    assert flags == 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 20, "WBINVD, no fixed buttons or RTC"


CMOS_RTC_NOT_PRESENT = 1 << 5
PNP0B00 = bytes.fromhex("41d00b00")


def test_a_guest_without_kvm_clock_finds_a_cmos_clock() -> None:
    tables = pointed_to(acpi.build([], kvm_clock=False))

    assert not struct.unpack_from("<H", tables[b"FACP"], 109)[0] & CMOS_RTC_NOT_PRESENT
    assert PNP0B00 in tables[b"DSDT"]


def test_a_guest_with_kvm_clock_finds_no_cmos_clock() -> None:
    tables = pointed_to(acpi.build([], kvm_clock=True))

    assert struct.unpack_from("<H", tables[b"FACP"], 109)[0] & CMOS_RTC_NOT_PRESENT
    assert PNP0B00 not in tables[b"DSDT"]
    assert all(sum(table) % 256 == 0 for table in tables.values())


def test_the_madt_has_one_processor_and_one_io_apic() -> None:
    madt = pointed_to()[b"APIC"]

    assert struct.unpack_from("<II", madt, 36) == (address_map.LOCAL_APIC, 0)
    assert struct.unpack_from("<BBBBI", madt, 44) == (0, 8, 0, address_map.LOCAL_APIC_ID, 1)
    assert struct.unpack_from("<BBBBII", madt, 52) == (
        1,
        12,
        address_map.IO_APIC_ID,
        0,
        address_map.IO_APIC,
        0,
    )


def test_non_maskable_interrupts_come_to_the_second_pin_of_each_processor() -> None:
    madt = pointed_to()[b"APIC"]

    assert struct.unpack_from("<BBBHB", madt, 64) == (4, 6, 0xFF, 0, 1)
    assert len(madt) == 70


def test_each_processor_has_an_id_of_its_own() -> None:
    madt = pointed_to(acpi.build([], processors=4))[b"APIC"]

    found = [struct.unpack_from("<BBBBI", madt, 44 + 8 * number) for number in range(4)]
    assert found == [(0, 8, number, number, 1) for number in range(4)]


def io_ports(first: int, count: int) -> bytes:
    """An I/O port descriptor (ACPI 6.5 §6.4.2.5) of 16 address bits, aligned to 1."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def test_the_ports_of_the_console_and_the_clock() -> None:
    dsdt = pointed_to()[b"DSDT"]

    assert io_ports(0x3F8, 8) in dsdt
    assert io_ports(0x70, 2) in dsdt


needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")


@pytest.fixture
def disassembled(tmp_path: Path) -> dict[bytes, str]:
    """Each table in ACPI Source Language, white space folded."""
    sources = {}
    for signature, table in pointed_to().items():
        path = tmp_path / f"{NAMES[signature]}.aml"
        path.write_bytes(table)
        run = subprocess.run(
            ["iasl", "-d", path.name], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        said = run.stdout + run.stderr
        assert "rror" not in said.replace("0 Errors", ""), said
        assert "arning" not in said.replace("0 Warnings", ""), said
        sources[signature] = " ".join(path.with_suffix(".dsl").read_text().split())
    return sources


@needs_iasl
def test_acpica_reads_the_devices(disassembled: dict[bytes, str]) -> None:
    dsdt = disassembled[b"DSDT"]

    assert 'Device (VR00) { Name (_HID, "LNRO0005")' in dsdt
    assert "Name (_UID, One)" in dsdt
    assert "Memory32Fixed (ReadWrite, 0xD0001000, // Address Base 0x00001000, // Address Length )" in dsdt
    assert "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000006, }" in dsdt
    assert 'EisaId ("PNP0501")' in dsdt
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000004, }" in dsdt
    assert 'EisaId ("PNP0B00")' in dsdt
    assert "_S5, Package (0x04) // _S5_: S5 System State { 0x05, Zero, Zero, Zero }" in dsdt


@needs_iasl
def test_acpica_finds_the_generation_and_who_tells_of_it(disassembled: dict[bytes, str]) -> None:
    dsdt = disassembled[b"DSDT"]

    assert 'Name (_CID, "VM_Gen_Counter")' in dsdt
    assert "Name (ADDR, Package (0x02) { 0x000FF000, Zero })" in dsdt
    assert 'Name (_HID, "ACPI0013"' in dsdt
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000003, }" in dsdt
    assert "Method (_EVT, 1, Serialized) // _EVT: Event { Notify (VGEN, 0x80)" in dsdt


def test_the_generation_is_where_nothing_else_is() -> None:
    end = address_map.ACPI_RSDP + len(acpi.build([virtio_slot(index) for index in range(19)]))

    assert end <= address_map.GENERATION_ID < address_map.BIOS_RESET
    assert address_map.ACPI_EVENT_IRQ not in {address_map.COM1_IRQ, *range(address_map.VIRTIO_IRQ, 24)}


@needs_iasl
def test_acpica_reads_the_fixed_tables(disassembled: dict[bytes, str]) -> None:
    assert "Hardware Reduced (V5) : 1" in disassembled[b"FACP"]
    assert "Reset Register Supported (V2) : 1" in disassembled[b"FACP"]
    assert "8042 Present on ports 60/64 (V2) : 0" in disassembled[b"FACP"]
    assert (
        "Address : 00000000FEC00000" in disassembled[b"APIC"] or "Address : FEC00000" in disassembled[b"APIC"]
    )


@needs_iasl
def test_acpica_makes_the_same_bytes_of_its_source(tmp_path: Path) -> None:
    dsdt = pointed_to()[b"DSDT"]
    (tmp_path / "dsdt.aml").write_bytes(dsdt)
    for arguments in (["-d", "dsdt.aml"], ["-p", "again", "dsdt.dsl"]):
        subprocess.run(["iasl", *arguments], cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]
