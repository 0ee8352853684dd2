"""From the guest: packets out of the transmit ring, data on to the host's sockets, a batch at a time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nitro_vsock.connection import State, Verdict
from nitro_vsock.errors import ChainError
from nitro_vsock.links import Links
from nitro_vsock.opening import Opener
from nitro_vsock.packet import HEADER, HEADER_BYTES, Header, Op, Sequence, SocketType
from nitro_vsock.receive_ring import trim
from nitro_vsock.split_queue import Chain, SplitQueue

if TYPE_CHECKING:
    from nitro_vsock.link import Link

TRANSMIT_BATCH: Final = 64


class Transmitter:
    """Serves the transmit ring.

    Args:
        links: The guest's connections.
        queue: The ring.
        opener: What begins connections.
        note_bad_chain: Called for every chain that broke the rules.
    """

    def __init__(
        self, links: Links, queue: SplitQueue, opener: Opener, note_bad_chain: Callable[[], None]
    ) -> None:
        self._links, self.queue, self._opener = links, queue, opener
        self._guest_cid = links.config.guest_cid
        self._note_bad_chain = note_bad_chain

    def batch(self) -> bool:
        """Take packets from the transmit ring, and pass their data on; true if more may follow soon."""
        queue = self.queue
        if self._links.choked:
            return False
        try:
            chains = queue.pop_many(TRANSMIT_BATCH)
        except ChainError:
            self._note_bad_chain()
            return True
        if not chains:
            return False
        queue.disable_notifications()
        links, guest_cid, unpack = self._links.by_address, self._guest_cid, HEADER.unpack_from
        header_bytes, rw, stream = HEADER_BYTES, int(Op.RW), int(SocketType.STREAM)  # an enum's cost time
        touched: list[Link] = []
        data_bytes = data_packets = 0
        for chain in chains:
            segments = chain.readable
            if not segments or len(segments[0]) < header_bytes:
                if not _join_header(chain):
                    self._links.counters.bad_packets += 1
                    continue
                segments = chain.readable
            first = segments[0]
            # Read once: the guest may rewrite it at any time.
            header = unpack(first)
            src_cid, host_cid, guest_port, host_port, length, kind, op, flags, buf_alloc, fwd_cnt = header
            link = links.get((guest_port, host_port, host_cid))
            if op != rw or link is None or src_cid != guest_cid or kind != link.kind:
                self._receive_control(Header(*header))
                continue
            if not link.receive_data(length, buf_alloc, fwd_cnt):
                self._links.counters.credit_violations += link.rx_cnt - link.fwd_cnt > link.buf_alloc
                self._links.finish(link, reset=True)
                continue
            if link.stalled:
                self._links.unstall(link)
            if len(first) == header_bytes and len(segments) == 2 and len(segments[1]) == length:
                del segments[0]
                payload = segments
            elif (cut := _payload(segments, length)) is not None:
                payload = cut
            else:
                self._links.counters.bad_packets += 1
                self._links.finish(link, reset=True)
                continue
            data_bytes += length
            data_packets += 1
            if kind != stream:
                self._links.deliver_message(link, payload, last=bool(flags & Sequence.END_OF_MESSAGE))
                continue
            if not link.segments:
                touched.append(link)
            link.segments += payload
        for link in touched:
            if link.segments:
                self._links.deliver(link)
        queue.push_unwritten(chains)
        counters = self._links.counters
        counters.bytes_to_host += data_bytes
        counters.packets_to_host += data_packets
        return len(chains) > 1  # a lone one may well be a question that waits for its answer

    def _receive_control(self, header: Header) -> None:
        """Take in any packet but data of a connection that there is."""
        if header.src_cid != self._guest_cid:
            self._links.counters.bad_packets += 1
            return
        link = self._links.by_address.get((header.src_port, header.dst_port, header.dst_cid))
        if link is None:
            if header.op == Op.REQUEST:
                self._opener.guest_connects(header)
            elif header.op != Op.RST:
                self._links.refuse(header)
            return
        if link.segments:
            self._links.deliver(link)  # what the guest sent before this
            if link.state is State.CLOSED:
                return
        if header.type != link.socket_type:
            self._links.finish(link, reset=True)
            return
        match link.receive(header.op, header.flags, header.buf_alloc, header.fwd_cnt):
            case Verdict.NOTHING:
                pass
            case Verdict.ACCEPTED:
                self._opener.guest_accepted(link)
            case Verdict.SHUTDOWN:
                self._links.follow_guest_shutdown(link)
            case Verdict.RESET:
                self._links.finish(link, reset=False)
                return
            case Verdict.FINISHED | Verdict.VIOLATION:
                self._links.finish(link, reset=True)
                return
        if link.stalled:
            self._links.unstall(link)
        if link.pending:
            self._links.queue(link)


def _join_header(chain: Chain) -> bool:
    """Make the header of a packet one piece, when the driver split it; false if there is none."""
    joined = b"".join(chain.readable)
    if len(joined) < HEADER_BYTES:
        return False
    chain.readable = [memoryview(joined)]
    return True


def _payload(segments: list[memoryview], length: int) -> list[memoryview] | None:
    """The ``length`` bytes after the header; None if there are not so many."""
    first = segments[0]
    pieces = [first[HEADER_BYTES:], *segments[1:]] if len(first) > HEADER_BYTES else segments[1:]
    have = sum(map(len, pieces))
    if have < length:
        return None
    return pieces if have == length else trim(pieces, length)
