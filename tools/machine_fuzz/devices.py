"""Random guests that turn to devices: every register of each, in every size, and virtqueues of every layout.

Their descriptor and page tables are orderly, so that what comes last in a guest is reached, too.
"""

import random
import struct
from collections.abc import Callable
from typing import Final

from machine_fuzz.guest import DATA, EDGES, MEMORY_BYTES, RINGS, Guest
from nitro_vmm.address_map import COM1, IO_APIC, LOCAL_APIC, virtio_slot

PAGE: Final = 0x1000
SLOTS: Final = tuple(virtio_slot(number).address for number in range(3))
"""The security module, vsock, and a slot that is empty."""
QUEUES: Final = (1, 3, 1)
BUFFERS: Final = 0x40_0000
"""Memory for what requests and packets hold, far from all tables."""
OPERATIONS_MAX: Final = 100
CODE_BYTES_MAX: Final = 0x1F00

NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1, EVENT_IDX, INDIRECT_DESC, SEQPACKET = 1 << 32, 1 << 29, 1 << 28, 1 << 1

# Ports with something behind them, and some with nothing: a PC's other devices, and exits of other emulators.
PORTS: Final = (
    *range(COM1, COM1 + 8),
    *(0x60, 0x61, 0x64, 0x70, 0x71, 0x20, 0x21, 0x40, 0x43, 0x80, 0x92, 0xCF8, 0xCFC, 0x501, 0xF4, 0x8900),
    *(0x600, 0x601, 0x603, 0x604),
)
ENDS: Final = (0x602, 0xCF9)
"""Ports that reset a machine; seldom, because they are the guest's end."""
REQUESTS: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "6b 4465736372696265 4e534d",  # DescribeNSM
        "69 47657452616e646f6d",  # GetRandom
        "a1 6b 4465736372696265504352 a1 65 696e646578 04",  # DescribePCR
        "a1 69 457874656e64504352 a2 65 696e646578 10 64 64617461 43 010203",  # ExtendPCR
        "a1 67 4c6f636b504352 a1 65 696e646578 10",  # LockPCR
        "a1 68 4c6f636b50435273 a1 65 72616e6765 18 20",  # LockPCRs
        "a1 6b 4174746573746174696f6e a0",  # Attestation
        "9f9f9f9f9f9f9f9f",  # arrays without an end
        "bb ffffffffffffffff",  # a map of 2**64 - 1 entries
    )
)


def make(seed: int) -> Guest:
    """The guest of a seed."""
    source = random.Random(seed)  # noqa: S311 - to be made again
    operations: list[bytes] = []
    tables = _queues(source)
    drivers = source.sample((0, 1), source.choice((0, 1, 2)))
    for slot in drivers:
        operations += _drive(source, slot)
    for _ in range(source.randrange(4, OPERATIONS_MAX)):
        (kind,) = source.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
        operations.append(kind(source))
    while sum(map(len, operations)) > CODE_BYTES_MAX:
        operations.pop()
    return Guest(tuple(operations), tuple(tables))


# Accesses


def _value(source: random.Random) -> int:
    match source.randrange(4):
        case 0:
            return source.choice(EDGES)
        case 1:
            return 1 << source.randrange(64)
        case 2:
            return source.choice((RINGS, BUFFERS, DATA, MEMORY_BYTES - 16, SLOTS[0], LOCAL_APIC))
        case _:
            return source.getrandbits(64)


def _load(address: int, size: int) -> bytes:
    """Mov eax,address; mov rbx,[rax], of this many bytes."""
    code = {1: "8a18", 2: "668b18", 4: "8b18", 8: "488b18"}[size]
    return struct.pack("<BI", 0xB8, address) + bytes.fromhex(code)


def _store(address: int, size: int, value: int) -> bytes:
    """Mov eax,address; mov rbx,value; mov [rax],rbx, of this many bytes."""
    code = {1: "8818", 2: "668918", 4: "8918", 8: "488918"}[size]
    mov = struct.pack("<BI", 0xB8, address) + b"\x48\xbb" + struct.pack("<Q", value & (1 << 64) - 1)
    return mov + bytes.fromhex(code)


def _access(source: random.Random, address: int, value: int) -> bytes:
    size = source.choice((4, 4, 4, 1, 2, 8))
    if not source.randrange(8):
        address += source.randrange(1, 8)
    return _load(address, size) if not source.randrange(3) else _store(address, size, value)


def _local_apic(source: random.Random) -> bytes:
    return _access(source, LOCAL_APIC + 16 * source.randrange(64), _value(source))


