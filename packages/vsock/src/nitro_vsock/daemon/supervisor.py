"""A process for each set of guests that reach each other, so that nothing one set does touches another.

Guests that share a group have to be in one process. For all others, a process of their own keeps the trouble
of one guest (memory that its front-end takes away, traffic, Python's one lock) from the rest, and is started
again when it dies.

Such a process is this program again, with its part of the configuration and a socket to us. On that it says
when it serves, and answers each request with its counters, as a line of JSON; a request may bring a new
configuration. When the socket ends, so does the process.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

import trio

from nitro_vsock.daemon.config import DaemonConfig, VmConfig
from nitro_vsock.daemon.logs import LOGGER
from nitro_vsock.daemon.stats import Report, VmReport
from nitro_vsock.errors import HostError, VsockError
from nitro_vsock.host.unix import SEQPACKET_SUFFIX, remove_stale

REPORT_S = 2.0
"""How long a process may take to tell its counters, before it is left out."""

KILL_S = 5.0
"""How long a process may take to end."""

RESTART_S = 1.0
"""How long to wait before a process that died is started again, so that one that cannot live does not keep us
busy."""


class WorkerError(VsockError):
    """A process did not start. It has said why on standard error."""

    def __init__(self, guests: Sequence[int], returncode: int) -> None:
        numbers = ", ".join(map(str, guests))
        super().__init__(f"the process for guest {numbers} did not start: {_ending(returncode)}")
        self.exit_code = max(returncode, 1)
        """The exit code of this process, which failed for the same reason."""


def split(config: DaemonConfig) -> list[DaemonConfig]:
    """The configuration in parts. Each has the guests that share groups, directly or by way of others."""
    parts: list[list[VmConfig]] = []
    for vm in config.vms:
        near = [part for part in parts if any(vm.groups & other.groups for other in part)]
        parts = [part for part in parts if part not in near]
        parts.append([*chain.from_iterable(near), vm])
    return [config.model_copy(update={"vms": tuple(part), "stats": None}) for part in parts]


class Worker:
    """The process of some guests, and the next one when that dies.

    Args:
        config: Its guests.
        options: The command line's options that are not in it.
    """

    def __init__(self, config: DaemonConfig, options: Sequence[str]) -> None:
        self._config, self._options = config, options
        self._guests = [vm.guest_cid for vm in config.vms]
        self._control: _Lines | None = None
        self._asking = trio.Lock()
        self._numbers = count(1)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a process running for ever; started when the first one serves.

        Raises:
            WorkerError: The first one did not come to that.
        """
        serves = False

        def note_serving() -> None:
            nonlocal serves
            if not serves:
                serves = True
                task_status.started()

        while True:
            try:
                returncode = await self._run_once(note_serving)
            except* OSError as group:
                if not serves:
                    raise
                why = "; ".join(map(str, group.exceptions))
            else:
                # A worker that SIGTERM ended before it served did not fail. Whoever told it to end has told
                # us, too.
                if not serves and returncode not in {0, -signal.SIGTERM}:
                    raise WorkerError(self._guests, returncode)
                why = _ending(returncode)
            LOGGER.error(
                "guests lost their process, starting another", extra={"guests": self._guests, "why": why}
            )
            await trio.sleep(RESTART_S)

    async def _run_once(self, note_serving: Callable[[], None]) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs, _config_file(self._config) as config_fd, _Lines(ours) as control:
            command = [sys.executable, "-P", "-m", "nitro_vsock.cli", *self._options]
            command += ["--supervisor-fd", str(theirs.fileno())]  # the configuration is on standard input
            start = partial(
                trio.run_process,
                command,
                check=False,
                deliver_cancel=_end,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # a terminal's Ctrl-C goes to us alone, and we tell the workers
                stdin=config_fd,
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            )
            async with trio.open_nursery() as nursery:
                process: trio.Process = await nursery.start(start)
                theirs.close()
                if await control.receive():
                    note_serving()
                    self._control = control
                try:
                    return await process.wait()
                finally:
                    self._control = None

    async def report(self) -> list[VmReport]:
        """The state of its guests; empty while the process is not there or does not answer."""
        answer = await self._ask({})
        reports: list[VmReport] = answer.get("vms", [])
        return reports

    async def change(self, config: DaemonConfig) -> None:
        """Have its guests proxied and published as ``config`` says, by this process and those after it."""
        self._config = config
        await self._ask({"config": config.model_dump(mode="json")})

    async def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """The answer to a request; empty while the process is not there or does not answer."""
        with trio.move_on_after(REPORT_S):
            async with self._asking:
                control, number = self._control, next(self._numbers)
                if control is None:
                    return {}
                await control.send({**request, "request": number})
                while answer := await control.receive():
                    if answer["request"] == number:  # others answer requests that were given up
                        return answer
        return {}


def remove_sockets(config: DaemonConfig) -> None:
    """Remove the socket files that a process left behind when it was killed."""
    for vm in config.vms:
        paths = [vm.socket, vm.uds_path, *(each.listen for each in vm.publish)]
        for path in paths:
            if isinstance(path, Path):
                with contextlib.suppress(HostError):
                    remove_stale(path)
        if vm.uds_path is not None and vm.seqpacket:
            with contextlib.suppress(HostError):
                remove_stale(
                    vm.uds_path.with_name(vm.uds_path.name + SEQPACKET_SUFFIX), socket.SOCK_SEQPACKET
                )


async def obey(descriptor: int, report: Report, change: Callable[[DaemonConfig], None]) -> None:
    """In a worker: say that it serves, and do what the supervisor asks, until that is gone.

    Args:
        descriptor: The socket to the supervisor.
        report: Tells the counters.
        change: Has the guests proxied and published as a new configuration says.
    """
    with _Lines(socket.socket(fileno=descriptor)) as control:
        await control.send({"serving": True})
        while request := await control.receive():
            if "config" in request:
                change(DaemonConfig.model_validate(request["config"]))
            await control.send({"request": request["request"], "vms": await report()})


class _Lines:
    """A socket that carries objects, each as a line of JSON."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.socket.close()

    async def send(self, value: object) -> None:
        """Send one object. If the other end is gone, nothing happens."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_all(json.dumps(value).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """The next object; an empty one at the end.

        A call that is cancelled in the middle of a line loses nothing: the next call has the whole line.
        """
        while b"\n" not in self._received:
            try:
                chunk = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                chunk = b""
            if not chunk:
                return {}
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


async def _end(process: trio.Process) -> None:
    with contextlib.suppress(OSError):  # gone already
        process.terminate()
        await trio.sleep(KILL_S)
        process.kill()


@contextlib.contextmanager
def _config_file(config: DaemonConfig) -> Iterator[int]:
    """A descriptor of a file in memory that holds the configuration."""
    descriptor = os.memfd_create("config")
    try:
        os.write(descriptor, config.model_dump_json().encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _ending(returncode: int) -> str:
    return f"exit code {returncode}" if returncode >= 0 else signal.Signals(-returncode).name
