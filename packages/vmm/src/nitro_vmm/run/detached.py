"""An enclave in the background: its process sees it through, and takes requests meanwhile."""

import base64
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import trio

from nitro_vmm.accel import Accelerator
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.enclave import Enclave, Result
from nitro_vmm.enclave.tasks import ungrouped
from nitro_vmm.errors import LaunchStoppedError, UsageError
from nitro_vmm.run.code_pages import give_back_when_settled
from nitro_vmm.run.control import REQUEST_BYTES_MAX
from nitro_vmm.run.log_file import LogFile
from nitro_vmm.run.registry import ENDED, RUNNING, Entry, Registration, control_address
from nitro_vmm.run.signals import receiver, said

logger = logging.getLogger(__name__)

CHUNK_BYTES: Final = 1 << 16
CLIENTS_MAX: Final = 64
CONTENTS: Final = ("nonce", "user_data", "public_key")
"""What a client may have a document say."""
REQUEST_TIMEOUT_S: Final = 10.0


def see_through(
    config: EnclaveConfig,
    *,
    started: Callable[[Entry], None],
    report: Callable[[Result, int | None], dict[str, Any]],
    ended: Callable[[Enclave, Result], None] = lambda _enclave, _result: None,
    forget: bool = False,
    say: Callable[[str], None] = logger.info,
    accelerator: Accelerator | None = None,
) -> None:
    """Run an enclave to its end, in a process that has nobody else to care for.

    Args:
        config: What to launch; the default CID is a free one.
        started: Called when it runs, with its entry in the registry.
        report: How an end is written into the registry; gets the signal that caused it, if one did.
        ended: Called when it has ended.
        forget: Leave nothing in the registry at the end.
        say: Told what happens, for people.
        accelerator: See `Enclave`.

    Raises:
        UsageError: Its name or CID is taken.
        HostError: The registry cannot be used.
        LaunchStoppedError: A signal came before the guest ran.
        VmmError, EifError, VsockError, NsmError, OSError: See `Enclave`.
    """
    wanted = Entry(
        name="",
        pid=os.getpid(),
        image=str(config.eif_path.absolute()),
        cid=config.cid if "cid" in config.model_fields_set else 0,
        started_at=time.time(),
        debug_mode=config.debug_mode,
        console=config.shows_console,
        sockets=_sockets(config),
    )
    registration = Registration(wanted, config.name)
    config = config.model_copy(update={"cid": registration.entry.cid, "name": registration.entry.name})
    launched = False

    def note_start(entry: Entry) -> None:
        nonlocal launched
        launched = True
        started(entry)

    try:
        with ExitStack() as resources:
            log = None
            if config.shows_console:
                log = resources.enter_context(closing(LogFile(registration.directory / "console.log")))
            enclave = Enclave(config, console_sink=log, accelerator=accelerator, say=say)
            result, received = trio.run(_serve, enclave, registration, note_start)
        ended(enclave, result)
        registration.update(status=ENDED, report=report(result, received))
    except Exception as error:
        failure = {"ExitCode": 1, "Outcome": "FAILED", "Reason": f"its process failed: {error!r}"}
        registration.update(status=ENDED, report=failure)
        raise
    finally:
        # One that could not be launched has told so to whoever launched it.
        registration.close(forget=forget or not launched)


def _sockets(config: EnclaveConfig) -> list[str]:
    found = [str(one.listen.absolute()) for one in config.publish if isinstance(one.listen, Path)]
    if config.vsock_path is not None:
        path = str(config.vsock_path.absolute())
        found += [path, f"{path}.seqpacket"]
    return found


async def _serve(
    enclave: Enclave, registration: Registration, started: Callable[[Entry], None]
) -> tuple[Result, int | None]:
    received: signal.Signals | None = None

    async def obey(signals: AsyncIterator[int]) -> None:
        nonlocal received
        async for number in signals:
            if received is None:
                received = signal.Signals(number)
                enclave.terminate(f"ended by {said(received)}")

    async def note_boot() -> None:
        registration.update(booted_s=round(await enclave.booted(), 3))

    try:
        with ungrouped(), receiver() as signals, _listen(registration.directory) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, signals)
                async with enclave:
                    registration.update(
                        status=RUNNING,
                        id=enclave.module_id,
                        memory_mib=enclave.memory_mib,
                        processors=enclave.processors,
                        measurements=enclave.measurements.as_json(),
                        published=[f"{place}={port}" for place, port in enclave.published],
                        kms=None if enclave.kms_endpoint is None else str(enclave.kms_endpoint),
                    )
                    started(registration.entry)
                    server = Server(enclave, registration.entry)
                    nursery.start_soon(server.serve, listener)
                    nursery.start_soon(_unless_it_ends, note_boot)
                    nursery.start_soon(give_back_when_settled, enclave)
                    result = await enclave.wait()
                    await server.finish()
                nursery.cancel_scope.cancel()
    except LaunchStoppedError as error:
        error.signal = received
        raise
    return result, received


