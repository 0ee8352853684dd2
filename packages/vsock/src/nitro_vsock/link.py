"""A connection joined with a socket of the host: how its bytes get to the socket, and what is held meanwhile.

Bytes from the guest go from guest memory to the socket in one call per batch. What a slow host program does
not take at once is copied, so that the guest gets its descriptors back; its credit says how much that can
be.
"""

import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nitro_vsock.connection import Connection, State
from nitro_vsock.packet import Address, Shutdown, SocketType
from nitro_vsock.receive_ring import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
LENGTH_BYTES: Final = 32
"""What the length of a message costs that is held."""
WIDTH_MIN: Final = 2
WIDTH_MAX: Final = 64
"""Receive buffers of the guest filled by one system call."""
SEND_BUFFER_BYTES: Final = 256 << 10
"""What a unix socket's own buffer may hold: the default window, so a host program in its stride costs us no
copy, and no message is too long. Streams get it the first time that the usual is too little."""


class Link(Connection):
    """A connection and the non-blocking socket that it is joined with."""

    __slots__ = (
        "backlog",
        "deadline",
        "ending",
        "fd",
        "greeting",
        "hangup",
        "lengths",
        "lingering",
        "message",
        "on_result",
        "outgoing",
        "queued",
        "readable",
        "segments",
        "socket",
        "stalled",
        "stream",
        "unix",
        "unread_line",
        "widened",
        "width",
        "write_closed",
    )

    def __init__(
        self, address: Address, *, guest_cid: int, socket_type: SocketType, state: int, buf_alloc: int
    ) -> None:
        super().__init__(
            address, guest_cid=guest_cid, socket_type=socket_type, state=state, buf_alloc=buf_alloc
        )
        self.stream = socket_type is SocketType.STREAM
        self.socket: socket.socket | None = None
        self.fd = -1
        """The socket's descriptor; -1 without one."""
        self.unix = True
        """It is a unix socket."""
        self.greeting = b""
        """What the host program is told when the guest accepts."""
        self.unread_line = 0
        """Bytes that are in the socket and not for the guest, see `take_line`."""
        self.on_result: Callable[[bool], None] | None = None
        self.deadline: float | None = None
        # From the guest to the host
        self.segments: list[memoryview] = []
        """Guest memory to be sent at the end of this batch; streams only."""
        self.message = bytearray()
        """A message of which the end is missing."""
        self.backlog = bytearray()
        """What the host has not taken."""
        self.lengths: deque[int] | None = None
        """Of the messages in it, once there were any."""
        self.write_closed = False
        """The host's socket takes no more."""
        self.widened = False
        """The socket's buffer is larger than usual."""
        self.lingering = False
        """The connection is over; the backlog is still to be delivered."""
        # From the host to the guest
        self.readable = False
        self.ending = False
        """The host program sends no more; there may be data to read yet."""
        self.hangup = False
        """The host program has closed; there may be data to read yet."""
        self.queued = False
        """In the queue of links that have something for the guest."""
        self.stalled = False
        """Has data, and waits for credit."""
        self.outgoing = NOTHING
        """The rest of a message from the host."""
        self.width = WIDTH_MIN
        """Receive buffers to fill with the next read: more after every one that filled all."""

    def may_read(self) -> bool:
        """Whether the host may have something that the guest would take."""
        return (
            self.readable
            and not self.stalled
            and self.state == State.ESTABLISHED
            and not self.guest_shutdown & Shutdown.RECEIVE
        )

    @property
    def held_bytes(self) -> int:
        """What is held costs so much memory."""
        if self.stream:
            return len(self.backlog)
        lengths = LENGTH_BYTES * len(self.lengths) if self.lengths else 0
        return len(self.backlog) + len(self.message) + lengths

    @property
    def holding(self) -> bool:
        """Whether there is something that the host has not taken."""
        return bool(self.backlog or self.lengths)

    def drop_backlog(self) -> None:
        """Nobody will take what is held."""
        self.backlog.clear()
        self.lengths = None
        self.message.clear()

    def deliver(self) -> None:
        """Pass this batch's segments on, after what is held; what the socket does not take is held.

        Raises:
            OSError: The socket takes no more, ever. Segments and backlog are gone.
        """
        segments, self.segments = self.segments, []
        if self.write_closed or self.socket is None:
            self.forwarded(0)
            return
        while segments and not self.backlog:
            batch, segments = segments[:IOV_MAX], segments[IOV_MAX:]
            try:
                if len(batch) == 1:
                    sent = self.socket.send(batch[0], socket.MSG_NOSIGNAL)
                else:
                    sent = self.socket.sendmsg(batch, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._stop_writing()
                raise
            for segment in batch:
                length = len(segment)
                if sent >= length:
                    sent -= length
                else:
                    self.backlog += segment[sent:]
                    sent = 0
        for segment in segments:
            self.backlog += segment
        if self.backlog and not self.widened:
            self.widen()
        self.forwarded(len(self.backlog))

    def widen(self) -> None:
        """Let the socket hold more; that there is room now is an event like any other."""
        self.widened = True
        if self.socket is not None and self.unix:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def deliver_message(self) -> None:
        """The message is complete: pass it on, after what is held.

        Raises:
            OSError: The socket takes no more, or not a message of this length.
        """
        waiting = self.holding
        self.backlog += self.message
        if self.lengths is None:
            self.lengths = deque()
        self.lengths.append(len(self.message))
        self.message.clear()
        if not waiting:
            self._send_held()

    def flush(self) -> None:
        """Pass on what is held, as far as the socket takes it.

        Raises:
            OSError: The socket takes no more, ever. The backlog is gone.
        """
        self._send_held()
        self.note_forwarded(drained=not self.holding)

    def _send_held(self) -> None:
        if self.socket is None:
            return
        try:
            while self.holding:
                length = self.lengths[0] if self.lengths else len(self.backlog)
                with memoryview(self.backlog) as held, held[:length] as first:
                    sent = self.socket.send(first, socket.MSG_NOSIGNAL)
                del self.backlog[:sent]
                if self.lengths:
                    self.lengths.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._stop_writing()
            raise

    def note_forwarded(self, *, drained: bool = False) -> None:
        """Schedule what credit the guest gets back.

        Of messages it gets it back when none is held, for then all that arrived is with the host or the
        beginning of one message; so what is held is bounded by the window and one message.
        """
        if self.stream:
            self.forwarded(len(self.backlog), drained=drained)
        elif not self.holding:
            self.forwarded(0, drained=drained)

    def _stop_writing(self) -> None:
        self.write_closed = True
        self.drop_backlog()
        self.forwarded(0)

    def close_write(self) -> None:
        """Let the host program see the end of what the guest sends."""
        self.write_closed = True
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
