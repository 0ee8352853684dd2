"""Random guests: a list of operations, each some bytes of position-independent code, and tables in memory.

The code begins in 64-bit mode, ring 0, with all memory mapped one to one and open to user mode.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from nitro_vmm.address_map import BOOT_PAGE_TABLES, COM1, IO_APIC, LOCAL_APIC, virtio_slot

CODE: Final = 0x20_0000
IDT: Final = 0x20_2000
GDT: Final = 0x20_3000
TSS: Final = 0x20_4000
HANDLERS: Final = 0x20_5000
STACK: Final = 0x20_8000
DATA: Final = 0x20_9000
RINGS: Final = 0x20_A000
MEMORY_BYTES: Final = 16 << 20

CODE64, DATA32, CODE32, CODE16, USER_CODE, USER_DATA, USER_CODE32, TSS_SELECTOR, CALL_GATE, LDT = (
    *(0x10, 0x18, 0x20, 0x28, 0x33, 0x3B, 0x43),
    *(0x48, 0x58, 0x68),
)
SELECTORS: Final = (
    0,
    3,
    8,
    CODE64,
    DATA32,
    CODE32,
    CODE16,
    USER_CODE,
    USER_DATA,
    USER_CODE32,
    TSS_SELECTOR,
    CALL_GATE,
    LDT,
    0xFFFC,
)
DESCRIPTORS: Final = (
    *(0, 0x00AF_9B00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_9B00_0000_FFFF),
    *(0x000F_9B00_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00CF_FB00_0000_FFFF),
    *(0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16, 0, 0x0000_EC00_0010_0000 | HANDLERS & 0xFFFF, 0),
    *(0x0000_8200_0000_0FFF, 0, 0xFFFF_FFFF_FFFF_FFFF),
)
ADDRESSES: Final = (
    *(0, 0x64, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_FFF8),
    *(CODE, IDT, GDT, TSS, STACK, DATA, RINGS, BOOT_PAGE_TABLES, MEMORY_BYTES - 4, MEMORY_BYTES, LOCAL_APIC),
    *(IO_APIC, virtio_slot(0).address, virtio_slot(1).address, 0x1_0000_0000, 0xFF_FFFF_F000, 0xD000_0FFC),
)
MSRS: Final = (
    *(0x10, 0x1B, 0x3B, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1A0, 0x1D9, 0x200, 0x250, 0x277),
    *(0x2FF, 0x400, 0x6E0, 0x800, 0x802, 0x80B, 0x830, 0x838, 0xDA0, 0x4B56_4D00, 0x4B56_4D01, 0x4000_0000),
    *(0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101),
    *(0xC000_0102, 0xC000_0103, 0xC001_0117, 0xC001_0114, 0x12, 0x11),
)
PORTS: Final = (
    *range(COM1, COM1 + 8),
    0x60,
    0x61,
    0x64,
    0x70,
    0x71,
    0x80,
    0xCF8,
    0xCFC,
    0x600,
    0x601,
    0x602,
    0,
)
FLAGS: Final = (0x2, 0x202, 0x102, 0x302, 0x3202, 0x4202, 0x1_0002, 0x2_0202, 0x4_0002, 0x8_0202, 0x20_0ED7)
APIC_REGISTERS: Final = (
    0x20,
    0x80,
    0xB0,
    0xD0,
    0xE0,
    0xF0,
    0x280,
    0x300,
    0x310,
    0x320,
    0x350,
    0x360,
    0x370,
    0x380,
    0x3E0,
)
VIRTIO_REGISTERS: Final = (
    *(0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0xAC, 0x100),
)
EDGES: Final = (0, 1, 2, 4, 7, 8, 0x0F, 0x10, 0x7F, 0x80, 0xFF, 0x1000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest, as it is before its first instruction."""

    operations: tuple[bytes, ...]
    tables: tuple[tuple[int, bytes], ...]
    """What to write where on top of orderly descriptor tables."""

    def without(self, first: int, count: int) -> "Guest":
        """Less some operations."""
        return replace(self, operations=self.operations[:first] + self.operations[first + count :])

    def memory(self) -> list[tuple[int, bytes]]:
        """All that is to be written, in order."""
        prologue = bytes.fromhex("0f011425") + struct.pack("<I", DATA + 0xF00)  # lgdt
        prologue += bytes.fromhex("0f011c25") + struct.pack("<I", DATA + 0xF10)  # lidt
        prologue += bytes.fromhex("66b8") + struct.pack("<H", TSS_SELECTOR) + bytes.fromhex("0f00d8")  # ltr
        code = prologue + b"".join(self.operations) + bytes.fromhex("faf4")  # cli; hlt
        return [
            *_orderly(),
            (DATA + 0xF00, struct.pack("<HQ", 8 * len(DESCRIPTORS) - 1, GDT)),
            (DATA + 0xF10, struct.pack("<HQ", 0xFFF, IDT)),
            (CODE, code),
            *self.tables,
        ]


