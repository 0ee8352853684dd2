"""To the guest: what is due goes into its receive buffers, data straight from the host's sockets.

Data is not copied by us: one system call reads it from the socket into the guest's own buffers, as many at a
time as the connection has proved to need.
"""

import errno
import os
import socket
from typing import Final

from nitro_vsock.device.connection import State
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.credit_wait import CreditWait
from nitro_vsock.device.endings import Endings
from nitro_vsock.device.packet import Op, Sequence
from nitro_vsock.device.receive_ring import ReceiveRing, trim
from nitro_vsock.device.socket_connection import IOV_MAX, WIDTH_MAX, WIDTH_MIN, Record, SocketConnection
from nitro_vsock.host.unix import UCRED

RECEIVE_BUFFERS_PER_ROUND: Final = 256
"""Buffers filled before the transmit ring is looked at again. A connection may take 64 of them in its
turn."""


class Receiver:
    """Fills the receive ring of one guest.

    Args:
        ring: Its receive buffers.
        table: The guest's connections.
        endings: What ends connections.
        credit_wait: Where connections wait for the guest's credit.
        counters: Where everything is counted.
    """

    def __init__(
        self,
        ring: ReceiveRing,
        *,
        table: ConnectionTable,
        endings: Endings,
        credit_wait: CreditWait,
        counters: Counters,
    ) -> None:
        self.ring = ring
        self._table = table
        self._endings = endings
        self._credit_wait = credit_wait
        self._counters = counters
        self.starved = False
        """There was more to send than the guest has offered buffers."""
        self.awaited = False
        """Whether a program of the guest may wait for what the last batch sent."""
        self.has_asked = False
        """Whether the guest was asked for a connection, since somebody else set this to false."""

    def batch(self) -> bool:
        """Fill receive buffers with what is due; true if there may be more at once.

        The caller publishes the queue.

        Raises:
            QueueError: The ring is broken.
        """
        ring = self.ring
        self.starved = False
        resets, ready = self._table.resets, self._table.ready
        budget = RECEIVE_BUFFERS_PER_ROUND
        self.awaited = self._table.resets_awaited
        # RSTs first: they are short, they free the guest's resources, and too many of them choke the guest.
        while resets:
            if not ring.put(resets[0]):
                self.starved = True
                break
            resets.popleft()
            self._counters.resets += 1
            budget -= 1
        self._table.resets_awaited = bool(resets)
        served = 0
        # Each connection that is ready now gets one turn, so that those with much data share the buffers
        # fairly.
        for _ in range(len(ready)):
            if self.starved or budget <= served:
                break
            connection = ready.popleft()
            connection.queued = False
            used, again = self._serve(connection)
            served += used
            if again:
                connection.queued = True
                if self.starved:
                    ready.appendleft(connection)  # its turn was cut short, so it comes first next time
                else:
                    ready.append(connection)
        self.awaited |= served > 0
        return not self.starved and bool(ready or resets)

    def _serve(self, connection: SocketConnection) -> tuple[int, bool]:
        """Send what one connection has for the guest.

        Returns:
            How many buffers it took, and whether there is more.
        """
        ring, used = self.ring, 0
        if connection.state == State.CLOSED:
            return 0, False  # it ended while it waited for its turn
        # Control packets come before data: the guest may wait for one of them in order to take the data at
        # all.
        while connection.pending:
            if not ring.ready():
                self.starved = True
                return used, True
            header = connection.next_control()
            if header is not None:
                ring.put(header)
                used += 1
                self.has_asked |= connection.state == State.REQUESTED
        if not connection.may_read():
            return used, False
        try:
            used += self._read_stream(connection) if connection.stream else self._read_message(connection)
        except BlockingIOError:
            connection.readable = False  # epoll's next edge makes it readable again
        except OSError:
            self._endings.finish(connection, reset=True)
            return used, False
        return used, connection.may_read() or bool(connection.pending)

    def _read_stream(self, connection: SocketConnection) -> int:
        """Read from the host straight into receive buffers; returns how many were filled.

        Raises:
            OSError: From the socket.
        """
        credit, packets = connection.credit, connection.packet_credit
        if not credit or not packets:
            self._credit_wait.stall(connection)
            return 0
        ring = self.ring
        buffers = ring.peek(min(connection.width, packets))
        if not buffers:
            self.starved = True
            return 0
        # Offer the socket the data part of each buffer, up to the guest's credit and the system's limit.
        views: list[memoryview] = []
        room = 0
        for buffer in buffers:
            buffer.add_data(views)
            room += buffer.capacity
            if room >= credit:
                break
        if room > credit:
            views, room = trim(views, credit), credit
        if len(views) > IOV_MAX:
            views = views[:IOV_MAX]
            room = sum(map(len, views))
        # readv and not recvmsg_into, which would make a tuple and a list of control messages for every call.
        count = os.readv(connection.fd, views)
        if not count:
            self._endings.host_eof(connection)
            return 0
        # Now it is known how much each buffer holds, so the headers can be written. All full buffers of the
        # same size share one header, because nothing in it differs.
        left, last, header = count, -1, b""
        lengths = []
        for buffer in buffers:
            length = min(buffer.capacity, left)
            if length != last:
                header, last = connection.header(Op.RW, length), length
            buffer.write_header(header)
            lengths.append(length)
            left -= length
            if not left:
                break
        ring.consume(lengths)
        used = len(lengths)
        connection.sent(count, used)
        # The next read is twice as wide if this one was filled, else as wide as this one proved to need. It
        # shrinks by half at most, because a program that writes much is often read before it has written all.
        if count == room:
            if connection.width < WIDTH_MAX:
                connection.width *= 2
        else:
            # A short read means that the socket is empty. There are two exceptions: the end of the data,
            # which is a read of nothing, comes after it; and on TCP a read stops short in front of urgent
            # data.
            connection.readable = connection.ending or not connection.unix
            connection.width = max(WIDTH_MIN, used, connection.width // 2)
        self._counters.bytes_to_guest += count
        self._counters.packets_to_guest += used
        return used

    def _read_message(self, connection: SocketConnection) -> int:
        """Send a message of the host in as many packets as it takes; returns how many went out now.

        Raises:
            OSError: From the socket, or the message is too long for the guest.
        """
        sock = connection.socket
        if sock is None:
            return 0
        if not self.ring.ready():
            self.starved = True
            return 0
        if not connection.outgoing:
            # MSG_TRUNC has the kernel tell the message's whole length, so that it can be read in one piece.
            size = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            if size - connection.records > connection.peer_buf_alloc:
                # The guest puts a message together in its window, so a longer one could never arrive.
                raise OSError(errno.EMSGSIZE, "the guest cannot take a message of this size")
            if not size:
                if not connection.unix or not _is_message(sock):
                    self._endings.host_eof(connection)
                    return 0
                if connection.records:
                    self._endings.sibling_receives_no_more(connection)
                    return 0
                return self._send_piece(connection)
            connection.outgoing = memoryview(sock.recv(size))
            if connection.records:
                connection.record_ends = connection.outgoing[-1] == Record.END
                connection.outgoing = connection.outgoing[:-1]
                if not connection.outgoing:
                    return self._send_piece(connection)
        used = 0
        while connection.outgoing:
            if not connection.credit or not connection.packet_credit:
                self._credit_wait.stall(connection)
                break
            sent = self._send_piece(connection)
            used += sent
            if not sent:
                break
        return used

    def _send_piece(self, connection: SocketConnection) -> int:
        """Send as much of the message as fits one buffer; returns 1, or 0 if there is no buffer."""
        buffers = self.ring.peek(1)
        if not buffers:
            self.starved = True
            return 0
        piece = connection.outgoing[: min(buffers[0].capacity, connection.credit)]
        connection.outgoing = connection.outgoing[len(piece) :]
        flags = 0
        if not connection.outgoing:
            flags = Sequence.END_OF_MESSAGE
            if connection.record_ends:
                flags |= Sequence.END_OF_RECORD
        self.ring.put(connection.header(Op.RW, len(piece), flags), piece)
        if (
            piece
        ):  # an empty packet is not metered, because no count of bytes would tell that the guest took it
            connection.sent(len(piece), 1)
        self._counters.bytes_to_guest += len(piece)
        self._counters.packets_to_guest += 1
        return 1


def _is_message(sock: socket.socket) -> bool:
    """Take an empty message out of the socket; false if it is the end of the messages instead.

    A read of nothing can be either. But a message brings the credentials of its sender to whoever asks for
    them (unix(7), SO_PASSCRED), and the end brings nothing.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        _, credentials, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(UCRED.size))
    finally:
        # With this option on, the kernel would give the socket a name when it sends.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    return bool(credentials)
