"""``vmm cache``: what is kept to start faster, and how to be rid of it."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Final

from nitro_vmm.cache import Cache, CacheEntry
from nitro_vmm.cli.command import add_command, add_json
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.errors import UsageError

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

MIB: Final = 1 << 20
UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60))


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    cache = add_command(
        commands,
        "cache",
        execute,
        about="show or remove what is kept to start faster",
        example="vmm cache\nvmm cache rm kernel-1f0c6a5b\nvmm cache clear",
    )
    cache.add_argument(
        "action", nargs="?", choices=["list", "rm", "clear"], default="list", help="default: list"
    )
    cache.add_argument("names", nargs="*", metavar="NAME", help="with rm: the entries, or how they begin")
    add_json(cache)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """List or remove."""
    cache = Cache()
    if arguments.names and arguments.action != "rm":
        raise UsageError(f"{arguments.action} takes no names", hint="vmm cache rm NAME")
    match arguments.action:
        case "rm":
            shown = _chosen(cache, arguments.names)
            for entry in shown:
                cache.remove(entry.name)
        case "clear":
            shown = cache.clear()
        case _:
            shown = cache.entries()
    if arguments.json:
        print(json.dumps(_as_json(cache, shown), indent=2))
    elif arguments.action == "list":
        for line in _table(cache, shown):
            print(line)
    else:
        print(f"removed {len(shown)}, {sum(entry.bytes for entry in shown) / MIB:.1f} MiB")
    return ExitCode.ENDED


def _chosen(cache: Cache, names: list[str]) -> list[CacheEntry]:
    if not names:
        raise UsageError("say which", hint="vmm cache rm NAME; vmm cache clear removes all")
    entries, chosen = cache.entries(), {}
    for name in names:
        found = [entry for entry in entries if entry.name.startswith(name)] if name else []
        if len(found) != 1:
            what = "several entries begin with" if found else "the cache has no"
            raise UsageError(f"{what} {name!r}", hint="vmm cache shows what there is")
        chosen[found[0].name] = found[0]
    return list(chosen.values())


def _as_json(cache: Cache, entries: list[CacheEntry]) -> dict[str, object]:
    return {
        "Directory": str(cache.directory),
        "BytesMax": cache.bytes_max,
        "Bytes": sum(entry.bytes for entry in entries),
        "Entries": [entry._asdict() for entry in entries],
    }


def _table(cache: Cache, entries: list[CacheEntry]) -> list[str]:
    now = time.time()
    rows = [("NAME", "MIB", "MADE", "USED")]
    rows += [
        (
            f"{entry.kind}-{entry.name.partition('-')[2][:12]}",
            f"{entry.bytes / MIB:.1f}",
            _age(now - entry.made_at),
            _age(now - entry.used_at),
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    total = sum(entry.bytes for entry in entries) / MIB
    return [
        *(line.rstrip() for line in lines),
        f"{total:.1f} of {cache.bytes_max / MIB:.0f} MiB in {cache.directory}",
    ]


def _age(seconds: float) -> str:
    for unit, length in UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
