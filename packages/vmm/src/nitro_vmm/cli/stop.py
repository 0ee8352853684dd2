"""``vmm stop``, ``vmm terminate``, ``vmm wait`` and ``vmm rm``: the ends of enclaves in the background."""

import argparse
import json
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import add_command, add_json, complain
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.errors import HostError
from nitro_vmm.run.control import ask
from nitro_vmm.run.registry import (
    STARTING,
    Entry,
    alive,
    directory_of,
    entries,
    find,
    kill,
    process_of,
    remove,
)

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

STOP_TIMEOUT_S: Final = 10.0


def add(commands: "Subparsers") -> None:
    """Add the commands to the parser."""
    stop = add_command(commands, "stop", execute, about="end enclaves in order", example="vmm stop hello")
    _add_which(stop)
    stop.add_argument(
        "--timeout-s",
        metavar="S",
        type=float,
        default=STOP_TIMEOUT_S,
        help=f"how long its process may take before it is killed (default: {STOP_TIMEOUT_S:g})",
    )
    terminate = add_command(
        commands,
        "terminate",
        execute_terminate,
        about="end enclaves at once, whatever their processes do",
        example="vmm terminate --all",
    )
    _add_which(terminate)
    wait = add_command(
        commands,
        "wait",
        execute_wait,
        about="wait for an enclave's end, and exit as vmm run would have",
        example="vmm wait hello --timeout-s 60 --json",
    )
    wait.add_argument("name", metavar="NAME", help="its name or id")
    wait.add_argument("--timeout-s", metavar="S", type=float, help="give up after so many seconds (code 5)")
    wait.add_argument(
        "--booted", action="store_true", help="wait for its heartbeat: code 0; if it ends without, not 0"
    )
    add_json(wait, "report the end as JSON")
    rm = add_command(
        commands,
        "rm",
        execute_rm,
        about="forget enclaves that have ended, with their logs",
        example="vmm rm hello\nvmm rm --all --force",
    )
    _add_which(rm)
    rm.add_argument("--force", "-f", action="store_true", help="end them first")


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="names or ids")
    parser.add_argument("--all", "-a", action="store_true", help="all of them")
    add_json(parser, "print the names as a JSON list")


def _report(arguments: argparse.Namespace, names: list[str]) -> None:
    """Print what was done to whom."""
    if arguments.json:
        print(json.dumps(names))
        return
    for name in names:
        print(name)


def _chosen(arguments: argparse.Namespace, *, running: bool) -> list[Entry] | None:
    """The enclaves that are meant; `None` if none was named, which has been said."""
    if arguments.all:
        return [entry for entry in entries() if alive(entry) is running or not running]
    if not arguments.names:
        complain(
            "give a name",
            hint="vmm ps lists them; --all means all",
            code=ExitCode.USAGE,
            name=codes.COMMAND_LINE,
        )
        return None
    return [find(name) for name in arguments.names]


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Ask their processes, and kill those that do not obey."""
    return _end(arguments, arguments.timeout_s)


def execute_terminate(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Kill their processes."""
    return _end(arguments, 0)


def _end(arguments: argparse.Namespace, timeout_s: float) -> int:
    chosen = _chosen(arguments, running=True)
    if chosen is None:
        return ExitCode.USAGE
    for entry in chosen:
        end(entry, timeout_s)
    _report(arguments, [entry.name for entry in chosen])
    return ExitCode.ENDED


def end(entry: Entry, timeout_s: float) -> None:
    """End one: ask its process, wait, and kill it if it is still there.

    Args:
        entry: Which; one that has ended is left alone.
        timeout_s: How long to wait; 0 does not even ask.
    """
    with process_of(entry) as pidfd:
        if pidfd is None:
            return
        if timeout_s > 0 and entry.status == STARTING:  # its process takes no requests yet
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            wait_for(pidfd, timeout_s)
        elif timeout_s > 0:
            with suppress(HostError), ask(directory_of(entry), "stop"):
                wait_for(pidfd, timeout_s)
        kill(entry)  # if it is there
        wait_for(pidfd, STOP_TIMEOUT_S)


def wait_for(pidfd: int, timeout_s: float | None) -> bool:
    """Wait for a process to end; false if it has not within the time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000))


def execute_wait(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Wait for the process's end."""
    entry = find(arguments.name)
    if arguments.booted and alive(entry):
        booted = _wait_for_boot(entry, arguments.timeout_s)
        if booted is None:
            return complain(
                f"{entry.name} has not booted",
                hint=f"vmm logs {entry.name}",
                code=ExitCode.BOOT_TIMEOUT,
                name=codes.STILL_RUNS,
            )
        if booted:
            return ExitCode.ENDED
    with process_of(entry) as pidfd:
        if pidfd is not None and not wait_for(pidfd, arguments.timeout_s):
            return complain(f"{entry.name} still runs", code=ExitCode.BOOT_TIMEOUT, name=codes.STILL_RUNS)
    with suppress(Exception):  # one that was launched with --rm has left nothing
        entry = find(entry.name)
    if entry.report is None:
        return complain(
            f"the process of {entry.name} was killed, or forgotten at its end",
            code=ExitCode.FAILED,
            name=codes.KILLED,
        )
    print(json.dumps(entry.report, indent=2) if arguments.json else entry.report["Reason"])
    code = int(entry.report["ExitCode"])
    if arguments.booted:
        return ExitCode.ENDED if entry.booted_s is not None else code or ExitCode.FAILED
    return code


def _wait_for_boot(entry: Entry, timeout_s: float | None) -> bool | None:
    """Whether its heartbeat has come, or never will; `None` if that is not known within the time."""
    try:
        with ask(directory_of(entry), "booted") as control, control.makefile("rb") as answer:
            control.settimeout(timeout_s)
            return answer.readline(100).strip() == b"true"
    except TimeoutError:
        return None
    except (HostError, OSError):
        return False  # it has ended meanwhile


def execute_rm(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Remove their directories."""
    chosen = _chosen(arguments, running=False)
    if chosen is None:
        return ExitCode.USAGE
    removed = []
    for entry in chosen:
        if alive(entry) and arguments.all and not arguments.force:
            continue
        if arguments.force:
            end(entry, STOP_TIMEOUT_S)
        remove(find(entry.name))
        removed.append(entry.name)
    _report(arguments, removed)
    return ExitCode.ENDED
