"""Verdicts: which forms give other results than they must."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from isa import layout
from isa.form import Form
from isa.layout import Field, differing_fields

FEATURES: Final = {
    # name: the doubleword of `Results.features`, and the bit
    "sse3": (2, 0),
    "pclmulqdq": (2, 1),
    "ssse3": (2, 9),
    "cx16": (2, 13),
    "sse4_1": (2, 19),
    "sse4_2": (2, 20),
    "movbe": (2, 22),
    "popcnt": (2, 23),
    "aes": (2, 25),
    "xsave": (2, 26),
    "avx": (2, 28),
    "fsgsbase": (5, 0),
    "bmi1": (5, 3),
    "bmi2": (5, 8),
    "lzcnt": (10, 5),
}
LOOKED_AT: Final = 32
"""For how many inputs the fields that differ are told apart, which takes its time."""
_UNCHANGED: Final = ((160, 416), (layout.GENERAL, layout.FLAGS), (layout.MEM_OPERAND, layout.RECORD_BYTES))


@dataclass(frozen=True, slots=True)
class Difference:
    """A form whose results are wrong."""

    form: Form
    inputs: int
    """For how many inputs."""
    fields: tuple[str, ...]
    """What is wrong, over all inputs."""
    example: str
    """One of the inputs, and what is wrong there."""

    @property
    def name(self) -> str:
        """For people: the code, and on which kind of inputs where that matters."""
        return f"{self.form.code} ({self.form.inputs})"


def offered(form: Form, features: Sequence[int]) -> bool:
    """Whether a processor with these features offers the form."""
    if not form.needs:
        return True
    word, bit = FEATURES[form.needs]
    return bool(features[word] >> bit & 1)


def judge(form: Form, ours: bytes, right: bytes) -> Difference | None:
    """Compare a form's results with the right ones."""
    if ours == right:
        return None
    size, wrong = layout.RECORD_BYTES, 0
    fields: dict[str, None] = {}
    example = ""
    for start in range(0, len(ours), size):
        mine, theirs = ours[start : start + size], right[start : start + size]
        if mine == theirs:
            continue
        if wrong >= LOOKED_AT and form.digits is None:
            wrong += 1
            continue
        differing = [
            field for field in differing_fields(mine, theirs) if not _close(form, field, mine, theirs)
        ]
        if not differing:
            continue
        wrong += 1
        fields.update(dict.fromkeys(field.name for field in differing))
        if not example:
            values = (f"{field.name} {field.of(mine):#x}, right {field.of(theirs):#x}" for field in differing)
            example = f"input {start // size}: {'; '.join(values)}"
    return Difference(form, wrong, tuple(fields), example) if wrong else None


def judge_refused(form: Form, ours: bytes, inputs: bytes) -> Difference | None:
    """See that a form gives an invalid opcode, and changes nothing."""
    size, wrong, example = layout.RECORD_BYTES, 0, ""
    for start in range(0, len(ours), size):
        record, before = ours[start : start + size], inputs[start : start + size]
        (trap,) = struct.unpack_from("<I", record, layout.TRAP)
        if trap == layout.INVALID_OPCODE and all(record[a:b] == before[a:b] for a, b in _UNCHANGED):
            continue
        wrong += 1
        example = example or f"input {start // size}: trap {trap:#x}, right {layout.INVALID_OPCODE:#x}"
    return Difference(form, wrong, ("trap",), example) if wrong else None


def _close(form: Form, field: Field, ours: bytes, right: bytes) -> bool:
    """Whether an approximation is as near as it must be."""
    if form.digits is None or not field.name.startswith(("st", "xmm")) or field.name == "stmxcsr":
        return False
    if field.name.startswith("st"):
        return _agree(_extended(field.of(ours)), _extended(field.of(right)), form.digits)
    return all(
        _agree(_single(field.of(ours) >> shift), _single(field.of(right) >> shift), form.digits)
        for shift in (0, 32, 64, 96)
    )


def _extended(bits: int) -> tuple[int, int, int]:
    return bits >> 79, bits >> 64 & 0x7FFF, bits & (1 << 64) - 1


def _single(bits: int) -> tuple[int, int, int]:
    exponent = bits >> 23 & 0xFF
    significand = (bits & 0x7F_FFFF) << 40 | (1 << 63 if exponent else 0)
    return bits >> 31 & 1, 0x7FFF if exponent == 0xFF else exponent, significand


def _agree(first: tuple[int, int, int], second: tuple[int, int, int], digits: int) -> bool:
    """Whether two numbers (sign, exponent, significand of 64 bits) agree in so many bits."""
    if first == second:
        return True
    if first[0] != second[0] or 0x7FFF in {first[1], second[1]} or abs(first[1] - second[1]) > 1:
        return False
    least = min(first[1], second[1])
    one, two = (significand << exponent - least for _, exponent, significand in (first, second))
    return abs(one - two) << digits <= max(one, two)
