"""What a form is."""

from dataclasses import dataclass
from typing import Final

CF: Final = 1 << 0
PF: Final = 1 << 2
AF: Final = 1 << 4
ZF: Final = 1 << 6
SF: Final = 1 << 7
DF: Final = 1 << 10
OF: Final = 1 << 11
ALL: Final = CF | PF | AF | ZF | SF | DF | OF

STATUS: Final = 0xFFFF
"""The whole status word of the x87; TOP and exceptions, and the condition codes C0 to C3."""
NO_CONDITIONS: Final = 0xB8FF
"""Without C0 to C3."""
C1: Final = 0x0200


@dataclass(frozen=True, slots=True)
class Form:
    """One instruction with its kinds of operands, or a few that belong together."""

    code: str
    """For the assembler, Intel syntax; instructions are parted by semicolons. It is the form's name, too."""
    inputs: str = "integer"
    """Which inputs it runs on, see `inputs.KINDS`."""
    flags: int = ALL
    """The flags that it leaves defined."""
    status: int = STATUS
    """The bits of the x87 status word that it leaves defined."""
    needs: str = ""
    """The feature of CPUID that offers it; what every 64-bit processor has needs none."""
    refused: bool = False
    """Whether a processor without the feature must answer with an invalid opcode, and ours has none."""
    by_record: bool = False
    """Whether the recorded results count and not this machine's, because virtual machines get it wrong."""
    digits: int | None = None
    """How many bits of a result must agree, where processors may approximate; all, if it is None."""
    multimedia: bool = False
    """An MMX instruction."""
    group: str = ""
    """What it is counted under."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text: a readable table of mnemonics."""
    return tuple(text.split())