def _io_apic(source: random.Random) -> bytes:
    """Choose a register and use it; or anything in the page."""
    if not source.randrange(6):
        return _access(source, IO_APIC + 4 * source.randrange(PAGE // 4), _value(source))
    choose = _store(IO_APIC, 4, source.choice((0, 1, 2, source.randrange(0x10, 0x40), 0xFF)))
    redirection = source.randrange(0x20, 0x100) | source.getrandbits(9) << 8
    return choose + _access(source, IO_APIC + 0x10, source.choice((_value(source), redirection)))


def _virtio(source: random.Random) -> bytes:
    """A register or the configuration, or anything in the page."""
    offset = source.choice((4 * source.randrange(0x48), 4 * source.randrange(0x48), source.randrange(PAGE)))
    return _access(source, source.choice(SLOTS) + offset, _value(source))


def _notify(source: random.Random) -> bytes:
    slot = source.randrange(2)
    return _store(SLOTS[slot] + 0x50, 4, source.choice((0, 0, 1, 2, source.choice(EDGES))))


def _acknowledge(source: random.Random) -> bytes:
    return _store(source.choice(SLOTS) + 0x64, 4, source.choice((1, 2, 3, 0xFFFF_FFFF)))


def _set_up_again(source: random.Random) -> bytes:
    """Reset a device, or a queue of it, and perhaps drive it anew."""
    slot = source.randrange(2)
    match source.randrange(3):
        case 0:
            return _store(SLOTS[slot] + 0x70, 4, source.choice((0, 15, 11, 64, 128, 0xFF)))
        case 1:
            choose = _store(SLOTS[slot] + 0x30, 4, source.randrange(4))
            register = source.choice((0xC0, 0x44, 0x38, 0x80, 0x90, 0xA0))
            return choose + _store(SLOTS[slot] + register, 4, _value(source))
        case _:
            return b"".join(_drive(source, slot))


def _port(source: random.Random) -> bytes:
    """IN or OUT of one, two or four bytes, or strings of them."""
    port = source.choice(PORTS) if source.randrange(200) else source.choice(ENDS)
    code = struct.pack("<BIBI", 0xBA, port, 0xB8, _value(source) & 0xFFFF_FFFF)
    single = source.choice((b"\xee", b"\xef", b"\x66\xef", b"\xec", b"\xed", b"\x66\xed"))
    if source.randrange(6):
        return code + single
    several = source.choice((b"\xf3\x6e", b"\xf3\x6f", b"\xf3\x6c", b"\xf3\x66\x6d", b"\xf3\x6d"))
    registers = struct.pack("<BIBI", 0xBE, BUFFERS, 0xBF, BUFFERS + PAGE)
    return code + registers + struct.pack("<BI", 0xB9, source.choice((0, 1, 7, 300))) + several


def _indexed_port(source: random.Random) -> bytes:
    """A register of the clock, or a command of the keyboard controller, and what belongs to it."""
    if source.randrange(2):
        index, data, number = 0x70, 0x71, source.randrange(256)
    else:
        index, data, number = 0x64, 0x60, source.choice((0x20, 0x60, 0xAA, 0xD0, 0xD2, 0xD4, 0xF0, 0xA8))
    code = struct.pack("<BIB", 0xBA, index, 0xB0) + bytes([number & 0xFF]) + b"\xee"
    code += struct.pack("<BI", 0xBA, data)
    return code + (b"\xec" if source.randrange(2) else b"\xb0" + bytes([source.randrange(256)]) + b"\xee")


def _string(source: random.Random) -> bytes:
    """REP STOS or MOVS from, to and within devices."""
    places = (*SLOTS, LOCAL_APIC, IO_APIC, BUFFERS, MEMORY_BYTES - 64, SLOTS[2] + PAGE)
    there = source.choice(places) + source.choice((0, 0, 0x100, 0xFF8, 0xFFF))
    here = source.choice(places) + source.choice((0, 0, 0x50, 0xFFC))
    code = struct.pack("<BIBI", 0xBE, here, 0xBF, there) + struct.pack("<BI", 0xB9, source.choice((1, 2, 20)))
    return (
        code + bytes.fromhex("fc") + source.choice((b"\xf3\xab", b"\xf3\xa5", b"\xf3\xa4", b"\xf3\x48\xa5"))
    )


def _odd_instruction(source: random.Random) -> bytes:
    """Exchange, lock, fill or jump to a register of a device."""
    address = source.choice((*SLOTS, LOCAL_APIC, IO_APIC)) + source.choice(
        (0, 0x50, 0x70, 0x80, 0x100, 0x300)
    )
    operation = (
        "8700",
        "f00fb118",
        "f00fc118",
        "0fae00",
        "660f6f00",
        "660f7f00",
        "f00fba2803",
        "0f0d00",
        "480fc708",
    )
    return struct.pack("<BI", 0xB8, address) + bytes.fromhex(source.choice(operation))


def _run(source: random.Random) -> bytes:
    """Interrupts on, and wait for one or go round for a moment."""
    if source.randrange(3):
        return b"\xfb" + struct.pack("<BI", 0xB9, source.choice((10, 1000))) + bytes.fromhex("f3 90 e2fc fa")
    timer = _store(LOCAL_APIC + 0xF0, 4, 0x1FF) + _store(LOCAL_APIC + 0x320, 4, 0x30)
    return timer + _store(LOCAL_APIC + 0x380, 4, 1000) + bytes.fromhex("fb f4 fa")


# Drivers and their queues


def _place(queue: int) -> int:
    """Where a queue lies: the security module's is the first, and vsock's are the others."""
    return RINGS + 0x2000 * queue


def _drive(source: random.Random, slot: int) -> list[bytes]:
    """Set a device up as a driver does, with queues that lie well or not."""
    base = SLOTS[slot]
    offered = (0, EVENT_IDX | INDIRECT_DESC, INDIRECT_DESC | SEQPACKET, SEQPACKET) if slot else (0,)
    features = VERSION_1 | source.choice(offered)
    if not source.randrange(10):
        features = _value(source)
    writes = [(0x70, 0), (0x70, 1), (0x70, 3)]
    for word in (0, 1):
        writes += [(0x24, word), (0x20, features >> 32 * word & 0xFFFF_FFFF)]
    writes.append((0x70, 11))
    for queue in range(QUEUES[slot]):
        size = source.choice((8, 8, 8, 8, 8, 16, 4, 2, 1, 128)) if slot else source.choice((2, 2, 2, 1, 4))
        place = _place(slot + queue)
        places = [place, place + 0x800, place + 0x1000]
        match source.randrange(20):
            case 0:  # overlapping
                places[source.randrange(3)] = places[source.randrange(3)] + source.choice((0, 2, 16))
            case 1:  # over the end of memory, in a hole, in a device, or misaligned
                wrong = (
                    MEMORY_BYTES - 16,
                    MEMORY_BYTES,
                    SLOTS[0],
                    LOCAL_APIC,
                    1 << 40,
                    (1 << 64) - 16,
                    0x9FC01,
                )
                places[source.randrange(3)] = source.choice(wrong)
            case 2:
                size = source.choice((0, 3, 5, 0x8000, 0xFFFF, 0x1_0000))
            case _:
                pass
        writes += [(0x30, queue), (0x38, size)]
        for register, place in zip((0x80, 0x90, 0xA0), places, strict=True):
            writes += [(register, place & 0xFFFF_FFFF), (register + 4, place >> 32)]
        writes.append((0x44, 1))
    writes += [(0x70, 15), *((0x50, queue) for queue in range(QUEUES[slot]))]
    if not source.randrange(10):
        writes.pop(source.randrange(len(writes)))
    return [_store(base + register, 4, value) for register, value in writes]


def _packet(source: random.Random) -> bytes:
    """A vsock packet: header, and perhaps what it says that it has."""
    length = source.choice((0, 0, 5, 100, 4096, 0x1_0000, 0xFFFF_FFFF))
    header = struct.pack(
        "<QQIIIHHIII",
        *(source.choice((16, 16, 16, 3, 0, 1 << 63)), source.choice((3, 3, 2, 16, 1, (1 << 64) - 1))),
        *(source.choice((1024, 0, 9000, 0xFFFF_FFFF)), source.choice((9000, 9000, 5, 0, 0xFFFF_FFFF))),
        *(length, source.choice((1, 1, 1, 2, 0, 0xFFFF)), source.choice((*range(9), 0xFFFF))),
        *(source.choice((0, 1, 2, 3, 4, 0xFFFF_FFFF)), source.choice((65536, 0, 1, 0xFFFF_FFFF))),
        source.choice((0, 1, 0xFFFF_FFFF)),
    )
    return header + source.randbytes(min(length, 256))


def _queues(source: random.Random) -> list[tuple[int, bytes]]:
    """Split virtqueues of good and bad chains, and what their buffers hold."""
    pieces = []
    for queue in range(4):
        contents = (_request(source), b"", _packet(source), b"")[queue]
        reads = bool(contents)
        writes = queue != 2  # the queue on which vsock sends has nothing to write to
        buffers = BUFFERS + 0x10000 * queue
        place, table = _place(queue), _place(queue) + 0x400
        pieces += [
            (at, _chains(source, buffers, len(contents), table, reads=reads, writes=writes))
            for at in (place, table)
        ]
        pieces += [(buffers, contents), (place + 0x800, _available(source, 1 if not queue else 4))]
    return pieces


def _request(source: random.Random) -> bytes:
    request = source.choice(REQUESTS)
    if source.randrange(3):
        return request
    damaged = bytearray(request)
    damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
    return bytes(damaged) + source.randbytes(source.choice((0, 3, 200)))


def _chains(
    source: random.Random, buffers: int, length: int, indirect: int, *, reads: bool, writes: bool
) -> bytes:
    """Sixteen descriptors in pairs: what the device reads and what it writes to; some are spoilt."""
    descriptors = []
    for number in range(16):
        to_write = number % 2 if reads and writes else writes
        address = buffers + (0x1000 + 0x200 * number if to_write else 0)
        size, flags, follower = (0x3000 if to_write else length), (WRITE if to_write else 0), number + 1
        if not number % 2 and (writes or not source.randrange(4)):
            flags |= NEXT
        match source.randrange(24):
            case 0:
                flags = source.choice((0, NEXT, WRITE, NEXT | WRITE, 0xFFFF))
            case 1:  # a loop, or out of the table
                flags, follower = (
                    flags | NEXT,
                    source.choice((0, number, number - 1 & 0xFFFF, 16, 128, 0xFFFF)),
                )
            case 2:
                wrong = (
                    MEMORY_BYTES - 8,
                    MEMORY_BYTES,
                    SLOTS[1],
                    LOCAL_APIC,
                    1 << 63,
                    (1 << 64) - 8,
                    0xA_0000,
                )
                address = source.choice(wrong)
            case 3:
                size = source.choice((0, 1, 43, 44, 45, 0x1000, 0x100_0000, 0xFFFF_FFFF))
            case 4:  # itself a table, of good or bad size
                flags, address = INDIRECT, indirect
                size = source.choice((32, 256, 0, 8, 33, 0x10_0000, 0xFFFF_FFF0))
            case _:
                pass
        descriptors.append(struct.pack("<QIHH", address, size, flags, follower))
    return b"".join(descriptors)


def _available(source: random.Random, chains: int) -> bytes:
    """The ring of chains that are ready: heads as they should be, or not."""
    heads = [2 * (number % chains) for number in range(128)]
    for _ in range(source.choice((0, 0, 0, 0, 1, 20))):
        heads[source.randrange(16)] = source.choice((0, 1, 15, 16, 127, 128, 0xFFFF))
    index = source.choice((1, 1, 2, 2, chains, chains, 8, 0, 16, 0xFFFF))
    ring = struct.pack("<HH128H", source.choice((0, 0, 1, 0xFFFF)), index, *heads)
    return ring + struct.pack("<H", source.choice((0, 1, 0xFFFF)))


def _publish(source: random.Random) -> bytes:
    """Say that more, fewer or other chains are ready, and notify."""
    queue = source.randrange(4)
    indices = (2, 3, 4, 5, 6, 7, 8, 12, 0x8000) if queue else (1, 2, 2, 3, 4, 0x8000)
    index = _store(_place(queue) + 0x802, 2, source.choice(indices))
    return index + _store(SLOTS[1 if queue else 0] + 0x50, 4, max(queue - 1, 0))


def _rewrite(source: random.Random) -> bytes:
    """Change a ring, or what a buffer holds, under the device's eyes."""
    place = _place(source.randrange(4)) + source.choice((0, 0x400, 0x800, 0x1000)) + 4 * source.randrange(64)
    return _store(source.choice((place, place, BUFFERS + source.randrange(0x40000))), 4, _value(source))


Kind = Callable[[random.Random], bytes]
KINDS: Final[tuple[tuple[Kind, int], ...]] = (
    *((_local_apic, 6), (_io_apic, 5), (_virtio, 8), (_port, 8), (_indexed_port, 4), (_string, 3)),
    *(
        (_odd_instruction, 2),
        (_notify, 5),
        (_publish, 8),
        (_rewrite, 5),
        (_acknowledge, 3),
        (_set_up_again, 3),
    ),
    (_run, 3),
)
"""The kinds of operations and how often each comes."""