async def _unless_it_ends(wait: Callable[[], Any]) -> None:
    from nitro_vmm.enclave import EnclaveEndedError  # noqa: PLC0415

    with suppress(EnclaveEndedError):
        await wait()


def _listen(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with control_address(directory) as address:
        listener.bind(address)
    listener.listen(CLIENTS_MAX)
    listener.setblocking(False)
    return listener


class Server:
    """Answers requests about one enclave.

    Args:
        enclave: Which.
        entry: As it stands in the registry.
    """

    def __init__(self, enclave: Enclave, entry: Entry) -> None:
        self._enclave = enclave
        self._entry = entry
        self._clients = 0
        self._readers = 0
        self._idle = trio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Accept clients until cancelled."""
        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    client, _ = await accepting.accept()
                except OSError:  # out of descriptors, or a client that has gone
                    await trio.sleep(REQUEST_TIMEOUT_S / 100)
                    continue
                if self._clients >= CLIENTS_MAX:
                    client.close()
                    continue
                self._clients += 1
                nursery.start_soon(self._serve_client, trio.SocketStream(client))

    async def finish(self) -> None:
        """Let those who read the console read to its end, within reason."""
        with trio.move_on_after(1):
            while self._readers:
                self._idle = trio.Event()
                await self._idle.wait()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self._answer(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        finally:
            self._clients -= 1

    async def _answer(self, stream: trio.SocketStream) -> None:
        line, early = b"", b""
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            line, early = await _read_line(stream)
        try:
            parameters = json.loads(line)
            request = parameters["do"]
        except (ValueError, TypeError, KeyError, RecursionError):
            request = None
        match request:
            case "stop":
                await self._enclave.stop("stopped by vmm stop")
            case "booted":
                await _unless_it_ends(self._enclave.booted)
                await stream.send_all(b"true\n" if self._enclave.has_booted else b"false\n")
            case "stats":
                await stream.send_all(json.dumps(self._stats()).encode() + b"\n")
            case "attest":
                await stream.send_all(json.dumps(await self._attest(parameters)).encode() + b"\n")
            case "follow" | "console" if not self._entry.console:
                await stream.send_all(b'{"error": "the console is not shown"}\n')
            case "follow":
                await self._follow(stream)
            case "console":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._type, stream, early)
                    await self._follow(stream)
                    nursery.cancel_scope.cancel()
            case _:
                await stream.send_all(b'{"error": "no such request"}\n')

    async def _follow(self, stream: trio.SocketStream) -> None:
        self._readers += 1
        try:
            async for piece in self._enclave.console.stream():
                await stream.send_all(piece)
        finally:
            self._readers -= 1
            self._idle.set()

    async def _type(self, stream: trio.SocketStream, early: bytes) -> None:
        await self._enclave.send_input(early)
        while piece := await stream.receive_some(CHUNK_BYTES):
            await self._enclave.send_input(bytes(piece))

    async def _attest(self, parameters: dict[str, Any]) -> dict[str, str]:
        try:
            wanted = {name: bytes.fromhex(parameters[name]) for name in CONTENTS if name in parameters}
        except (ValueError, TypeError):
            return {"error": "what a document is to say must be hexadecimal"}
        try:
            document = await self._enclave.attest(**wanted)
        except UsageError as error:
            return {"error": str(error), "hint": error.hint}
        return {"document": base64.b64encode(document).decode()}

    def _stats(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "Name": self._entry.name,
            "Seconds": round(time.time() - self._entry.started_at, 3),
            "CpuSeconds": round(usage.ru_utime + usage.ru_stime, 3),
            "MaxResidentMiB": usage.ru_maxrss // 1024,
            "Vsock": self._enclave.counters(),
        }


async def _read_line(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    data = b""
    while b"\n" not in data and len(data) < REQUEST_BYTES_MAX:
        piece = await stream.receive_some(REQUEST_BYTES_MAX)
        if not piece:
            break
        data += piece
    line, _, early = data.partition(b"\n")
    return line, early
