"""The harness and a table of forms, assembled into one flat program."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from isa import layout
from isa.form import Form
from isa.inputs import KINDS

HARNESS = Path(__file__).with_name("harness.s")
SYMBOLS = (
    "BASE",
    "CONTROL",
    "FEATURES",
    "STATE",
    "MEM",
    "SCRATCH_STACK",
    "SIGNAL_STACK",
    "SIGNAL_STACK_BYTES",
)
OWN_FLAGS = 0xCD5


class AssembleError(Exception):
    """The assembler is missing or refuses; the message says why."""


def source(forms: Sequence[Form], inputs: int) -> str:
    """The program's text.

    Args:
        forms: in the order of the table.
        inputs: how many there are of each kind.
    """
    kinds = {kind: layout.INPUTS + number * inputs * layout.RECORD_BYTES for number, kind in enumerate(KINDS)}
    lines = [f".set {name}, {getattr(layout, name):#x}" for name in (*SYMBOLS, "EXCEPTION_STACK")]
    lines.append(HARNESS.read_text())
    for number, form in enumerate(forms):
        lines.append(f"form_{number}:")
        lines += form.code.split(";")
        lines.append("jmp save")
    lines += [".balign 32", "table:"]
    lines += [
        f".quad form_{number}, {form.flags & OWN_FLAGS:#x}, {form.status:#x}, {kinds[form.inputs]:#x}"
        for number, form in enumerate(forms)
    ]
    return "\n".join((*lines, ""))


def assemble(forms: Sequence[Form], inputs: int) -> bytes:
    """The program, to be put at `layout.BASE`.

    Raises:
        AssembleError: there is no assembler, or it refuses a form.
    """
    with tempfile.TemporaryDirectory(prefix="isa-") as scratch:
        text, thing, program = (Path(scratch, name) for name in ("isa.s", "isa.o", "isa"))
        text.write_text(source(forms, inputs))
        _run("as", "--64", "-o", thing, text)
        _run(
            "ld",
            "-Ttext",
            f"{layout.BASE:#x}",
            "--oformat",
            "binary",
            "-e",
            "guest_entry",
            "-o",
            program,
            thing,
        )
        code = program.read_bytes()
    if len(code) > layout.CODE_BYTES:
        raise AssembleError(f"the forms take {len(code)} bytes, and there are {layout.CODE_BYTES}")
    return code


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise AssembleError(f"there is no {command[0]}; Debian's package is binutils") from error
    if done.returncode:
        raise AssembleError(f"{command[0]}: {done.stderr[:2000]}")
