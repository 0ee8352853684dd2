"""Where the harness, its inputs and its results lie in memory, and how a state of the processor is laid out.

The addresses are the same on both sides, and below 2 GiB, so that code can name them without a register.
``harness.s`` gets them as symbols.
"""

from typing import Final, NamedTuple

BASE: Final = 0x1000_0000
"""The harness, with all forms."""
CODE_BYTES: Final = 0x60_0000
CONTROL: Final = BASE + CODE_BYTES
"""What to run, see `CONTROL_WORDS`."""
CONTROL_WORDS: Final = ("first_form", "forms", "inputs", "results")
"""Quadwords: the first form, how many, how many inputs each, and where the results go."""
FEATURES: Final = CONTROL + 0x100
"""What CPUID said: `FEATURE_WORDS` doublewords."""
FEATURE_WORDS: Final = 16
STATE: Final = CONTROL + 0x400
"""The result in the making."""
MEM: Final = CONTROL + 0x1000 - 64
"""The memory operand, `MEM_BYTES`, across the boundary of two pages."""
MEM_BYTES: Final = 128
SCRATCH_STACK: Final = CONTROL + 0x8000
"""The top of the harness's own stack."""
SIGNAL_STACK: Final = CONTROL + 0x10000
SIGNAL_STACK_BYTES: Final = 0x2_0000
EXCEPTION_STACK: Final = SIGNAL_STACK + SIGNAL_STACK_BYTES
"""The top of the stack that exceptions are delivered on."""
INPUTS: Final = BASE + 0x80_0000
RECORD_BYTES: Final = 832

# A record: 512 bytes as FXSAVE64 writes them, and then these.
GENERAL: Final = 512
GENERAL_NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
FLAGS: Final = 640
TRAP: Final = 648
"""The exception's number, or `NO_TRAP`; the error code follows (u32 both)."""
TRAP_OFFSET: Final = 656
"""Where the exception said that it was, counted from the form's first byte."""
MXCSR: Final = 664
"""As STMXCSR wrote it."""
MEM_OPERAND: Final = 704

NO_TRAP: Final = 0xFFFF_FFFF
INVALID_OPCODE: Final = 6


class Field(NamedTuple):
    """A part of a record that has a name."""

    name: str
    offset: int
    size: int
    mask: int = -1

    def of(self, record: bytes) -> int:
        """Its value."""
        return int.from_bytes(record[self.offset : self.offset + self.size], "little") & self.mask


FIELDS: Final = (
    Field("fcw", 0, 2),
    Field("x87 exceptions", 2, 2, 0x80FF),
    Field("x87 conditions", 2, 2, 0x4500),
    Field("x87 C1", 2, 2, 0x0200),
    Field("x87 top", 2, 2, 0x3800),
    Field("ftw", 4, 1),
    Field("mxcsr flags", 24, 4, 0x3F),
    Field("mxcsr", 24, 4, 0xFFFF_FFC0),
    *(Field(f"st{number}", 32 + 16 * number, 10) for number in range(8)),
    *(Field(f"xmm{number}", 160 + 16 * number, 16) for number in range(16)),
    *(Field(name, GENERAL + 8 * number, 8) for number, name in enumerate(GENERAL_NAMES)),
    Field("flags", FLAGS, 8),
    Field("trap", TRAP, 4),
    Field("error code", TRAP + 4, 4),
    Field("trap offset", TRAP_OFFSET, 8),
    Field("stmxcsr", MXCSR, 4),
    Field("mem", MEM_OPERAND, MEM_BYTES),
)


def differing_fields(first: bytes, second: bytes) -> list[Field]:
    """Which fields of two records differ."""
    return [field for field in FIELDS if field.of(first) != field.of(second)]
