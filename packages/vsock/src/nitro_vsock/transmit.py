"""From the guest: packets out of the transmit ring, data on to the host's sockets, a batch at a time."""

from collections.abc import Callable
from typing import Final

from nitro_vsock.connection import State, Verdict
from nitro_vsock.errors import ChainError
from nitro_vsock.link import Link
from nitro_vsock.links import Links
from nitro_vsock.opening import Opener
from nitro_vsock.packet import HEADER, HEADER_BYTES, Address, Fields, Op, Sequence
from nitro_vsock.receive_ring import trim
from nitro_vsock.split_queue import Chain, SplitQueue

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
        touched: list[Link] = []
        data_bytes = data_packets = 0
        for chain in chains:
            segments = chain.readable
            if not segments or len(segments[0]) < HEADER_BYTES:
                if not _join_header(chain):
                    self._links.counters.bad_packets += 1
                    continue
                segments = chain.readable
            first = segments[0]
            # Read once: the guest may rewrite it at any time.
            fields: Fields = unpack(first)
            src_cid, host_cid, guest_port, host_port, length, kind, op, flags, buf_alloc, fwd_cnt = fields
            if src_cid != guest_cid:
                self._links.counters.bad_packets += 1
                continue
            address = (guest_port, host_port, host_cid)
            link = links.get(address)
            if op != Op.RW or link is None or kind != link.kind:
                self._receive_control(link, address, kind, (op, flags, buf_alloc, fwd_cnt))
                continue
            if not link.receive_data(length, buf_alloc, fwd_cnt):
                self._links.counters.credit_violations += link.rx_cnt - link.fwd_cnt > link.buf_alloc
                self._links.finish(link, reset=True)
                continue
            if link.stalled:
                self._links.unstall(link)
            if len(segments) == 2 and len(first) == HEADER_BYTES and len(segments[1]) == length:
                del segments[0]
                payload = segments
            else:
                cut = _payload(segments, length)
                if cut is None:
                    self._links.counters.bad_packets += 1
                    self._links.finish(link, reset=True)
                    continue
                payload = cut
            data_bytes += length
            data_packets += 1
            if not link.stream:
                self._links.deliver_message(link, payload, last=flags & Sequence.END_OF_MESSAGE != 0)
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

    def _receive_control(
        self, link: Link | None, address: Address, kind: int, rest: tuple[int, int, int, int]
    ) -> None:
        """Take in any packet but data of a connection; ``rest`` is op, flags, buf_alloc, fwd_cnt."""
        op, flags, buf_alloc, fwd_cnt = rest
        if link is None:
            if op == Op.REQUEST:
                self._opener.guest_connects(address, kind, buf_alloc, fwd_cnt)
            elif op != Op.RST:
                self._links.refuse(address, kind)
            return
        if link.segments:
            self._links.deliver(link)  # what the guest sent before this
            if link.state == State.CLOSED:
                return
        if kind != link.kind:
            self._links.finish(link, reset=True)
            return
        match link.receive(op, flags, buf_alloc, fwd_cnt):
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