def _orderly() -> list[tuple[int, bytes]]:
    """Descriptor tables as a well-behaved kernel has them: faults are counted, and end the guest after 64."""
    count = bytes.fromhex("48ff0425") + struct.pack("<I", DATA)  # inc qword [DATA]
    count += bytes.fromhex("48833c25") + struct.pack("<I", DATA) + b"\x40"  # cmp qword [DATA],64
    count += bytes.fromhex("7202faf4")  # jb on; cli; hlt
    plain = count + bytes.fromhex("48cf")  # iretq
    with_code = count + bytes.fromhex("4883c40848cf")  # add rsp,8; iretq
    skip = count + bytes.fromhex("4883042402 48cf")  # add qword [rsp],2
    handlers = {0: plain, 0x40: with_code, 0x80: skip}
    gates = bytearray()
    for vector in range(256):
        offset = 0x40 if vector in {8, 10, 11, 12, 13, 14, 17} else 0x80 if vector == 6 else 0
        address = HANDLERS + offset
        kind = 0xEE00 if vector in {3, 4, 0x80} else 0x8E00
        gates += struct.pack("<HHHHQ", address & 0xFFFF, CODE64, kind, address >> 16, 0)
    tss = struct.pack("<I3QQ7Q", 0, STACK - 0x1000, STACK, STACK, 0, *[STACK - 0x800] * 7)
    return [
        (IDT, bytes(gates)),
        (GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS)),
        (TSS, tss.ljust(0x66, b"\0") + struct.pack("<H", 0x68)),
        *((HANDLERS + offset, code) for offset, code in handlers.items()),
    ]


def make(seed: int) -> Guest:
    """The guest of a seed."""
    source = random.Random(seed)  # noqa: S311 - to be made again
    operations = []
    for _ in range(source.randrange(2, 24)):
        (kind,) = source.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
        operations.append(kind(source))
    tables = [_damage(source) for _ in range(source.choice((0, 0, 1, 2, 8)))]
    if not source.randrange(3):
        tables += _rings(source)
    return Guest(tuple(operations), tuple(tables))


def _quad(source: random.Random) -> int:
    match source.randrange(4):
        case 0:
            return source.choice(EDGES)
        case 1:
            return source.choice(ADDRESSES) + source.choice((0, 0, 4, 8, 0xFFC, -8)) & (1 << 64) - 1
        case 2:
            return 1 << source.randrange(64)
        case _:
            return source.getrandbits(64)


def _near(source: random.Random) -> int:
    """An address within the first 4 GiB, mostly one that matters."""
    return (
        source.choice(ADDRESSES) + source.choice((0, 0, 8, 0x10, 0x68, 0x300, 0xFF8, 0xFFF))
    ) & 0xFFFF_FFFF


def _damage(source: random.Random) -> tuple[int, bytes]:
    place = source.choice((IDT, IDT, GDT, TSS, BOOT_PAGE_TABLES))
    offset = source.randrange(0, {IDT: 64, GDT: 16, TSS: 13, BOOT_PAGE_TABLES: 3072}[place]) * 8
    return place + offset, struct.pack("<Q", _entry(source))


