"""``vmm ps``, ``vmm describe`` and ``vmm stats``: what runs, and what has ended."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from nitro_vmm.cli.command import add_command, add_json
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.measurements import shown_measurements
from nitro_vmm.run.control import stats
from nitro_vmm.run.registry import Entry, alive, directory_of, entries, find

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

COLUMNS = ("NAME", "STATUS", "CID", "MEMORY", "MODE", "IMAGE")


def add(commands: "Subparsers") -> None:
    """Add the commands to the parser."""
    ps = add_command(
        commands,
        "ps",
        execute,
        about="list the enclaves that run in the background",
        example="vmm ps --all --json",
    )
    ps.add_argument("--all", "-a", action="store_true", help="those that have ended, too")
    add_json(ps)
    for name, run, about in (
        ("describe", execute_describe, "all about one enclave, as JSON"),
        ("stats", execute_stats, "what an enclave uses, as JSON"),
    ):
        one = add_command(commands, name, run, about=about, example=f"vmm {name} hello")
        one.add_argument("name", metavar="NAME", help="its name or id")
        add_json(one, "as JSON, which is the only form")


def as_json(entry: Entry) -> dict[str, Any]:
    """An enclave of the registry."""
    return {
        "Name": entry.name,
        "Status": entry.status,
        "EnclaveID": entry.id,
        "EnclaveCID": entry.cid,
        "ProcessID": entry.pid,
        "MemoryMiB": entry.memory_mib,
        "Image": entry.image,
        **shown_measurements(entry.measurements, debug_mode=entry.debug_mode),
        "Mode": "debug" if entry.debug_mode else "production",
        "StartedAt": round(entry.started_at, 3),
        "HeartbeatSeconds": entry.booted_s,
        "Published": entry.published,
        "KMS": entry.kms,
        "End": entry.report,
    }


def status_of(entry: Entry) -> str:
    """Its state in a word or two."""
    if entry.report is not None:
        return f"ended ({entry.report['ExitCode']})"
    return "booted" if entry.booted_s is not None and alive(entry) else entry.status


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """List them."""
    shown = [entry for entry in entries() if arguments.all or alive(entry)]
    if arguments.json:
        print(json.dumps([as_json(entry) for entry in shown], indent=2))
        return ExitCode.ENDED
    rows = [COLUMNS, *(_row(entry) for entry in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return ExitCode.ENDED


def _row(entry: Entry) -> tuple[str, ...]:
    mode = "debug" if entry.debug_mode else "production"
    image = "".join(letter if letter.isprintable() else "?" for letter in entry.image)
    return (entry.name, status_of(entry), str(entry.cid), f"{entry.memory_mib} MiB", mode, image)


def execute_describe(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Describe one."""
    print(json.dumps(as_json(find(arguments.name)), indent=2))
    return ExitCode.ENDED


def execute_stats(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Ask its process."""
    print(json.dumps(stats(directory_of(find(arguments.name))), indent=2))
    return ExitCode.ENDED
