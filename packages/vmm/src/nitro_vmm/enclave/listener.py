"""A port of the parent on which a Python program takes the enclave's connections."""

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import trio

BACKLOG: Final = 128
"""Connections that nobody has accepted yet; more are refused, as a full backlog refuses elsewhere."""


class ParentListener:
    """A port of the parent on which this program takes the enclave's connections.

    Args:
        port: Which.
        closed: Called when the listener is closed.
    """

    def __init__(self, port: int, closed: Callable[[], None]) -> None:
        self.port = port
        """The vsock port, as the enclave knows it."""
        self._closed = closed
        self._send, self._receive = trio.open_memory_channel[socket.socket](BACKLOG)

    async def accept(self) -> trio.SocketStream:
        """Wait for the enclave to connect.

        Raises:
            trio.ClosedResourceError: The listener is closed, or the enclave has ended.
        """
        try:
            sock = await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the enclave has ended") from None
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    def offer(self, sock: socket.socket) -> bool:
        """Take a connection of the enclave's; false when the backlog is full."""
        try:
            self._send.send_nowait(sock)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def end(self) -> None:
        """The enclave has ended: nobody will connect any more."""
        self._send.close()

    def close(self) -> None:
        """Refuse connections from now on, and those that were not accepted yet."""
        self._closed()
        self._send.close()
        while True:
            try:
                self._receive.receive_nowait().close()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._receive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