def _entry(source: random.Random) -> int:
    """Something like a gate, a descriptor or an entry of a page table."""
    match source.randrange(5):
        case 0:
            return _quad(source)
        case 1:  # a gate, its address right, all else not
            kind = source.choice((0x8E, 0x8F, 0xEE, 0x0E, 0x85, 0x8C, 0x84, 0x9E, source.randrange(256)))
            return (
                HANDLERS & 0xFFFF
                | source.choice(SELECTORS) << 16
                | source.randrange(8) << 32
                | kind << 40
                | 0x20 << 48
            )
        case 2:
            return source.choice(DESCRIPTORS) ^ 1 << source.randrange(64)
        case 3:
            return (source.choice(ADDRESSES) & 0xFF_FFFF_F000) | source.getrandbits(12)
        case _:
            return (source.randrange(8) << 21) | 0xE7 ^ 1 << source.randrange(64)


def _store(address: int, value: int) -> bytes:
    """Mov eax,address; mov dword [rax],value."""
    return struct.pack("<BIBBI", 0xB8, address & 0xFFFF_FFFF, 0xC7, 0x00, value & 0xFFFF_FFFF)


def _mov_rax(value: int) -> bytes:
    return bytes.fromhex("48b8") + struct.pack("<Q", value & (1 << 64) - 1)


def _control(source: random.Random) -> bytes:
    """Change a bit of CR0 or CR4, or all of CR3, CR2 or CR8."""
    number = source.choice((0, 4, 4, 3, 2, 8))
    if number in {0, 4}:
        bit = source.choice((0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31) if number == 0 else range(32))
        code = bytes([0x0F, 0x20, 0xC0 | number << 3]) + bytes.fromhex("480fbaf8") + bytes([bit])
        return code + bytes([0x0F, 0x22, 0xC0 | number << 3])
    if number == 8:
        return _mov_rax(_quad(source)) + bytes.fromhex("440f22c0")
    value = BOOT_PAGE_TABLES | source.choice((0, 0, 0x18, 0x1000)) if source.randrange(2) else _quad(source)
    return _mov_rax(value) + bytes([0x0F, 0x22, 0xC0 | number << 3])


def _msr(source: random.Random) -> bytes:
    number = source.choice(MSRS) if source.randrange(4) else source.getrandbits(32)
    value = _quad(source)
    code = struct.pack("<BI", 0xB9, number)
    if number == 0xC000_0080 and source.randrange(3):  # one bit of EFER
        return code + bytes.fromhex("0f32 0fbaf8") + bytes([source.choice((0, 8, 10, 11, 12))]) + b"\x0f\x30"
    if not source.randrange(4):
        return code + b"\x0f\x32"
    return code + struct.pack("<BIBI", 0xB8, value & 0xFFFF_FFFF, 0xBA, value >> 32) + b"\x0f\x30"


def _table_register(source: random.Random) -> bytes:
    """LGDT, LIDT, LLDT, LTR, SGDT, SLDT, STR, LMSW."""
    if source.randrange(2):
        pointer = struct.pack("<HQ", source.choice((0, 15, 0x7F, 0xFFF, 0xFFFF)), _quad(source))
        store = b"".join(
            _store(DATA + 0x800 + at, int.from_bytes(pointer[at : at + 4], "little")) for at in (0, 4, 8)
        )
        load = bytes([0x0F, 0x01, source.choice((0x14, 0x1C)), 0x25]) + struct.pack("<I", DATA + 0x800)
        return store + load
    selector = source.choice(SELECTORS)
    operation = source.choice((0xD8, 0xD8, 0xD0, 0xC8, 0xC0, 0xE0, 0xE8))
    return struct.pack("<BI", 0xB8, selector) + bytes([0x0F, 0x00, operation])


def _segment(source: random.Random) -> bytes:
    return struct.pack("<BI", 0xB8, source.choice(SELECTORS)) + bytes(
        [0x8E, 0xC0 | source.choice((0, 2, 3, 4, 5)) << 3]
    )


def _far_return(source: random.Random) -> bytes:
    """Go on behind this, in another code segment: call next; pop rax; add rax,10; push selector; push rax."""
    selector = source.choice((CODE32, CODE16, CODE64, 8, CODE32 | 3, source.choice(SELECTORS) & 0x7F))
    return bytes.fromhex("e800000000 58 4883c00a 6a") + bytes([selector]) + bytes.fromhex("50 48cb")


