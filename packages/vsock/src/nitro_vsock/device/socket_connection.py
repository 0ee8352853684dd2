"""A connection joined with a socket of the host: how bytes get to the socket, and what is held meanwhile.

Bytes of the guest go from guest memory to the socket in one system call per batch. What a slow host program
does not take at once is copied into our memory, so that the guest gets its descriptors back. The guest's
credit bounds how much that can be.
"""

import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.connection import Connection, State
from nitro_vsock.device.packet import Address, Shutdown
from nitro_vsock.device.receive_ring import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
LENGTH_BYTES: Final = 32
"""What it costs to hold the length of one message."""
WIDTH_MIN: Final = 2
WIDTH_MAX: Final = 64
"""How many receive buffers of the guest one system call fills, at least and at most."""
SEND_BUFFER_BYTES: Final = 256 << 10
"""What a unix socket's own buffer may hold.

It is the default window, so that a host program that keeps up costs us no copy, and that no message is too
long for the socket. Streams get it the first time that the usual size is too small.
"""


class Doubt:
    """What epoll says of a stream's socket that can be written, and whether that asks for a look.

    A host program that only shuts down its reading shows by no event of its own. Epoll wakes up all the same,
    as it does whenever the program has read something.
    """

    NEW: Final = 0
    """Nothing was reported yet. The first report only says that the socket is connected."""
    NONE: Final = 1
    """It was looked at since the last report."""
    WAITS: Final = 2
    """It is in `ConnectionTable.doubtful`."""


class Record:
    """The byte behind each message between two guests, because a unix socket keeps no record boundaries.

    An empty message, which has not even this byte, says that its sender will not receive any more.
    """

    GOES_ON: Final = 0
    END: Final = 1


class SocketConnection(Connection):
    """A connection and the non-blocking socket that it is joined with."""

    __slots__ = (
        "backlog",
        "deadline",
        "doubt",
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
        "record_ends",
        "records",
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
        """The socket's descriptor; -1 without a socket."""
        self.unix = True
        """Whether it is a unix socket."""
        self.records = False
        """Whether the other end is a guest of ours, and each message has a byte of `Record` behind it."""
        self.greeting = b""
        """What the host program is told when the guest accepts."""
        self.unread_line = 0
        """Bytes at the front of the socket that are not for the guest, see `take_line`."""
        self.on_result: Callable[[bool], None] | None = None
        """Whom to tell whether the guest accepted, once."""
        self.deadline: float | None = None
        """See `nitro_vsock.device.timers`."""

        # From the guest to the host
        self.segments: list[memoryview] = []
        """Guest memory that goes to the socket at the end of this batch; streams only."""
        self.message = bytearray()
        """The beginning of a message whose end the guest has not sent yet."""
        self.backlog = bytearray()
        """Bytes that the host program has not taken."""
        self.lengths: deque[int] | None = None
        """The lengths of the messages in the backlog; `None` until there was one."""
        self.write_closed = False
        """The host program's end of the socket takes no more."""
        self.widened = False
        """The socket's buffer was made larger than usual."""
        self.doubt = Doubt.NEW
        """Whether the host program still reads, as far as we know: a `Doubt`."""
        self.lingering = False
        """The connection is over for the guest, and the backlog is still to be delivered."""

        # From the host to the guest
        self.readable = False
        """The socket may have something to read, or its end."""
        self.ending = False
        """The host program sends no more. There may be data to read before its end."""
        self.hangup = False
        """The host program has closed its socket. There may be data to read before its end."""
        self.queued = False
        """In the queue of the connections that have something for the guest."""
        self.stalled = False
        """The host program has sent data, and the guest has given no credit to pass it on."""
        self.outgoing = NOTHING
        """The rest of a message of the host."""
        self.record_ends = False
        """Whether that message ends a record."""
        self.width = WIDTH_MIN
        """How many receive buffers the next read fills. It doubles after each read that filled all of
        them."""

    def may_read(self) -> bool:
        """Whether the host may have something that the guest would take now."""
        return (
            self.readable
            and not self.stalled
            and self.state == State.ESTABLISHED
            and not self.guest_shutdown & Shutdown.RECEIVE
        )

    @property
    def held_bytes(self) -> int:
        """How much memory it takes to hold what the host program has not taken."""
        if self.stream:
            return len(self.backlog)
        lengths = LENGTH_BYTES * len(self.lengths) if self.lengths else 0
        return len(self.backlog) + len(self.message) + lengths

    @property
    def holding(self) -> bool:
        """Whether there is something that the host program has not taken."""
        return bool(self.backlog or self.lengths)

    def drop_backlog(self) -> None:
        """Forget what is held, because nobody will take it."""
        self.backlog.clear()
        self.lengths = None
        self.message.clear()

    def send_segments(self) -> None:
        """Send this batch's segments after what is held already, and hold what the socket does not take.

        Raises:
            OSError: The socket takes no more, ever. Segments and backlog are gone.
        """
        segments, self.segments = self.segments, []
        if self.write_closed or self.socket is None:
            self.forwarded(0)  # nobody reads it; the guest gets its credit back and may go on
            return
        # A backlog must go first, and the socket had no room for it, so it has none for these segments
        # either.
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
            if sent and self.doubt == Doubt.WAITS:
                self.doubt = Doubt.NONE  # the program reads, or there would have been an error
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
        """Let the socket hold more. Epoll reports the new room as it reports any other."""
        self.widened = True
        if self.socket is not None and self.unix:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def send_message(self, *, record_ends: bool) -> None:
        """Send the message, which is complete, after what is held already.

        Args:
            record_ends: Whether it ends a record. A unix socket cannot say that to a host program.

        Raises:
            OSError: The socket takes no more, or takes no message of this length.
        """
        waiting = self.holding
        if self.records:
            self.message.append(Record.END if record_ends else Record.GOES_ON)
        self.backlog += self.message
        if self.lengths is None:
            self.lengths = deque()
        self.lengths.append(len(self.message))
        self.message.clear()
        if not waiting:
            self._send_held()

    def send_no_more(self) -> None:
        """Tell the guest at the other end that this one will not receive any more messages.

        It is told only if the socket has room, because this need not wait: otherwise it learns when it sends
        the next one. Messages that are held may come after this, because it is about the other way.
        """
        if self.socket is not None:
            with suppress(OSError):
                self.socket.send(b"", socket.MSG_NOSIGNAL)

    def send_held(self) -> None:
        """Send what is held, as far as the socket takes it.

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
                # A stream's backlog goes out as one piece, messages go out one by one.
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
        """Give the guest the credit back that the host program has made free.

        For messages to a host program the guest gets it back when none is held, because then everything that
        has arrived is with the program or belongs to one unfinished message. So what is held is bounded by
        the window and one message.
        """
        if self.stream:
            self.forwarded(len(self.backlog), drained=drained)
        elif not self.holding:
            self.forwarded(0, drained=drained)

    def _stop_writing(self) -> None:
        self.takes_no_more()
        self.drop_backlog()
        self.forwarded(0)

    def takes_no_more(self) -> None:
        """Nothing more goes to the other end, so its credit does not matter any more."""
        self.write_closed = True
        self.sends = None

    def close_write(self) -> None:
        """Let the host program see the end of what the guest sends."""
        self.takes_no_more()
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
