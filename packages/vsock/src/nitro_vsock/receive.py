"""To the guest: what is due goes into its receive buffers, data straight from the host's sockets."""

import errno
import os
import socket
from typing import Final

from nitro_vsock.connection import State
from nitro_vsock.host_side import UCRED
from nitro_vsock.link import IOV_MAX, WIDTH_MAX, WIDTH_MIN, Link
from nitro_vsock.links import Links
from nitro_vsock.packet import Op, Sequence
from nitro_vsock.receive_ring import ReceiveRing, trim

RECEIVE_BUFFERS_PER_ROUND: Final = 256


class Receiver:
    """Fills the receive ring.

    Args:
        links: The guest's connections.
        ring: Its receive buffers.
    """

    def __init__(self, links: Links, ring: ReceiveRing) -> None:
        self._links, self.ring = links, ring
        self.starved = False
        """There was more to send than buffers."""

    def batch(self) -> bool:
        """Fill receive buffers with what is due; true if that was something, and there may be more."""
        ring = self.ring
        self.starved = False
        resets, ready = self._links.resets, self._links.ready
        budget = RECEIVE_BUFFERS_PER_ROUND
        while resets:
            if not ring.put(resets[0]):
                self.starved = True
                break
            resets.popleft()
            self._links.counters.resets += 1
            budget -= 1
        served = 0
        for _ in range(len(ready)):
            if self.starved or budget <= served:
                break
            link = ready.popleft()
            link.queued = False
            used, again = self._serve(link)
            served += used
            if again:
                link.queued = True
                if self.starved:
                    ready.appendleft(link)
                else:
                    ready.append(link)
        return not self.starved and bool(ready or resets)

    def _serve(self, link: Link) -> tuple[int, bool]:
        """What one link has for the guest: how many buffers it took, and whether there is more."""
        ring, used = self.ring, 0
        if link.state == State.CLOSED:
            return 0, False
        while link.pending:
            if not ring.ready():
                self.starved = True
                return used, True
            header = link.next_control()
            if header is not None:
                ring.put(header)
                used += 1
        if not link.may_read():
            return used, False
        try:
            used += self._read_stream(link) if link.stream else self._read_message(link)
        except BlockingIOError:
            link.readable = False
        except OSError:
            self._links.finish(link, reset=True)
            return used, False
        return used, link.may_read() or bool(link.pending)

    def _read_stream(self, link: Link) -> int:
        """Read from the host straight into receive buffers; returns how many.

        Raises:
            OSError: From the socket.
        """
        credit, packets = link.credit, link.packet_credit
        if not credit or not packets:
            self._links.stall(link)
            return 0
        ring = self.ring
        buffers = ring.peek(min(link.width, packets))
        if not buffers:
            self.starved = True
            return 0
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
        count = os.readv(link.fd, views)
        if not count:
            self._links.host_eof(link)
            return 0
        left, last, header = count, -1, b""
        lengths = []
        for buffer in buffers:
            length = min(buffer.capacity, left)
            if length != last:
                header, last = link.header(Op.RW, length), length
            buffer.write_header(header)
            lengths.append(length)
            left -= length
            if not left:
                break
        ring.consume(lengths)
        used = len(lengths)
        link.sent(count, used)
        if count == room:
            if link.width < WIDTH_MAX:
                link.width *= 2
        else:
            # Drained, unless the end comes next; what TCP has before urgent data comes alone.
            link.readable = link.ending or not link.unix
            link.width = max(WIDTH_MIN, used)
        self._links.counters.bytes_to_guest += count
        self._links.counters.packets_to_guest += used
        return used

    def _read_message(self, link: Link) -> int:
        """Send a message of the host in as many packets as it takes; returns how many now.

        Raises:
            OSError: From the socket.
        """
        sock = link.socket
        if sock is None:
            return 0
        if not self.ring.ready():
            self.starved = True
            return 0
        if not link.outgoing:
            size = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            if size > link.peer_buf_alloc:
                raise OSError(errno.EMSGSIZE, "the guest cannot take a message of this size")
            if not size:
                if not link.unix or not _is_message(sock):
                    self._links.host_eof(link)
                    return 0
                return self._send_piece(link)
            link.outgoing = memoryview(sock.recv(size))
        used = 0
        while link.outgoing:
            if not link.credit or not link.packet_credit:
                self._links.stall(link)
                break
            sent = self._send_piece(link)
            used += sent
            if not sent:
                break
        return used

    def _send_piece(self, link: Link) -> int:
        buffers = self.ring.peek(1)
        if not buffers:
            self.starved = True
            return 0
        piece = link.outgoing[: min(buffers[0].capacity, link.credit)]
        link.outgoing = link.outgoing[len(piece) :]
        flags = 0 if link.outgoing else Sequence.END_OF_MESSAGE
        self.ring.put(link.header(Op.RW, len(piece), flags), piece)
        if piece:  # an empty one is not metered, for no count of bytes tells that the guest has taken it
            link.sent(len(piece), 1)
        self._links.counters.bytes_to_guest += len(piece)
        self._links.counters.packets_to_guest += 1
        return 1


def _is_message(sock: socket.socket) -> bool:
    """Take a message of no bytes; false if it is the end instead.

    Both look the same, but a message brings its sender's credentials to who asks (unix(7), SO_PASSCRED).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        _, credentials, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(UCRED.size))
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)  # else it gets a name when it sends
    return bool(credentials)