RETURNS: Final = (
    *((USER_CODE, USER_DATA), (USER_CODE, USER_DATA), (USER_CODE32, USER_DATA), (CODE64, 0)),
    *((CODE64, DATA32), (CODE32, DATA32), (CODE16, DATA32), (USER_CODE, 0)),
)


def _interrupt_return(source: random.Random) -> bytes:
    """Go on behind this, in another ring, mode, stack and with other flags."""
    code, data = source.choice(RETURNS)
    flags, stack = source.choice(FLAGS), source.choice((STACK - 0x2000, STACK, DATA, 0, LOCAL_APIC))
    push = bytes.fromhex("6a") + bytes([data])
    push += b"\x68" + struct.pack("<I", stack & 0x7FFF_FFFF) + b"\x68" + struct.pack("<I", flags)
    push += bytes.fromhex("6a") + bytes([code]) + bytes.fromhex("50 48cf")
    return bytes.fromhex("e800000000 58 4883c0") + bytes([5 + len(push)]) + push


def _leave_long_mode(source: random.Random) -> bytes:
    """To 32-bit code; paging off; EFER.LME off; perhaps to real mode or PAE paging."""
    code = bytes.fromhex("e800000000 58 4883c00a 6a20 50 48cb b818000000 8ed8 8ec0 8ed0 bc") + struct.pack(
        "<I", STACK
    )
    code += bytes.fromhex("0f20c0 25ffffff7f 0f22c0")
    if source.randrange(3):
        code += bytes.fromhex("b9800000c0 31c0 31d2 0f30")
    match source.randrange(4):
        case 0:
            code += bytes.fromhex("0f20c0 24fe 0f22c0")
        case 1:
            code += bytes.fromhex("0f20e0 0fbaf8") + bytes([source.choice((4, 5))]) + bytes.fromhex("0f22e0")
            code += bytes.fromhex("0f20c0 0d00000080 0f22c0")
        case _:
            pass
    return code


EVENTS: Final = tuple(
    bytes.fromhex(text)
    for text in (
        *(
            "cd03",
            "cd80",
            "cc",
            "ce",
            "f1",
            "0f0b",
            "0f05",
            "0f34",
            "0f35",
            "480f07",
            "0f07",
            "480f35",
            "f4",
            "fb",
        ),
        *(
            "fa",
            "fbf4",
            "9d",
            "9c",
            "0f01f8",
            "0fa2",
            "0f31",
            "0f01f9",
            "0f09",
            "0f08",
            "0f06",
            "0f0133",
            "cf",
            "48cf",
        ),
        *(
            "cb",
            "48cb",
            "c8ffff1f",
            "c9",
            "0faa",
            "0f01d0",
            "0f01d9",
            "0f01d8",
            "0f01dd",
            "0f78c0",
            "0fc7f0",
            "0f01c8",
        ),
        *(
            "31c9f7f1",
            "d9eed9e8def9",
            "0fae0425",
            "0fae0c25",
            "f390",
            "f0830401 00",
            "6a00cd20",
            "0f20c0",
            "0f23f8",
        ),
        *(
            "0f21f8",
            "0f23c0",
            "ebfe",
            "e2fe",
            "0f01fa",
            "cd01",
            "cd02",
            "cd08",
            "cd0d",
            "cd0e",
            "cd20",
            "cd30",
            "cdff",
        ),
    )
)


def _event(source: random.Random) -> bytes:
    return source.choice(EVENTS)


def _flags(source: random.Random) -> bytes:
    """Push flags; popfq."""
    return b"\x68" + struct.pack("<I", source.choice(FLAGS)) + b"\x9d"


def _port(source: random.Random) -> bytes:
    port, value = source.choice(PORTS), source.choice(EDGES)
    operation = source.choice(
        (b"\xee", b"\xee", b"\xef", b"\x66\xef", b"\xec", b"\xed", b"\xf3\x6e", b"\xf3\x6c")
    )
    return struct.pack("<BIBI", 0xBA, port, 0xB8, value) + operation


