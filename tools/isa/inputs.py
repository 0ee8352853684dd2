"""States of the processor to run forms on, made from a seed: edge cases and random ones, mixed.

The bytes come from SHAKE-256, so that a seed means the same on every version of Python.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

from isa.layout import FLAGS, GENERAL, MEM, MEM_OPERAND, RECORD_BYTES

INTEGERS: Final = (
    *(0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF),
    *(0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000),
    *(0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FFFF_FF80, 0x5555_5555_5555_5555),
    *(0xAAAA_AAAA_AAAA_AAAA, 0x0123_4567_89AB_CDEF, 0x00FF_00FF_00FF_00FF, 0x8080_8080_8080_8080),
)
SINGLES: Final = (
    *(0x0000_0000, 0x8000_0000, 0x3F80_0000, 0xBF80_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000),
    *(0xFFC0_0000, 0x7FC1_2345, 0x7F80_0001, 0xFFA0_0000, 0x7FBF_FFFF, 0x0000_0001, 0x8000_0001),
    *(0x007F_FFFF, 0x0080_0000, 0x8080_0000, 0x7F7F_FFFF, 0xFF7F_FFFF, 0x3F00_0000, 0x3FC0_0000),
    *(0x4020_0000, 0xBF00_0000, 0x4EFF_FFFF, 0x4F00_0000, 0xCF00_0000, 0xCF00_0001, 0x5F00_0000),
    *(0xDF00_0000, 0x4CBE_BC20, 0xCCBE_BC20, 0x3EAA_AAAB, 0x4049_0FDB, 0x4B00_0001, 0x3F7F_FFFF),
)
DOUBLES: Final = (
    *(0x0000_0000_0000_0000, 0x8000_0000_0000_0000, 0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000),
    *(0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000),
    *(0x7FF8_0000_1234_5678, 0x7FF0_0000_0000_0001, 0xFFF4_0000_0000_0000, 0x7FF7_FFFF_FFFF_FFFF),
    *(0x0000_0000_0000_0001, 0x8000_0000_0000_0001, 0x000F_FFFF_FFFF_FFFF, 0x0010_0000_0000_0000),
    *(0x7FEF_FFFF_FFFF_FFFF, 0xFFEF_FFFF_FFFF_FFFF, 0x3FE0_0000_0000_0000, 0x3FF8_0000_0000_0000),
    *(0x4004_0000_0000_0000, 0xBFE0_0000_0000_0000, 0x41DF_FFFF_FFC0_0000, 0x41E0_0000_0000_0000),
    *(0xC1E0_0000_0000_0000, 0xC1E0_0000_0020_0000, 0x43E0_0000_0000_0000, 0xC3E0_0000_0000_0000),
    *(0x4197_D784_0000_0000, 0x3FD5_5555_5555_5555, 0x4009_21FB_5444_2D18, 0x4330_0000_0000_0001),
    *(0x36A0_0000_0000_0000, 0x47EF_FFFF_F000_0000, 0x380F_FFFF_FFFF_FFFF, 0x3FEF_FFFF_FFFF_FFFF),
)
EXTENDED: Final = tuple(
    (sign << 15 | exponent, significand)
    for sign, exponent, significand in (
        *((0, 0, 0), (1, 0, 0), (0, 0x3FFF, 1 << 63), (1, 0x3FFF, 1 << 63), (0, 0x7FFF, 1 << 63)),
        *(
            (1, 0x7FFF, 1 << 63),
            (0, 0x7FFF, 3 << 62),
            (1, 0x7FFF, 3 << 62),
            (0, 0x7FFF, 0xC000_0000_1234_5678),
        ),
        *((0, 0x7FFF, 0x8000_0000_0000_0001), (0, 0x7FFF, 0xA000_0000_0000_0000), (0, 0, 1), (1, 0, 1)),
        *((0, 0, (1 << 63) - 1), (0, 0, 1 << 63), (0, 1, 1 << 63), (0, 0x7FFE, (1 << 64) - 1)),
        *((0, 0x3FFE, 1 << 63), (0, 0x3FFF, 3 << 62), (0, 0x4000, 0xA000_0000_0000_0000)),
        *(
            (1, 0x3FFE, 1 << 63),
            (0, 0x401D, 0xFFFF_FFFE_0000_0000),
            (0, 0x401E, 1 << 63),
            (1, 0x401E, 1 << 63),
        ),
        *(
            (0, 0x403D, (1 << 64) - 2),
            (0, 0x403E, 1 << 63),
            (1, 0x403E, 1 << 63),
            (0, 0x4000, 0xC90F_DAA2_2168_C235),
        ),
        *((0, 0x3FFD, 0xAAAA_AAAA_AAAA_AAAB), (0, 0x400D, 0xFFFE_0000_0000_0000), (1, 0x400E, 1 << 63)),
        *((0, 0x3FFF, 1 << 62), (0, 0x7FFF, 0), (0, 0x4039, 0xDE0B_6B3A_763F_FFF0), (0, 0x3FBE, 1 << 63)),
    )
)
DEFAULT_MXCSR: Final = 0x1F80
DEFAULT_CONTROL: Final = 0x037F


class Source:
    """Numbers from a seed."""

    def __init__(self, seed: str) -> None:
        self._seed, self._block, self._bytes = seed, 0, b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Random bytes."""
        while self._at + count > len(self._bytes):
            more = hashlib.shake_256(f"{self._seed}/{self._block}".encode()).digest(1 << 16)
            self._bytes, self._at = self._bytes[self._at :] + more, 0
            self._block += 1
        self._at += count
        return self._bytes[self._at - count : self._at]

    def number(self, bits: int) -> int:
        """A random number of some whole bytes."""
        return int.from_bytes(self.take(bits // 8), "little")

    def below(self, limit: int) -> int:
        """A number from 0; below 65536."""
        return self.number(32) % limit

    def choose(self, values: Sequence[int]) -> int:
        """One of them."""
        return values[self.below(len(values))]


def integer(source: Source) -> int:
    """A quadword for integer instructions."""
    match source.below(8):
        case 0 | 1 | 2:
            return source.choose(INTEGERS)
        case 3:
            return source.number(8)
        case 4:
            return 1 << source.below(64)
        case 5:
            return (source.choose(INTEGERS) + source.below(5) - 2) & (1 << 64) - 1
        case _:
            return source.number(64)


def single(source: Source) -> int:
    """A single-precision number."""
    match source.below(8):
        case 0 | 1 | 2:
            return source.choose(SINGLES)
        case 3:
            return source.number(32)
        case 4:  # near the ends of the range
            return source.number(32) & 0x807F_FFFF | source.choose((1, 2, 20, 100, 150, 200, 252, 254)) << 23
        case _:  # near 1, so that sums round and cancel
            return source.number(32) & 0x807F_FFFF | (120 + source.below(14)) << 23


def double(source: Source) -> int:
    """A double-precision number."""
    significand = source.number(64) & 0x800F_FFFF_FFFF_FFFF
    match source.below(8):
        case 0 | 1 | 2:
            return source.choose(DOUBLES)
        case 3:
            return source.number(64)
        case 4:
            return significand | source.choose((1, 2, 500, 870, 897, 1150, 1500, 2045, 2046)) << 52
        case _:
            return significand | (1016 + source.below(14)) << 52


def extended(source: Source) -> bytes:
    """A double-extended number, 10 bytes."""
    match source.below(8):
        case 0 | 1 | 2:
            head, significand = EXTENDED[source.below(len(EXTENDED))]
        case 3:
            head, significand = source.number(16), source.number(64) | 1 << 63
        case 4:  # with bits to spare in single and double precision
            head = source.number(16) & 0x8000 | 0x3FF8 + source.below(16)
            significand = (source.number(64) | 1 << 63) & ~((1 << source.choose((11, 40, 50))) - 1)
        case _:
            head = source.number(16) & 0x8000 | 0x3FF0 + source.below(80)
            significand = source.number(64) | 1 << 63
    return significand.to_bytes(8, "little") + head.to_bytes(2, "little")


def _integers(source: Source, count: int) -> bytes:
    return b"".join(integer(source).to_bytes(8, "little") for _ in range(count // 8))


def _singles(source: Source, count: int) -> bytes:
    return b"".join(single(source).to_bytes(4, "little") for _ in range(count // 4))


def _doubles(source: Source, count: int) -> bytes:
    return b"".join(double(source).to_bytes(8, "little") for _ in range(count // 8))


def _lanes(source: Source, count: int) -> bytes:
    """Integer vectors: bytes, words and doublewords at their edges, or random."""
    out = bytearray()
    while len(out) < count:
        match source.below(5):
            case 0:
                out += bytes(source.choose((0, 1, 0x7F, 0x80, 0x81, 0xFF, 0x55)) for _ in range(16))
            case 1:
                out += struct.pack("<8H", *(source.choose(INTEGERS) & 0xFFFF for _ in range(8)))
            case 2:
                out += struct.pack("<4I", *(source.choose(INTEGERS) & 0xFFFF_FFFF for _ in range(4)))
            case _:
                out += source.take(16)
    return bytes(out[:count])


def _texts(source: Source, count: int) -> bytes:
    """Strings of few letters, so that they match now and then; of bytes or words, with and without an end."""
    out = bytearray()
    while len(out) < count:
        letters = source.choose((2, 3, 5))
        first = source.choose((0x61, 0x80, 0xFE, 0x01))
        if source.below(2):
            piece = bytearray((first + source.below(letters)) & 0xFF for _ in range(16))
            if source.below(2):
                piece[source.below(16)] = 0
        else:
            words = [(first * 0x101 + source.below(letters)) & 0xFFFF for _ in range(8)]
            if source.below(2):
                words[source.below(8)] = 0
            piece = bytearray(struct.pack("<8H", *words))
        out += piece
    return bytes(out[:count])


def _record(kind: str, source: Source) -> bytes:
    fill = FILLS.get(kind, _integers)
    x87, tags_vary, lengths = kind in {"x87", "x87 stack"}, kind == "x87 stack", kind == "texts"
    record = bytearray(RECORD_BYTES)
    mxcsr = DEFAULT_MXCSR
    if source.below(2):
        mxcsr |= (
            source.below(4) << 13
            | source.choose((0, 0, 0x8000, 0x0040, 0x8040))
            | source.choose((0, 0, 0x3F))
        )
    control, top, tags = DEFAULT_CONTROL, 0, 0xFF
    status = 0
    if x87:
        control = 0x007F | source.choose((0x300, 0x300, 0x200, 0x000)) | source.below(4) << 10
        top = source.below(8)
        if tags_vary:
            tags = source.number(8)
        status = source.choose((0, 0, 0x3F, 0x4500))
    struct.pack_into("<HHB", record, 0, control, status | top << 11, tags)
    struct.pack_into("<I", record, 24, mxcsr)
    for register in range(8):
        record[32 + 16 * register : 42 + 16 * register] = (
            extended(source) if x87 else fill(source, 8) + b"\xff\xff"
        )
    record[160:416] = fill(source, 256)
    general = [integer(source) for _ in range(16)]
    general[4] = MEM + 64
    if lengths:
        for register in (0, 2):
            general[register] = (source.below(24) - 4 if source.below(4) else integer(source)) & (1 << 64) - 1
    struct.pack_into("<16Q", record, GENERAL, *general)
    struct.pack_into("<Q", record, FLAGS, source.number(16) & 0x0CD5 | 2)
    if x87:
        memory = b"".join(
            (extended(source) + bytes(6), _singles(source, 16), _doubles(source, 16), _integers(source, 16))[
                kind
            ]
            for kind in (0, 1, 2, 3, 0, 2, 1, 3)
        )
    else:
        memory = fill(source, 128)
    record[MEM_OPERAND : MEM_OPERAND + 128] = memory
    return bytes(record)


FILLS: Final[dict[str, Callable[[Source, int], bytes]]] = {
    "lanes": _lanes,
    "singles": _singles,
    "doubles": _doubles,
    "texts": _texts,
}
KINDS: Final = ("integer", *FILLS, "x87", "x87 stack")
"""What there is in the registers: integers, packed integers, floating-point numbers, strings with their
lengths in RAX and RDX, a full x87 stack, and one with registers that are empty."""


def make(kind: str, count: int, seed: int) -> bytes:
    """Some inputs; the first ones of a seed are always the same."""
    source = Source(f"{seed}/{kind}")
    return b"".join(_record(kind, source) for _ in range(count))
