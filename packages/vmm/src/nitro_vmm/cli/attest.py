"""``vmm attest``: a document of an enclave that runs, without asking the enclave."""

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import add_command, add_json, complain
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.errors import HostError, UsageError
from nitro_vmm.run.control import attest
from nitro_vmm.run.registry import directory_of, find

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

CONTENTS: Final = ("nonce", "user-data", "public-key")
FILE_BYTES_MAX: Final = 4096
"""More than any module takes."""

EXAMPLE: Final = """\
vmm attest hello --nonce 00ff --output document.cose
nsm verify document.cose --root test --nonce 00ff"""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "attest",
        execute,
        about="print an attestation document of an enclave's registers as they are now, for tests",
        example=EXAMPLE,
    )
    parser.add_argument("name", metavar="NAME", help="its name or id")
    for name in CONTENTS:
        parser.add_argument(f"--{name}", metavar="HEX|@FILE", help=f"the {name.replace('-', ' ')}")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write it, as it is")
    add_json(parser, "print JSON with the document as Base64")


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Ask its process."""
    if arguments.output is None and not arguments.json and sys.stdout.isatty():
        return complain(
            "a document is not text, and standard output is a terminal",
            hint="name a file by --output, or ask for --json",
            code=ExitCode.USAGE,
            name=codes.COMMAND_LINE,
        )
    contents = {}
    for option in CONTENTS:
        name = option.replace("-", "_")
        if (text := getattr(arguments, name)) is not None:
            contents[name] = _octets(text, f"--{option}")
    entry = find(arguments.name)
    document = attest(directory_of(entry), contents)
    if arguments.output is not None:
        try:
            arguments.output.write_bytes(document)
        except OSError as error:
            raise HostError(f"{arguments.output}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps({"EnclaveID": entry.id, "Document": base64.b64encode(document).decode()}, indent=2))
    elif arguments.output is None:
        sys.stdout.buffer.write(document)
    return ExitCode.ENDED


def _octets(text: str, option: str) -> bytes:
    if text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                return file.read(FILE_BYTES_MAX)
        except (OSError, ValueError) as error:
            raise HostError(f"{text[1:]}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not hexadecimal", hint="for the contents of a file write @FILE"
        ) from None
