"""The numbers that drivers know by heart, written out as the datasheets and specifications have them.

The other tests use the devices' own names for these, and would not notice if one were wrong.
"""

from enum import IntEnum, IntFlag
from types import ModuleType

import pytest

from nitro_vmm.devices import (
    acpi_power,
    i8042,
    io_apic_registers,
    local_apic_registers,
    rtc,
    serial,
    virtio_mmio,
    virtio_mmio_registers,
    vsock,
)

# National Semiconductor PC16550D, table II.
SERIAL = {
    "IER_RECEIVED": 1,
    "IER_TRANSMITTER_EMPTY": 2,
    "IER_LINE_STATUS": 4,
    "IER_MODEM_STATUS": 8,
    "IIR_MODEM_STATUS": 0,
    "IIR_NONE": 1,
    "IIR_TRANSMITTER_EMPTY": 2,
    "IIR_RECEIVED": 4,
    "IIR_LINE_STATUS": 6,
    "IIR_RECEIVED_TIMEOUT": 12,
    "IIR_FIFOS_ENABLED": 0xC0,
    "FCR_ENABLE": 1,
    "FCR_CLEAR_RECEIVED": 2,
    "FCR_TRIGGERS": (1, 4, 8, 14),
    "LCR_DLAB": 0x80,
    "MCR_DTR": 1,
    "MCR_RTS": 2,
    "MCR_OUT1": 4,
    "MCR_OUT2": 8,
    "MCR_LOOPBACK": 16,
    "LSR_RECEIVED": 1,
    "LSR_OVERRUN": 2,
    "LSR_TRANSMITTER_EMPTY": 0x60,
    "MSR_CTS": 0x10,
    "MSR_DSR": 0x20,
    "MSR_RI": 0x40,
    "MSR_DCD": 0x80,
    "MSR_CONNECTED": 0xB0,
}
# Motorola MC146818A, figure "Address Map"; the century is the PC's.
RTC = {
    "INDEX": 0,
    "DATA": 1,
    "SECONDS": 0,
    "MINUTES": 2,
    "HOURS": 4,
    "WEEKDAY": 6,
    "DAY": 7,
    "MONTH": 8,
    "YEAR": 9,
    "REGISTER_A": 10,
    "REGISTER_B": 11,
    "REGISTER_C": 12,
    "REGISTER_D": 13,
    "CENTURY": 0x32,
    "A_32768_HZ_1024_HZ": 0x26,
    "B_SET": 0x80,
    "B_BINARY": 4,
    "B_24_HOURS": 2,
    "HOUR_PM": 0x80,
    "MEMORY_BYTES": 128,
}
# IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller".
I8042 = {
    "DATA": 0,
    "COMMAND": 4,
    "STATUS_OUTPUT_FULL": 1,
    "STATUS_SELF_TEST_PASSED": 4,
    "STATUS_COMMAND": 8,
    "STATUS_NOT_LOCKED": 16,
    "STATUS_FROM_MOUSE": 32,
    "STATUS_TIMEOUT": 64,
    "CONFIG_KEYBOARD_INTERRUPT": 1,
    "CONFIG_SELF_TEST_PASSED": 4,
    "CONFIG_KEYBOARD_DISABLED": 16,
    "CONFIG_MOUSE_DISABLED": 32,
    "CONFIG_TRANSLATE": 64,
    "RESEND": 0xFE,
    "READ_MEMORY": 0x20,
    "WRITE_MEMORY": 0x60,
    "DISABLE_MOUSE": 0xA7,
    "ENABLE_MOUSE": 0xA8,
    "TEST_MOUSE_PORT": 0xA9,
    "SELF_TEST": 0xAA,
    "TEST_KEYBOARD_PORT": 0xAB,
    "DISABLE_KEYBOARD": 0xAD,
    "ENABLE_KEYBOARD": 0xAE,
    "READ_INPUT_PORT": 0xC0,
    "READ_OUTPUT_PORT": 0xD0,
    "WRITE_OUTPUT_PORT": 0xD1,
    "ECHO_AS_KEYBOARD": 0xD2,
    "ECHO_AS_MOUSE": 0xD3,
    "WRITE_TO_MOUSE": 0xD4,
    "READ_TEST_INPUTS": 0xE0,
    "PULSE_OUTPUT_PORT": 0xF0,
    "RESET": 0xFE,
    "ANSWERS": {0xA9: 1, 0xAA: 0x55, 0xAB: 0, 0xC0: 0x80, 0xD0: 3, 0xE0: 0},
}
# Intel 82093AA §3.1, §3.2; ICH for the EOI register.
IO_APIC = {
    "REGISTER_SELECT": 0,
    "WINDOW": 0x10,
    "END_OF_INTERRUPT": 0x40,
    "ID": 0,
    "VERSION": 1,
    "ARBITRATION": 2,
    "REDIRECTION_TABLE": 0x10,
    "VERSION_WITH_EOI_REGISTER": 0x20,
    "DELIVERY_MODE": 0x700,
    "LOWEST_PRIORITY": 0x100,
    "REMOTE_IRR": 0x4000,
    "LEVEL": 0x8000,
    "MASKED": 0x1_0000,
    # Destination; mask, trigger mode, polarity, destination mode, delivery mode and vector.
    "WRITABLE": 0xFF00_0000_0001_AFFF,
}
# Intel SDM vol. 3A, table "Local APIC Register Address Map" and figure "Local Vector Table (LVT)".
LOCAL_APIC = {
    "LVT_TIMER": 0x320,
    "LVT_THERMAL": 0x330,
    "LVT_PERFORMANCE": 0x340,
    "LVT_LINT0": 0x350,
    "LVT_LINT1": 0x360,
    "LVT_ERROR": 0x370,
    "LVT_MASKED": 0x1_0000,
    "LVT_PERIODIC": 0x2_0000,
    "LVT_DEADLINE": 0x4_0000,
    "LVT_WRITABLE": {
        0x320: 0x7_00FF,
        0x330: 0x1_07FF,
        0x340: 0x1_07FF,
        0x350: 0x1_A7FF,
        0x360: 0x1_A7FF,
        0x370: 0x1_00FF,
    },
    "VERSION": 0x5_0014,
    "SOFTWARE_ENABLED": 0x100,
    "VECTOR_MIN": 16,
    "ERROR_SEND_ILLEGAL_VECTOR": 0x20,
    "ERROR_RECEIVED_ILLEGAL_VECTOR": 0x40,
    "ERROR_ILLEGAL_REGISTER": 0x80,
    "PERIOD_NS_MIN": 200_000,
    "VECTOR_BITS_MAX": sum(1 << vector for vector in range(16, 256)),
    "COMMAND_WRITABLE": 0xC_CFFF,
    "DIVIDE_WRITABLE": 0b1011,
    "DESTINATION_WRITABLE": 0xFF00_0000,
    "DESTINATION_FORMAT_FIXED": 0x0FFF_FFFF,
}
# virtio 1.3 §2.1, §4.2.2 and §6.
VIRTIO_MMIO = {
    "MAGIC": int.from_bytes(b"virt", "little"),
    "TRANSPORT_VERSION": 2,
    "INTERRUPT_USED_BUFFER": 1,
    "INTERRUPT_CONFIGURATION": 2,
    "CONFIGURATION": 0x100,
}
# virtio 1.3 §5.10.
VSOCK = {
    "DEVICE_ID": 19,
    "RECEIVE": 0,
    "TRANSMIT": 1,
    "EVENTS": 2,
    "QUEUE_SIZES": (128, 128, 16),
}
# ACPI 6.5 §4.8.3.7.
ACPI_POWER = {"SLEEP_CONTROL": 0, "RESET": 2, "SLEEP_ENABLE": 0x20}


