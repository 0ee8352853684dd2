"""GDB attached to an enclave: a TCP port for it, and the guest as it sees it.

The guest waits at its first instruction until GDB lets it go on, and stands still whenever GDB looks at it;
its devices then leave its memory alone, too. One GDB at a time is served. When it goes the guest goes on.
"""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from nitro_vmm.accel import Debug
from nitro_vmm.config import Endpoint
from nitro_vmm.errors import HostError, UsageError
from nitro_vmm.gdb.session import Action, Session
from nitro_vmm.machine.machine import Machine
from nitro_vmm.machine.paging import entries_in, translate
from nitro_vsock import GuestMemory, GuestMemoryError

logger = logging.getLogger(__name__)

CHUNK_BYTES: Final = 1 << 14
RETRY_S: Final = 0.1
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class GuestTarget:
    """A guest that stands still; a `Target`.

    Args:
        debug: Its processor.
        memory: Its memory.
    """

    def __init__(self, debug: Debug, memory: GuestMemory) -> None:
        self._debug = debug
        self._memory = memory

    def read_register(self, name: str) -> int:
        """See `Target`."""
        return self._debug.read_register(name)

    def write_register(self, name: str, value: int) -> None:
        """See `Target`."""
        self._debug.write_register(name, value)

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        """See `Target`."""
        return self._debug.set_breakpoints(addresses)

    def read_memory(self, address: int, length: int) -> bytes:
        """See `Target`."""
        return b"".join(bytes(piece) for piece in self._pieces(address, length))

    def write_memory(self, address: int, data: bytes) -> bool:
        """See `Target`."""
        pieces = self._pieces(address, len(data))
        if sum(len(piece) for piece in pieces) != len(data):
            return False
        for piece in pieces:
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]
        self._debug.forget_code()
        return True

    def _pieces(self, address: int, length: int) -> list[memoryview]:
        """The memory page by page, as far as it is mapped and RAM."""
        cr0, cr3 = self._debug.read_register("cr0"), self._debug.read_register("cr3")
        pieces: list[memoryview] = []
        while length:
            place = translate(address & (1 << 64) - 1, cr0=cr0, cr3=cr3, read=entries_in(self._memory))
            if place is None:
                break
            physical, size = place
            size = min(size, length)
            try:
                pieces.append(self._memory.slice(physical, size))
            except GuestMemoryError:
                break
            address, length = address + size, length - size
        return pieces


