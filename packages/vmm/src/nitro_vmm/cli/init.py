"""``vmm init``: a starter project, whose files lie in `nitro_vmm.starter`."""

import argparse
import json
import os
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import add_command, add_json
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.errors import HostError, UsageError

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

DOT: Final = "dot-"
"""How names begin that begin with a dot in the project, so that no tool of ours obeys the files."""
SUFFIX: Final = ".in"
"""How names end of files that our own tools would take for ours."""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "init",
        execute,
        about="begin a project: an application, its image, a test with pytest, a GitHub workflow",
        example="vmm init my-enclave && make -C my-enclave test",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", default=Path(), help="where (default: here)"
    )
    add_json(parser, "print the files as a JSON list")


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Write the files, none of which may be there."""
    directory: Path = arguments.directory
    if not str(directory).isprintable():
        raise UsageError(
            f"{directory} has characters that cannot be printed",
            hint="give a directory whose name is of letters, digits, spaces and punctuation",
        )
    starter = dict(_walk(files("nitro_vmm.starter"), Path()))
    present = [str(directory / name) for name in starter if os.path.lexists(directory / name)]
    if present:
        raise UsageError(
            f"there is {', '.join(sorted(present))} already", hint="give a new directory: vmm init DIR"
        )
    for name, content in sorted(starter.items()):
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
        except OSError as error:
            raise HostError(
                f"{path}: {error.strerror}", hint="give a directory that can be written"
            ) from error
    names = sorted(map(str, starter))
    if arguments.json:
        print(json.dumps(names))
        return ExitCode.ENDED
    print("\n".join(names))
    return ExitCode.ENDED


def _walk(folder: Traversable, place: Path) -> Iterator[tuple[Path, bytes]]:
    """The files of the project: their places and contents."""
    for entry in folder.iterdir():
        if entry.name.startswith("__"):  # Python's own
            continue
        name = entry.name.removesuffix(SUFFIX)
        name = f".{name.removeprefix(DOT)}" if name.startswith(DOT) else name
        if entry.is_dir():
            yield from _walk(entry, place / name)
        else:
            yield place / name, entry.read_bytes()
