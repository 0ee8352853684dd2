"""`Enclave` for programs without an event loop: every method blocks, in whatever thread calls it.

The enclave's own loop runs in a thread. Connections are ordinary sockets.
"""

import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from nitro_eif import Measurements
from nitro_vmm.config import EnclaveConfig, Endpoint
from nitro_vmm.enclave import Enclave, EnclaveEndedError, ParentListener, Result, Timeline

T = TypeVar("T")


class BlockingListener:
    """A port of the parent on which this program takes the enclave's connections.

    Args:
        enclave: Whose.
        listener: The loop's listener.
    """

    def __init__(self, enclave: "BlockingEnclave", listener: ParentListener) -> None:
        self.port: int = listener.port
        """The vsock port, as the enclave knows it."""
        self._enclave = enclave
        self._listener = listener

    def accept(self, timeout_s: float | None = None) -> socket.socket:
        """Wait for the enclave to connect.

        Raises:
            TimeoutError: It has not within the time.
            trio.ClosedResourceError: The enclave has ended.
        """

        async def accept() -> socket.socket:
            return _plain(await self._listener.accept())

        return self._enclave.call(accept, timeout_s=timeout_s)

    def close(self) -> None:
        """Refuse connections from now on."""
        self._enclave.call_soon(self._listener.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BlockingEnclave:
    """One launch. ``with`` boots the enclave, and leaving the block ends it.

    Args:
        config: What to launch.
        options: See `Enclave`.

    Raises:
        VmmError, EifError, VsockError, NsmError, OSError: On entering the block, see `Enclave`.
    """

    def __init__(self, config: EnclaveConfig, **options: Any) -> None:  # noqa: ANN401 - those of `Enclave`
        self._enclave = Enclave(config, **options)
        self._started: Future[trio.lowlevel.TrioToken] = Future()
        self._leave: trio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="enclave", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._started.result()
        except BaseException:  # Ctrl-C as well, which comes while the enclave is put together
            self.give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def give_up(self) -> None:
        """`close`, also while another thread enters the block; what it waits for then ends at once."""
        self._enclave.give_up()
        self.close()

    def close(self) -> None:
        """End the enclave, and wait until nothing is left of it."""
        if self._thread.ident is None:
            return
        wait([self._started])
        if self._leave is not None and self._started.exception() is None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._leave.set)
        self._thread.join()

    # What is known of it.

    @property
    def config(self) -> EnclaveConfig:
        """What was launched."""
        return self._enclave.config

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1, PCR2 and PCR8 of the image."""
        return self._enclave.measurements

    @property
    def module_id(self) -> str:
        """The security module's name, which is the enclave's own as well."""
        return self._enclave.module_id

    @property
    def published(self) -> list[tuple[Endpoint | Path, int]]:
        """Where the published ports are, with the enclave's port."""
        return self._enclave.published

    @property
    def kms_endpoint(self) -> Endpoint | None:
        """Where this machine's programs reach the enclave's local KMS; `None` if they cannot."""
        return self._enclave.kms_endpoint

    @property
    def timeline(self) -> Timeline:
        """When what happened, from the launch on."""
        return self._enclave.timeline

    @property
    def console_output(self) -> bytes:
        """What it has printed, as far as it is kept."""
        return self._enclave.console.read(0)[1]

    # Its life.

    def booted(self, timeout_s: float | None = None) -> float:
        """Wait for the heartbeat; returns how many seconds after the launch it came.

        Raises:
            EnclaveEndedError: The enclave ended before.
            TimeoutError: It has not come within the time.
        """
        return self.call(self._enclave.booted, timeout_s=timeout_s)

    def wait(self, timeout_s: float | None = None) -> Result:
        """Wait for the enclave's end.

        Raises:
            TimeoutError: It has not ended within the time.
        """
        return self.call(self._enclave.wait, timeout_s=timeout_s)

    def stop(self, reason: str = "ended by its parent") -> Result:
        """End the enclave; returns how it ended."""

        async def stop() -> Result:
            return await self._enclave.stop(reason)

        return self.call(stop)

    # Talking to it.

    def connect(self, port: int, timeout_s: float | None = None) -> socket.socket:
        """Connect to a vsock port of the enclave.

        Raises:
            ConnectionRefusedError: Nothing listens on that port, or the enclave has ended.
            TimeoutError: No answer within the time.
            UsageError: A daemon serves vsock.
        """

        async def connect() -> socket.socket:
            return _plain(await self._enclave.connect(port))

        return self.call(connect, timeout_s=timeout_s)

    def listen(self, port: int) -> BlockingListener:
        """Take the connections that the enclave opens to a port of its parent.

        Raises:
            UsageError: There is a listener, there can be no such port, or a daemon serves vsock.
        """

        async def listen() -> ParentListener:
            await trio.lowlevel.checkpoint()
            return self._enclave.listen(port)

        return BlockingListener(self, self.call(listen))

    def attest(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """An attestation document with the registers as they are now; see `Enclave.attest`.

        Raises:
            UsageError: The module makes no such document, because a value is too long.
        """

        async def attest() -> bytes:
            return await self._enclave.attest(nonce=nonce, user_data=user_data, public_key=public_key)

        return self.call(attest)

    def send_input(self, data: bytes) -> None:
        """Type on the enclave's console."""

        async def send_input() -> None:
            await self._enclave.send_input(data)

        self.call(send_input)

    def wait_for_output(self, text: bytes, timeout_s: float | None = None) -> None:
        """Wait until the console has shown a text.

        Raises:
            EnclaveEndedError: The enclave ended without it.
            TimeoutError: It has not within the time.
        """

        async def watch() -> None:
            seen = b""
            async for piece in self._enclave.console.stream():
                seen += piece
                if text in seen:
                    return
                seen = seen[-len(text) :]
            raise EnclaveEndedError(await self._enclave.wait())

        self.call(watch, timeout_s=timeout_s)

    # The loop's thread.

    def call(self, function: Callable[[], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """Run an async function in the enclave's loop, and wait for it.

        Raises:
            TimeoutError: It has not ended within the time.
        """

        async def run() -> T:
            if timeout_s is None:
                return await function()
            try:
                with trio.fail_after(timeout_s):
                    return await function()
            except trio.TooSlowError:
                raise TimeoutError(f"not within {timeout_s:g} s") from None

        return trio.from_thread.run(run, trio_token=self._token)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run a function in the enclave's loop, if it still runs."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    @property
    def _token(self) -> trio.lowlevel.TrioToken:
        return self._started.result(0)

    def _run(self) -> None:
        try:
            trio.run(self._see_through)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _see_through(self) -> None:
        self._leave = trio.Event()
        async with self._enclave:
            self._started.set_result(trio.lowlevel.current_trio_token())
            await self._leave.wait()


def _plain(stream: trio.SocketStream) -> socket.socket:
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(True)
    return sock
