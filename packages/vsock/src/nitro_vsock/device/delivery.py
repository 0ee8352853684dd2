"""From the guest to host programs: passing bytes and messages on, and keeping account of what is held."""

import select
import socket
from typing import TYPE_CHECKING

from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.endings import Endings
from nitro_vsock.device.packet import Sequence, Shutdown
from nitro_vsock.device.sibling_credit import SiblingCredit
from nitro_vsock.device.socket_connection import Doubt, SocketConnection

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings


class Delivery:
    """Passes on what one guest sends.

    Args:
        config: How much may be held for host programs that do not read.
        table: The guest's connections.
        endings: What ends those that break a limit.
        sibling_credit: Where connections wait for the credit of siblings.
        counters: Where what is held is counted.
    """

    def __init__(
        self,
        config: "VsockSettings",
        table: ConnectionTable,
        endings: Endings,
        sibling_credit: SiblingCredit,
        counters: Counters,
    ) -> None:
        self._table = table
        self._sibling_credit = sibling_credit
        self._endings = endings
        self._counters = counters
        self._buffered_bytes_max = config.buffered_bytes_max

    def pass_on(self, connection: SocketConnection) -> None:
        """Pass on what this batch brought for a stream."""
        held = connection.held_bytes
        try:
            connection.send_segments()
        except OSError as error:
            self._endings.host_refuses(connection, error)
        self._note_held(connection, held)

    def take_message(self, connection: SocketConnection, payload: list[memoryview], flags: int) -> None:
        """Take a piece of a message, and pass the message on when this is its last piece.

        Args:
            connection: The connection.
            payload: The piece.
            flags: The packet's flags (`Sequence`).
        """
        held = connection.held_bytes
        for segment in payload:
            connection.message += segment
        # The window bounds the bytes of messages. Their number is bounded in the same way, because empty
        # messages use no credit.
        waiting = connection.lengths
        if len(connection.message) > connection.buf_alloc or (
            waiting and len(waiting) > connection.buf_alloc
        ):
            self._counters.credit_violations += 1
            self._counters.buffered_bytes += connection.held_bytes - held
            self._endings.finish(connection, reset=True)
            return
        try:
            if connection.write_closed or connection.socket is None:
                connection.message.clear()
            elif flags & Sequence.END_OF_MESSAGE:
                connection.send_message(record_ends=flags & Sequence.END_OF_RECORD != 0)
            connection.note_forwarded()
        except OSError as error:
            self._endings.host_refuses(connection, error)
        self._note_held(connection, held)

    def flush(self, connection: SocketConnection) -> None:
        """The host program reads again: pass on what is held for it."""
        held = connection.held_bytes
        try:
            connection.send_held()
        except OSError as error:
            self._endings.host_refuses(connection, error)
        self._note_held(connection, held)
        if connection.holding:
            return
        if connection.lingering:
            self._endings.end_lingering(connection)
        else:
            self._endings.follow_guest_shutdown(connection)

    def look_at_doubtful(self) -> bool:
        """Ask the host programs that may have stopped reading; true if the guest has to hear of one.

        The guest should hear of it before it sends. But each look is a system call, so nobody looks while
        there is something better to do.
        """
        doubtful, ready = self._table.doubtful, self._table.ready
        before = len(ready)
        while doubtful:
            self._ask_whether_read(doubtful.pop())
        return len(ready) > before

    def _ask_whether_read(self, connection: SocketConnection) -> None:
        """Ask a stream's unix socket whether the host program still reads, by sending nothing."""
        if connection.doubt != Doubt.WAITS:
            return  # something was sent meanwhile, which tells as much
        connection.doubt = Doubt.NONE
        sock = connection.socket
        if sock is None or connection.write_closed or connection.shutdown_sent & Shutdown.RECEIVE:
            return
        try:
            sock.send(b"", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError as error:
            # One that has closed its socket meanwhile shows by an event, and what it sent before comes first.
            if not _has_closed(sock):
                connection.takes_no_more()
                self._endings.host_refuses(connection, error)

    def pass_on_all(self) -> None:
        """Pass on what this batch brought for every stream."""
        for connection in list(self._table.by_address.values()):
            if connection.segments:
                self.pass_on(connection)

    def _note_held(self, connection: SocketConnection, before: int) -> None:
        """Take note of what is held now, and let what became due wait for its turn.

        Args:
            connection: The connection.
            before: Bytes that were held for it before.
        """
        counters = self._counters
        now = connection.held_bytes
        if now != before:
            counters.buffered_bytes += now - before
            if now > before and counters.buffered_bytes > self._buffered_bytes_max:
                counters.budget_resets += 1
                self._table.drop_backlog(connection)
                self._endings.finish(connection, reset=True)
        if connection.sends is not None:
            self._sibling_credit.look_at(connection, connection.sends)
        if connection.pending and not connection.queued:
            self._table.queue(connection)


def _has_closed(sock: socket.socket) -> bool:
    """Whether the program at the other end has closed its socket, or shut it down in both directions."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)  # a hang-up is reported unasked
    return bool(poll.poll(0))
