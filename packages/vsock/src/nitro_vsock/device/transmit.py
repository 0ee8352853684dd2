"""From the guest: packets out of the transmit ring in batches, and their data on to the host's sockets.

A batch is what makes this fast: all data that it brings for one connection goes to its socket in one system
call, and all its descriptors go back to the guest with one interrupt.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nitro_vsock.device.connection import State, Verdict
from nitro_vsock.device.connection_table import ConnectionTable
from nitro_vsock.device.counters import Counters
from nitro_vsock.device.credit_wait import CreditWait
from nitro_vsock.device.delivery import Delivery
from nitro_vsock.device.dialing import Dialer
from nitro_vsock.device.endings import Endings
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Address, Fields, Op
from nitro_vsock.device.receive_ring import trim
from nitro_vsock.device.sibling_credit import SiblingCredit
from nitro_vsock.device.socket_connection import SocketConnection
from nitro_vsock.errors import ChainError
from nitro_vsock.virtio.split_queue import Chain, SplitQueue

if TYPE_CHECKING:
    from nitro_vsock.plain_config import VsockSettings

TRANSMIT_BATCH: Final = 64
"""Packets taken at once. More would keep the guest's descriptors, and the packets to it, waiting longer."""


class Transmitter:
    """Serves the transmit ring of one guest.

    Args:
        config: The guest's address.
        queue: The ring.
        table: The guest's connections.
        dialer: What begins connections.
        delivery: What passes data on.
        endings: What ends connections.
        credit_wait: Who waits for the credit that packets bring.
        sibling_credit: Who waits for the credit of siblings.
        counters: Where everything is counted.
        note_bad_chain: Called for every chain that broke the rules.
    """

    def __init__(
        self,
        config: "VsockSettings",
        queue: SplitQueue,
        *,
        table: ConnectionTable,
        dialer: Dialer,
        delivery: Delivery,
        endings: Endings,
        credit_wait: CreditWait,
        sibling_credit: SiblingCredit,
        counters: Counters,
        note_bad_chain: Callable[[], None],
    ) -> None:
        self.queue = queue
        self._table = table
        self._dialer = dialer
        self._delivery = delivery
        self._endings = endings
        self._credit_wait = credit_wait
        self._sibling_credit = sibling_credit
        self._counters = counters
        self._guest_cid = config.guest_cid
        self._note_bad_chain = note_bad_chain
        self.taken = 0
        """How many packets the last batch had."""
        self.last_op = 0
        """What its last one was, an `Op`; 0 if it was of no use."""

    def batch(self) -> bool:
        """Take packets from the ring and pass their data on; true if more may follow soon.

        The caller publishes the queue.

        Raises:
            QueueError: The ring is broken.
        """
        queue = self.queue
        self.taken = self.last_op = 0
        if self._table.choked:
            return False
        try:
            chains = queue.pop_many(TRANSMIT_BATCH)
        except ChainError:
            self._note_bad_chain()
            return True
        if not chains:
            return False
        queue.disable_notifications()  # as long as we come back by ourselves, kicks are wasted
        by_address, guest_cid, unpack = self._table.by_address, self._guest_cid, HEADER.unpack_from
        touched: list[SocketConnection] = []
        data_bytes = data_packets = op = 0
        for chain in chains:
            segments = chain.readable
            if not segments or len(segments[0]) < HEADER_BYTES:
                # The driver may cut a packet wherever it likes (virtio 1.3 §2.7.4.1). None does it here, so
                # the copy that makes the header whole need not be fast.
                if not _join_header(chain):
                    self._counters.bad_packets += 1
                    continue
                segments = chain.readable
            first = segments[0]
            # Read once, because the guest may rewrite it at any time.
            fields: Fields = unpack(first)
            src_cid, host_cid, guest_port, host_port, length, kind, op, flags, buf_alloc, fwd_cnt = fields
            if src_cid != guest_cid:
                # Not even an RST: it would go to the guest that really has this address.
                self._counters.bad_packets += 1
                continue
            # A tuple of plain numbers is the fastest key that a dictionary can have.
            address = (guest_port, host_port, host_cid)
            connection = by_address.get(address)
            if op != Op.RW or connection is None or kind != connection.kind:
                self._receive_control(connection, address, kind, (op, flags, buf_alloc, fwd_cnt))
                continue
            if not connection.receive_data(length, buf_alloc, fwd_cnt):
                # Either the guest ended its sending before, or it sent more than it had credit for.
                over = connection.rx_cnt - connection.accepted > connection.buf_alloc
                self._counters.credit_violations += over
                self._endings.finish(connection, reset=True)
                continue
            if connection.stalled:
                self._credit_wait.unstall(connection)
            if len(segments) == 2 and len(first) == HEADER_BYTES and len(segments[1]) == length:
                del segments[0]  # header and data apart is what Linux does, so nothing has to be cut
                payload = segments
            else:
                cut = _payload(segments, length)
                if cut is None:
                    self._counters.bad_packets += 1
                    self._endings.finish(connection, reset=True)
                    continue
                payload = cut
            data_bytes += length
            data_packets += 1
            if not connection.stream:
                self._delivery.take_message(connection, payload, flags)
                continue
            # Data of one connection is gathered over the whole batch, however the connections are
            # interleaved.
            if not connection.segments:
                touched.append(connection)
            connection.segments += payload
        for connection in touched:
            if connection.segments:  # unless a control packet later in the batch has passed them on
                self._delivery.pass_on(connection)
        # Only now, because until here the sockets were fed from the guest's own buffers.
        queue.push_unwritten(chains)
        counters = self._counters
        counters.bytes_to_host += data_bytes
        counters.packets_to_host += data_packets
        self.taken, self.last_op = len(chains), op
        # A lone packet may well be a question, and then its answer should not wait until we have looked for
        # more.
        return len(chains) > 1

    def _receive_control(
        self,
        connection: SocketConnection | None,
        address: Address,
        kind: int,
        rest: tuple[int, int, int, int],
    ) -> None:
        """Take in any packet but data of a connection; ``rest`` is op, flags, buf_alloc, fwd_cnt."""
        op, flags, buf_alloc, fwd_cnt = rest
        if connection is None:
            if op == Op.REQUEST:
                self._dialer.guest_connects(address, kind, buf_alloc, fwd_cnt)
            elif op != Op.RST:  # which nothing answers, or two sides could reset each other for ever
                self._table.refuse(address, kind)
            return
        if connection.segments:
            self._delivery.pass_on(connection)  # what the guest sent before this packet comes before it
            if connection.state == State.CLOSED:
                return
        if kind != connection.kind:
            self._endings.finish(connection, reset=True)
            return
        is_answer = connection.state == State.REQUESTED
        match connection.receive(op, flags, buf_alloc, fwd_cnt):
            case Verdict.NOTHING:
                pass
            case Verdict.ACCEPTED:
                self._dialer.guest_accepted(connection)
            case Verdict.SHUTDOWN:
                self._endings.follow_guest_shutdown(connection)
            case Verdict.RESET:
                self._counters.refused += is_answer
                self._endings.finish(connection, reset=False)
                return
            case Verdict.FINISHED | Verdict.VIOLATION:
                self._endings.finish(connection, reset=True)
                return
        if connection.stalled:
            self._credit_wait.unstall(connection)
        lane = connection.sends
        if lane is not None:
            if op == Op.CREDIT_REQUEST:
                self._sibling_credit.guest_asks(lane)
            self._sibling_credit.look_at(connection, lane)  # its own buffer may have become smaller
        if connection.pending:
            self._table.queue(connection)


def _join_header(chain: Chain) -> bool:
    """Make the packet one piece, because its header is in several; false if there is no whole header."""
    joined = b"".join(chain.readable)
    if len(joined) < HEADER_BYTES:
        return False
    chain.readable = [memoryview(joined)]
    return True


def _payload(segments: list[memoryview], length: int) -> list[memoryview] | None:
    """The ``length`` bytes after the header; `None` if there are not so many."""
    first = segments[0]
    pieces = [first[HEADER_BYTES:], *segments[1:]] if len(first) > HEADER_BYTES else segments[1:]
    have = sum(map(len, pieces))
    if have < length:
        return None
    return pieces if have == length else trim(pieces, length)
