"""``vmm logs`` and ``vmm console``: what an enclave in the background prints, and typing to it."""

import argparse
import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli import codes
from nitro_vmm.cli.command import add_command, complain
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.streams import tell
from nitro_vmm.run.control import ask
from nitro_vmm.run.escapes import EscapeFilter
from nitro_vmm.run.log_file import read_log
from nitro_vmm.run.registry import Entry, alive, directory_of, find

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers

CHUNK_BYTES: Final = 1 << 16
DETACH_KEY: Final = b"\x1d"
"""Ctrl-], as telnet has it."""


def add(commands: "Subparsers") -> None:
    """Add the commands to the parser."""
    logs = add_command(
        commands,
        "logs",
        execute_logs,
        about="show what an enclave has printed",
        example="vmm logs --follow hello",
    )
    logs.add_argument("name", metavar="NAME", help="its name or id")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until it ends")
    logs.add_argument("--messages", action="store_true", help="what vmm said about it, not its console")
    _add_raw(logs)
    console = add_command(
        commands,
        "console",
        execute_console,
        about="attach to an enclave's console; Ctrl-] detaches",
        example="vmm console hello",
    )
    console.add_argument("name", metavar="NAME", help="its name or id")
    _add_raw(console)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw-console", action="store_true", help="let all escape sequences through to a terminal"
    )


def execute_logs(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all
    """Print the log, or what comes."""
    entry = find(arguments.name)
    show = writer(raw=arguments.raw_console)
    directory = directory_of(entry)
    if arguments.messages:
        show(read_log(directory / "messages.log"))
    elif not entry.console:
        return _no_console(entry)
    elif arguments.follow and alive(entry):
        with ask(directory, "follow") as control:
            while piece := control.recv(CHUNK_BYTES):
                show(piece)
    else:
        show(read_log(directory / "console.log"))
    return ExitCode.ENDED


def execute_console(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001
    """Join the terminal and the console."""
    entry = find(arguments.name)
    if not entry.console:
        return _no_console(entry)
    if not alive(entry):
        return complain(
            f"{entry.name} has ended", hint=f"vmm logs {entry.name}", code=ExitCode.USAGE, name=codes.ENDED
        )
    from nitro_vmm.run.terminal import may_read, stdin_fd, terminal_without_echo  # noqa: PLC0415

    fd = stdin_fd()
    with ask(directory_of(entry), "console") as control, terminal_without_echo():
        if fd >= 0 and os.isatty(fd):
            tell("vmm: attached; Ctrl-] detaches")
        join(control, fd if fd >= 0 and may_read(fd) else None, writer(raw=arguments.raw_console))
    return ExitCode.ENDED


def _no_console(entry: Entry) -> int:
    return complain(
        f"{entry.name} shows no console, as on AWS in production mode",
        hint="launch it with --console, or with --debug-mode, whose documents have PCRs of zeros",
        code=ExitCode.USAGE,
        name=codes.NO_CONSOLE,
    )


def writer(*, raw: bool) -> Callable[[bytes], None]:
    """What writes console output on standard output; a terminal gets text and colours unless ``raw``."""
    sys.stdout.flush()
    fd = sys.stdout.fileno()
    clean = bytes if raw or not os.isatty(fd) else EscapeFilter().feed

    def write(data: bytes) -> None:
        rest = memoryview(clean(data))
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                select.select([], [fd], [])

    return write


def join(
    control: socket.socket,
    stdin: int | None,
    show: Callable[[bytes], None],
    *,
    timeout_s: float | None = None,
) -> None:
    """Show what comes, and send what is typed, until the enclave ends or the user detaches.

    Args:
        control: The connection to the console.
        stdin: What is typed; `None`: nothing is.
        show: Gets what the enclave prints.
        timeout_s: Detach after so long.
    """
    deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if stdin is not None:
        poll.register(stdin, select.POLLIN)
    while True:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            return
        for fd, _ in poll.poll(None if timeout_s is None else remaining_s * 1000):
            if fd == control.fileno():
                piece = control.recv(CHUNK_BYTES)
                if not piece:
                    return
                show(piece)
                continue
            typed = os.read(fd, CHUNK_BYTES)
            if DETACH_KEY in typed:
                return
            if not typed:  # what is left of the console is still shown
                poll.unregister(fd)
                continue
            control.sendall(typed)
