"""The Intel MultiProcessor Specification's tables (version 1.4, chapter 4): processors, one IO-APIC.

Kernels without ACPI, as AWS ships them, find the interrupt controllers here.
"""

import struct
from collections.abc import Collection

from nitro_vmm.address_map import IO_APIC, IO_APIC_ID, IO_APIC_PINS, LOCAL_APIC, LOCAL_APIC_ID, MP_TABLE
from nitro_vmm.boot.checksum import checksum

# signature, address of the configuration table, length / 16, revision, checksum, features 1 to 5
FLOATING_POINTER = struct.Struct("<4sIBBB5s")
# signature, length, revision, checksum, OEM id, product id, OEM table and its size, entries, address of the
# local APICs, length and checksum of the extended table, reserved
CONFIGURATION_HEADER = struct.Struct("<4sHBB8s12sIHHIHBB")
# type, APIC id, APIC version, flags, signature, features, 8 reserved
PROCESSOR = struct.Struct("<BBBBII8x")
# type, bus id, name
BUS = struct.Struct("<BB6s")
# type, APIC id, APIC version, flags, address
IO_APIC_ENTRY = struct.Struct("<BBBBI")
# type, interrupt type, flags, source bus, source interrupt, destination APIC, destination pin
INTERRUPT = struct.Struct("<BBHBBBB")

REVISION_1_4 = 4
LOCAL_APIC_VERSION = 0x14
IO_APIC_VERSION = 0x11
ENABLED = 1
BOOT_PROCESSOR = 2
PROCESSOR_SIGNATURE = 0x600
PROCESSOR_FEATURES = 0x201  # an FPU and an APIC
ISA_BUS_ID = 0
INT, NMI, EXT_INT = 0, 1, 3
CONFORMS = 0
LEVEL_ACTIVE_HIGH = 3 << 2 | 1
ALL_LOCAL_APICS = 0xFF


def build(level_irqs: Collection[int], *, processors: int = 1) -> bytes:
    """The floating pointer, and behind it the configuration table, to be written at `MP_TABLE`.

    Each pin of the IO-APIC gets the ISA interrupt of its own number.

    Args:
        level_irqs: Interrupts that are level-triggered. The others are edge-triggered, as is usual for ISA.
            All are active high.
        processors: How many there are.
    """
    entries = [
        *(
            PROCESSOR.pack(
                0,
                LOCAL_APIC_ID + number,
                LOCAL_APIC_VERSION,
                ENABLED if number else ENABLED | BOOT_PROCESSOR,
                PROCESSOR_SIGNATURE,
                PROCESSOR_FEATURES,
            )
            for number in range(processors)
        ),
        BUS.pack(1, ISA_BUS_ID, b"ISA   "),
        IO_APIC_ENTRY.pack(2, IO_APIC_ID, IO_APIC_VERSION, ENABLED, IO_APIC),
        *(
            INTERRUPT.pack(
                3, INT, LEVEL_ACTIVE_HIGH if pin in level_irqs else CONFORMS, ISA_BUS_ID, pin, IO_APIC_ID, pin
            )
            for pin in range(IO_APIC_PINS)
        ),
        INTERRUPT.pack(4, EXT_INT, CONFORMS, ISA_BUS_ID, 0, ALL_LOCAL_APICS, 0),
        INTERRUPT.pack(4, NMI, CONFORMS, ISA_BUS_ID, 0, ALL_LOCAL_APICS, 1),
    ]
    body = b"".join(entries)
    length = CONFIGURATION_HEADER.size + len(body)
    configuration = bytearray(
        CONFIGURATION_HEADER.pack(
            b"PCMP",
            length,
            REVISION_1_4,
            0,
            b"NITROVMM",
            b"ENCLAVE     ",
            0,
            0,
            len(entries),
            LOCAL_APIC,
            0,
            0,
            0,
        )
        + body
    )
    configuration[7] = checksum(configuration)
    pointer = bytearray(
        FLOATING_POINTER.pack(b"_MP_", MP_TABLE + FLOATING_POINTER.size, 1, REVISION_1_4, 0, bytes(5))
    )
    pointer[10] = checksum(pointer)
    return bytes(pointer + configuration)