def _device(source: random.Random) -> bytes:
    """A register of an interrupt controller or of a virtio device."""
    value = source.choice((*EDGES, RINGS, RINGS + 0x100, source.getrandbits(32)))
    match source.randrange(4):
        case 0:
            base, offset = LOCAL_APIC, source.choice(APIC_REGISTERS)
        case 1:
            base, offset = IO_APIC, source.choice((0, 0x10, 0x40))
        case _:
            base, offset = virtio_slot(source.randrange(2)).address, source.choice(VIRTIO_REGISTERS)
    if not source.randrange(4):
        return struct.pack("<BIBB", 0xB8, base + offset, 0x8B, 0x18)
    return _store(base + offset, value)


def _timer(source: random.Random) -> bytes:
    """The local APIC's timer on, and interrupts too."""
    vector = source.choice((0x30, 0x30, 0x80, 6, 13, 14, 0xFF, 0x0F))
    mode = source.choice((0, 0x2_0000, 0x4_0000))
    code = _store(LOCAL_APIC + 0xF0, 0x1FF) + _store(LOCAL_APIC + 0x3E0, 0xB)
    code += _store(LOCAL_APIC + 0x320, mode | vector) + _store(
        LOCAL_APIC + 0x380, source.choice((1, 1000, 100_000))
    )
    return code + b"\xfb"


def _driver(source: random.Random) -> bytes:
    """Set a virtio device up as a driver does, mostly; then tell it of buffers."""
    slot = virtio_slot(source.randrange(2)).address
    writes = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, source.choice((1, 1, 0, 0xFFFF_FFFF))),
        (0x70, 11),
    ]
    for queue in range(source.choice((1, 3))):
        base = RINGS + 0x400 * queue
        writes += [(0x30, queue), (0x38, source.choice((2, 8, 8, 16, 0, 3, 0xFFFF)))]
        places = [base, base + 0x100, base + 0x200]
        if not source.randrange(4):
            places[source.randrange(3)] = _near(source)
        for register, place in zip((0x80, 0x90, 0xA0), places, strict=True):
            writes += [(register, place), (register + 4, source.choice((0, 0, 0, 1, 0xFFFF_FFFF)))]
        writes.append((0x44, 1))
    writes.append((0x70, 15))
    writes += [(0x50, source.choice((0, 0, 1, 2, 3, 0xFFFF))) for _ in range(source.randrange(1, 4))]
    if not source.randrange(3):
        writes.pop(source.randrange(len(writes)))
    return b"".join(_store(slot + register, value) for register, value in writes)


def _rings(source: random.Random) -> list[tuple[int, bytes]]:
    """Split virtqueues with chains of all kinds."""
    pieces = []
    for queue in range(3):
        base = RINGS + 0x400 * queue
        descriptors = b"".join(
            struct.pack(
                "<QIHH",
                source.choice((DATA, DATA + 0x400, base, _near(source), _quad(source))),
                source.choice((0, 1, 16, 44, 64, 0x1000, 0x1_0000, 0xFFFF_FFFF)),
                source.choice((0, 1, 2, 3, 4, 5, 0xFFFF)),
                source.choice((0, 1, 2, 7, 8, 0xFFFF)),
            )
            for _ in range(16)
        )
        heads = [source.choice((0, 1, 2, 7, 8, 0xFFFF)) for _ in range(16)]
        available = struct.pack(
            "<HH16H", source.choice((0, 1)), source.choice((0, 1, 2, 8, 9, 0xFFFF)), *heads
        )
        pieces += [(base, descriptors), (base + 0x100, available)]
    # What buffers hold: a vsock packet, or a request to the security module.
    packet = struct.pack("<QQIIIHHIII", 16, 3, 1024, 9000, 0, 1, source.randrange(10), 0, 65536, 0)
    pieces.append(
        (DATA, source.choice((packet, bytes.fromhex("6b4465736372696265 4e534d"), source.randbytes(64))))
    )
    return pieces


def _page_table(source: random.Random) -> bytes:
    """Change an entry, and perhaps flush it."""
    entry = BOOT_PAGE_TABLES + source.choice((0, 0x1000, 0x2000, 0x2008, 0x2010, 0x2FF8, 0x5FF0, 0xFF8))
    value = _entry(source)
    code = _store(entry, value) + _store(entry + 4, value >> 32)
    flush = (b"", bytes.fromhex("0f20d8 0f22d8"), bytes.fromhex("0f0138"), bytes.fromhex("0f013c2500802000"))
    return code + source.choice(flush)


