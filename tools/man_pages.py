"""Write the manual pages of all commands, from their parsers: ``python tools/man_pages.py``.

Each goes into its package's ``man`` folder, which git ignores. The build takes it from there into the wheel
(``share/man/man1``). What a page says is what ``--help`` says, in the form of man-pages(7).
"""

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent


class Manual(NamedTuple):
    """One page."""

    command: str
    package: str
    """The folder below ``packages``."""
    module: str
    """Where ``parser()`` is."""
    see_also: tuple[str, ...]


MANUALS: Final = (
    Manual("vmm", "vmm", "nitro_vmm.cli.main", ("nitro-cli", "eif", "nsm", "vhost-user-vsock")),
    Manual("nitro-cli", "vmm", "nitro_vmm.cli.nitro.main", ("vmm", "eif")),
    Manual("eif", "eif", "nitro_eif.cli", ("vmm", "nsm")),
    Manual("nsm", "nsm", "nitro_nsm.cli", ("vmm", "eif")),
    Manual("vhost-user-vsock", "vsock", "nitro_vsock.arguments", ("vmm", "vsock-proxy")),
    Manual("vsock-proxy", "vsock", "nitro_vsock.vsock_proxy", ("vmm", "vhost-user-vsock")),
)


def escaped(text: str) -> str:
    """Text for roff: backslashes and hyphens as they are, and no line that looks like a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def paragraph(text: str) -> str:
    """Running text, with its white space taken together."""
    return escaped(" ".join(text.split()))


def page(manual: Manual, parser: argparse.ArgumentParser, release: str) -> str:
    """The page of a command with all its subcommands."""
    about = " ".join((parser.description or "").split()).rstrip(".")
    lines = [
        f'.TH "{manual.command.upper()}" "1" "{date()}" "{manual.command} {release}" "User Commands"',
        ".SH NAME",
        f"{escaped(manual.command)} \\- {escaped(about)}",
        ".SH SYNOPSIS",
        *synopsis(parser),
        ".SH DESCRIPTION",
        paragraph(parser.description or ""),
        ".SH OPTIONS",
        *options(parser),
    ]
    for name, sub in subcommands(parser):
        lines += [f'.SH "{escaped(f"{manual.command} {name}".upper())}"', *synopsis(sub)]
        lines += [
            ".PP",
            paragraph(sub.description or name),
            *options(sub),
            *nested(manual.command, name, sub),
        ]
        lines += epilogue(sub.epilog, heading=".SS")
    lines += epilogue(parser.epilog, heading=".SH")
    others = ", ".join(f"\\fB{escaped(other)}\\fR(1)" for other in manual.see_also)
    lines += [".SH SEE ALSO", others]
    return "\n".join(line for line in lines if line) + "\n"


def version(package: str) -> str:
    """Of a distribution, which need not be installed."""
    manifest = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
    return str(manifest["project"]["version"])


def date() -> str:
    """Today, or the day that reproducible builds are told (``SOURCE_DATE_EPOCH``)."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if told is None else datetime.fromtimestamp(int(told), UTC)
    return f"{moment:%Y-%m-%d}"


def nested(command: str, name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Commands below a subcommand."""
    for inner, sub in subcommands(parser):
        yield f'.SS "{escaped(f"{command} {name} {inner}")}"'
        yield from synopsis(sub)
        yield ".PP"
        yield paragraph(sub.description or inner)
        yield from options(sub)


def synopsis(parser: argparse.ArgumentParser) -> Iterator[str]:
    """How it is called."""
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    rest = usage.removeprefix(parser.prog)
    yield f"\\fB{escaped(parser.prog)}\\fR{escaped(rest)}"


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What each argument does; commands are listed apart."""
    formatter = parser._get_formatter()  # noqa: SLF001 - as argparse's own help does
    for action in parser._actions:  # noqa: SLF001
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        names = formatter._format_action_invocation(action)  # noqa: SLF001
        yield ".TP"
        yield f"\\fB{escaped(names)}\\fR"
        yield paragraph(formatter._expand_help(action) if action.help else names)  # noqa: SLF001


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Their names and parsers, in the order of the help text."""
    for action in parser._actions:  # noqa: SLF001 - argparse shows them nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            yield from action.choices.items()


def epilogue(text: str | None, *, heading: str) -> Iterator[str]:
    """Examples and exit codes, as they stand: a line that ends with a colon begins a section."""
    body: list[str] = []
    for line in [*(text or "").splitlines(), None]:
        if line is None or re.fullmatch(r"\S.*:", line):
            if any(body):
                yield from (".nf", *(escaped(one) or ".sp" for one in _trimmed(body)), ".fi")
            body = []
            if line is not None:
                yield f'{heading} "{escaped(line.rstrip(":").upper())}"'
        else:
            body.append(line)


def _trimmed(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines = lines[:-1]
    while lines and not lines[0]:
        lines = lines[1:]
    return lines


def write(directory: Path) -> list[Path]:
    """Write all pages below ``directory``, where the packages are; returns their paths."""
    written = []
    for manual in MANUALS:
        make = import_module(manual.module).parser
        parser = make(whole=True) if manual.command == "eif" else make()
        path = directory / manual.package / "man" / f"{manual.command}.1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(manual, parser, version(manual.package)))
        written.append(path)
    return written


def main() -> int:
    """Write them into the packages."""
    for path in write(ROOT / "packages"):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