class Debugger:
    """A port for GDB, and the guest behind it.

    Args:
        endpoint: Where to listen.
        kill: Ends the enclave.
        say: Told what happens, for people.

    Raises:
        HostError: That address cannot be had.
    """

    def __init__(self, endpoint: Endpoint, kill: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._kill = kill
        self._say = say
        self._machine: Machine | None = None
        self._memory: GuestMemory | None = None
        self._debug: Debug | None = None
        self._stopped = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._sending = trio.Lock()
        self._ran_s = 0.0
        self._running_since_s: float | None = None
        self._pauses = True
        """Whether the guest stands still on our behalf."""
        self._ended = False
        """Whether there is nothing to let go any more."""
        try:
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            self._listener = socket.create_server((endpoint.host, endpoint.port), family=family)
        except OSError as error:
            raise HostError(
                f"cannot wait for GDB at {endpoint}: {error.strerror or error}",
                hint="give another --gdb; port 0 is a free one",
                code="M33",
            ) from error
        host, port = self._listener.getsockname()[:2]
        self.endpoint: Endpoint = Endpoint(host=host, port=port)
        """Where it listens; a port that was 0 is the one found."""
        if endpoint.host not in LOOPBACK:
            say(f"warning: whoever reaches {self.endpoint} can read and change all of the enclave")

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def attach(self, machine: Machine, memory: GuestMemory, token: trio.lowlevel.TrioToken) -> None:
        """Let a guest that has not begun wait for GDB.

        Raises:
            UsageError: Its processor cannot be debugged.
        """
        self._debug = machine.debug
        if self._debug is None:
            raise UsageError(
                "this accelerator's processor cannot be debugged", hint="--accel unicorn", code="M34"
            )
        self._machine, self._memory, self._token = machine, memory, token
        machine.on_debug_stop = self._on_debug_stop
        machine.pause()
        self._say(f"the guest waits for GDB: target remote {self.endpoint}")

    @property
    def ran_s(self) -> float:
        """For how long the guest has run so far, seconds."""
        now_s = time.monotonic()
        return self._ran_s + (0.0 if self._running_since_s is None else now_s - self._running_since_s)

    async def serve(self) -> None:
        """Serve one GDB after the other, for as long as the enclave lives."""
        assert self._machine is not None  # noqa: S101 - `attach` was called
        await trio.to_thread.run_sync(self._machine.entered.wait, abandon_on_cancel=True)
        listener = trio.SocketListener(_listening(self._listener))
        while True:
            try:
                stream = await listener.accept()
            except OSError:  # out of descriptors, or a GDB that has gone already
                await trio.sleep(RETRY_S)
                continue
            self._say("GDB is connected")
            try:
                async with stream:
                    await self._serve(stream)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            self._say("GDB has gone; the guest goes on")
            await self._let_go()

    def _on_debug_stop(self) -> None:
        assert self._token is not None  # noqa: S101 - set before the guest runs
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._note_stop)

    def _note_stop(self) -> None:
        self._stopped.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        assert self._debug is not None  # noqa: S101 - `attach` was called
        assert self._memory is not None  # noqa: S101
        session = Session(GuestTarget(self._debug, self._memory))
        await self._pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_stops, session, stream)
            while data := await stream.receive_some(CHUNK_BYTES):
                answer, actions = session.receive(data)
                if answer:
                    await self._send(stream, answer)
                for action in actions:
                    if not await self._obey(action, session, stream):
                        nursery.cancel_scope.cancel()
                        return
            nursery.cancel_scope.cancel()

    async def _obey(self, action: Action, session: Session, stream: trio.SocketStream) -> bool:
        """Do it; false when this GDB wants nothing more."""
        assert self._debug is not None  # noqa: S101 - `attach` was called
        match action:
            case Action.CONTINUE | Action.STEP:
                # Said both ways, because Ctrl-C may have come before a step was done.
                self._debug.step(due=action is Action.STEP)
                self._resume()
            case Action.STOP:
                await self._pause()
                if session.running:  # it may have stopped by itself just now
                    await self._send(stream, session.stopped(interrupted=True))
            case Action.DETACH:
                return False
            case Action.KILL:
                self._kill("ended by GDB")
                return False
        return True

    async def _report_stops(self, session: Session, stream: trio.SocketStream) -> None:
        while True:
            await self._stopped.wait()
            self._stopped = trio.Event()
            if session.running:
                await self._pause()
                await self._send(stream, session.stopped(interrupted=False))

    async def _send(self, stream: trio.SocketStream, data: bytes) -> None:
        async with self._sending:  # a stop may come while an answer is sent
            await stream.send_all(data)

    async def _pause(self) -> None:
        assert self._machine is not None  # noqa: S101 - `attach` was called
        if self._pauses:
            return
        self._pauses = True
        self._ran_s, self._running_since_s = self.ran_s, None
        self._ended = not await trio.to_thread.run_sync(self._machine.pause)

    def _resume(self) -> None:
        assert self._machine is not None  # noqa: S101 - `attach` was called
        if self._pauses and not self._ended:
            self._pauses = False
            self._running_since_s = time.monotonic()
            self._machine.resume()

    async def _let_go(self) -> None:
        assert self._debug is not None  # noqa: S101 - `attach` was called
        await self._pause()  # so that nobody changes breakpoints under a guest that runs
        self._debug.set_breakpoints(frozenset())
        self._debug.step(due=False)
        self._resume()


def _listening(listener: socket.socket) -> trio.socket.SocketType:
    listener.setblocking(False)
    return trio.socket.from_stdlib_socket(listener)