def _damage_running(source: random.Random) -> bytes:
    address, data = _damage(source)
    low, high = struct.unpack("<II", data)
    return _store(address, low) + _store(address + 4, high)


def _stack(source: random.Random) -> bytes:
    return bytes.fromhex("48bc") + struct.pack("<Q", _quad(source))


def _memory(source: random.Random) -> bytes:
    """A load, store, jump or string operation at an address that may be anything."""
    operation = source.choice(
        (
            *(
                "488b18",
                "488918",
                "0fae00",
                "0fae08",
                "0fae10",
                "0f0100",
                "0f0108",
                "0f0110",
                "ffe0",
                "ffd0",
                "ff20",
            ),
            *(
                "48ff28",
                "480fc708",
                "f00fb118",
                "0f2800",
                "0f2900",
                "0fe700",
                "0f3898",
                "48cf",
                "0fae38",
                "ff30",
                "8f00",
            ),
        )
    )
    code = _mov_rax(_quad(source)) + bytes.fromhex(operation)
    if not source.randrange(4):
        code = (
            _mov_rax(_quad(source))
            + bytes.fromhex("4889c7 4889c6")
            + struct.pack("<BI", 0xB9, source.choice(EDGES))
        )
        code += source.choice(
            (b"\xf3\xaa", b"\xf3\x48\xa5", b"\xf3\xa4", b"\xf2\xae", b"\xf3\xa6", b"\xfd\xf3\xa4")
        )
    return code


def _self_modifying(source: random.Random) -> bytes:
    """Call next; pop rdi; mov dword [rdi+offset],random: code behind or before it."""
    offset = source.choice((10, 11, 12, 20, 0xF0))
    return (
        bytes.fromhex("e800000000 5f c747")
        + bytes([offset])
        + source.randbytes(4)
        + bytes.fromhex("90909090")
    )


def _loop(source: random.Random) -> bytes:
    """Back by some bytes, for ever or some times."""
    back = source.randrange(2, 100)
    return source.choice((b"\xeb", b"\x75", b"\x72", b"\xe2")) + bytes([256 - back])


def _bytes(source: random.Random) -> bytes:
    return source.randbytes(source.randrange(1, 16))


def _prefixed(source: random.Random) -> bytes:
    """An opcode of the two- and three-byte maps with prefixes, on a memory operand that is there."""
    prefixes = bytes(
        source.choices((0x66, 0xF2, 0xF3, 0xF0, 0x67, 0x2E, 0x64, 0x48, 0x4F), k=source.randrange(3))
    )
    opcode = source.choice(
        (
            b"\x0f",
            b"\x0f\x38",
            b"\x0f\x3a",
            b"\xc5\xf8",
            b"\xc4\xe2\x79",
            b"\xc4\xe3\x79",
            b"\x62\xf1\x7c\x48",
        )
    )
    return (
        _mov_rax(DATA + 0x400)
        + prefixes
        + opcode
        + source.randbytes(1)
        + source.choice((b"\x00", b"\xc1", b"\x40\x10"))
        + b"\x03"
    )


def _floating(source: random.Random) -> bytes:
    """x87, with whatever exceptions are not masked."""
    code = struct.pack("<BI", 0x68, source.getrandbits(11)) + bytes.fromhex("d92c24")
    return (
        code
        + b"".join(bytes([0xD8 + source.randrange(8), 0xC0 + source.randrange(64)]) for _ in range(3))
        + b"\x9b"
    )


Kind = Callable[[random.Random], bytes]
KINDS: Final[tuple[tuple[Kind, int], ...]] = (
    *(
        (_control, 6),
        (_msr, 6),
        (_table_register, 4),
        (_segment, 3),
        (_far_return, 3),
        (_interrupt_return, 5),
    ),
    *((_leave_long_mode, 2), (_event, 12), (_flags, 3), (_port, 4), (_device, 5), (_timer, 4), (_driver, 3)),
    *((_page_table, 4), (_damage_running, 6), (_stack, 3), (_memory, 6), (_self_modifying, 2), (_loop, 3)),
    *((_bytes, 4), (_prefixed, 3), (_floating, 2)),
)
"""The kinds of operations and how often each comes."""
