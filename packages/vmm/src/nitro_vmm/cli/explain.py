"""``vmm explain``: what a code means, and what to do."""

import argparse
import json
from typing import TYPE_CHECKING

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import add_command, add_json, complain
from nitro_vmm.cli.exit_code import EXPLANATIONS, ExitCode
from nitro_vmm.cli.explanations import EXPLAINED

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "explain",
        execute,
        about="what an exit code (5), an error (M15), a cause (B03) or nitro-cli's error (E26) means",
        example="vmm explain B03",
    )
    parser.add_argument("code", metavar="CODE", help="as it was printed")
    add_json(parser)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Look it up."""
    text = explanation(arguments.code.strip("()").upper())
    if text is None:
        return complain(
            f"there is no code {arguments.code}",
            hint="exit codes are numbers, errors M, H, I, N or V, causes B01 to B15, nitro-cli's E00 to E60",
            code=ExitCode.USAGE,
            name=codes.COMMAND_LINE,
        )
    print(json.dumps({"Code": arguments.code, "Explanation": text}) if arguments.json else text)
    return ExitCode.ENDED


def explanation(code: str) -> str | None:
    """What a code means; `None` if there is no such code."""
    if code.isdecimal() and int(code) in EXPLANATIONS:
        meaning, remedy = EXPLANATIONS[int(code)]
        return f"exit code {int(code)}: {meaning}.\nWhat to do: {remedy}."
    if code.isdecimal() and 128 < int(code) < 193:
        return f"exit code {int(code)}: vmm was ended by signal {int(code) - 128}."
    if code in EXPLAINED:
        explained = EXPLAINED[code]
        return f"{code}: {explained.what}.\nWhy: {explained.why}.\nWhat to do: {explained.remedy}."
    if code.startswith("E"):
        from nitro_vmm.cli.nitro.errors import ERRORS, explanation  # noqa: PLC0415

        return explanation(code) if code in ERRORS else None
    from nitro_vmm.enclave.causes import CAUSES  # noqa: PLC0415 - loads what enclaves need

    for cause in CAUSES:
        if cause.code == code:
            return f"{cause.code}: {cause.message}.\nWhat to do: {cause.hint}."
    return None