@pytest.mark.parametrize(
    ("module", "numbers"),
    [
        (serial, SERIAL),
        (rtc, RTC),
        (i8042, I8042),
        (io_apic_registers, IO_APIC),
        (local_apic_registers, LOCAL_APIC),
        (virtio_mmio_registers, VIRTIO_MMIO),
        (virtio_mmio, {"F_VERSION_1": 1 << 32}),
        (vsock, VSOCK),
        (acpi_power, ACPI_POWER),
    ],
)
def test_constants_have_the_numbers_of_their_sources(module: ModuleType, numbers: dict[str, object]) -> None:
    assert {name: getattr(module, name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (serial.Register, [0, 1, 2, 3, 4, 5, 6, 7]),
        (
            local_apic_registers.Register,
            [
                *(0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0),
                *(0x100, 0x180, 0x200, 0x280, 0x300, 0x310, 0x380, 0x390, 0x3E0),
            ],
        ),
        (
            virtio_mmio_registers.Register,
            [
                *(
                    0x00,
                    0x04,
                    0x08,
                    0x0C,
                    0x10,
                    0x14,
                    0x20,
                    0x24,
                    0x30,
                    0x34,
                    0x38,
                    0x44,
                    0x50,
                    0x60,
                    0x64,
                    0x70,
                ),
                *(0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0xAC, 0xB0, 0xB4, 0xB8, 0xBC, 0xC0, 0xFC),
            ],
        ),
        (virtio_mmio_registers.Status, [1, 2, 4, 8, 64, 128]),
    ],
)
def test_registers_are_where_drivers_look(names: type[IntEnum | IntFlag], numbers: list[int]) -> None:
    assert [int(member) for member in names] == numbers


@pytest.mark.parametrize(
    ("number", "register"),
    [
        (local_apic_registers.END_OF_INTERRUPT, local_apic_registers.Register.END_OF_INTERRUPT),
        (local_apic_registers.SETS_BEGIN, local_apic_registers.Register.IN_SERVICE),
        (local_apic_registers.SETS_END, local_apic_registers.Register.ERROR_STATUS),
        (virtio_mmio_registers.QUEUE_NOTIFY, virtio_mmio_registers.Register.QUEUE_NOTIFY),
        (virtio_mmio_registers.INTERRUPT_STATUS, virtio_mmio_registers.Register.INTERRUPT_STATUS),
        (virtio_mmio_registers.INTERRUPT_ACK, virtio_mmio_registers.Register.INTERRUPT_ACK),
    ],
)
def test_numbers_that_spare_a_look_up_are_those_of_the_registers(number: int, register: IntEnum) -> None:
    assert number == register
