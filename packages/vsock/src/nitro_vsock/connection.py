"""One vsock connection as the device keeps it: states, credits, and which control packets are due.

Nothing here reads a socket, a ring or a clock: packets' numbers come in, decisions go out, and the caller
moves the bytes and keeps the deadlines.

A short primer (virtio 1.3 §5.10.6). One side sends REQUEST, the other RESPONSE; then both may send RW. RST
ends everything at once, and answers whatever does not fit; nothing answers an RST. SHUTDOWN says "I will
not send" or "I will not receive" any more; when both are said, the other side answers RST and the addresses
may be used again.

Credit: every packet carries its sender's ``buf_alloc`` (size of its receive buffer) and ``fwd_cnt`` (bytes
it has taken out of that buffer so far). A sender may have ``buf_alloc`` bytes on the way that ``fwd_cnt``
does not cover. What Linux makes of it, and we must fit:

* A Linux sender without credit waits in silence, so we send CREDIT_UPDATE unasked. It also waits when its own
  ``buf_alloc`` worth of bytes is on the way, however large ours is; so what we call "much" is a quarter of
  the smaller of the two.
* Some Linux receivers count packets as well, each as some 600 bytes of bookkeeping, and reset a connection
  whose many small packets exceed ``buf_alloc``. So we meter packets too.
* Older ones do not tell us of a metered-out window that they emptied: we ask again from time to time.
"""

from collections import deque
from typing import Final

from nitro_vsock.packet import COUNTER_MASK, HEADER, Address, Op, Shutdown, SocketType

PEER_WINDOW_MAX: Final = 16 << 20
"""More than this we never have on the way, whatever ``buf_alloc`` the guest claims."""

PACKET_OVERHEAD_BYTES: Final = 800
"""What a packet is counted as against the guest's ``buf_alloc``: 600, and a quarter of it in reserve."""

CONTROL_ORDER: Final = (Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN)
"""Due control packets go out in this order. By the time SHUTDOWN is due, all data went before."""


class State:
    """Where a connection is in its life."""

    REQUESTED: Final = 1
    """We sent REQUEST, the guest has not answered."""
    CONNECTING: Final = 2
    """The guest sent REQUEST, the host's end is not there yet."""
    ESTABLISHED: Final = 3
    CLOSING: Final = 4
    """We said that we neither send nor receive; the guest's RST is missing. Its data is dropped."""
    CLOSED: Final = 5


class Verdict:
    """What a packet from the guest means for the connection."""

    NOTHING: Final = 1
    ACCEPTED: Final = 2
    """The guest took our request: the connection is established."""
    SHUTDOWN: Final = 3
    """The guest will send or receive no more; see `Connection.guest_shutdown`."""
    FINISHED: Final = 4
    """Over by agreement: answer RST and forget it."""
    RESET: Final = 5
    """The guest reset it: forget it, answer nothing."""
    VIOLATION: Final = 6
    """Against the protocol: answer RST and forget it."""


class Connection:
    """State, credits and due control packets of one connection.

    Args:
        address: Its ports and the CID that the guest knows the other end by.
        guest_cid: The guest's address.
        socket_type: Stream or messages.
        state: `State.REQUESTED` or `State.CONNECTING`.
        buf_alloc: How many bytes from the guest we are ready to hold.
    """

    __slots__ = (
        "address",
        "buf_alloc",
        "fwd_cnt",
        "guest_cid",
        "guest_may_send",
        "guest_shutdown",
        "in_flight",
        "kind",
        "last_fwd_cnt",
        "packets_in_flight",
        "peer_buf_alloc",
        "peer_fwd_cnt",
        "pending",
        "rx_cnt",
        "shutdown_sent",
        "socket_type",
        "state",
        "tails",
        "tx_cnt",
    )

    def __init__(
        self, address: Address, *, guest_cid: int, socket_type: SocketType, state: int, buf_alloc: int
    ) -> None:
        self.address = address
        self.guest_cid = guest_cid
        self.socket_type = socket_type
        self.kind = int(socket_type)
        self.state = state
        self.buf_alloc = buf_alloc
        self.rx_cnt = 0
        """Bytes received from the guest; this and the next do not wrap here, only on the wire."""
        self.fwd_cnt = 0
        """Bytes of these that the host has taken."""
        self.last_fwd_cnt = 0
        """What the guest knows of ``fwd_cnt``."""
        self.tx_cnt = 0
        """Bytes sent to the guest."""
        self.in_flight = 0
        """Bytes of these that the guest has not reported as taken."""
        self.packets_in_flight = 0
        self.tails: deque[tuple[int, int]] | None = None
        """``tx_cnt`` after each batch of packets on the way, and how many packets it was; None before."""
        self.peer_buf_alloc = self.peer_fwd_cnt = 0
        self.guest_shutdown = self.shutdown_sent = 0
        self.guest_may_send = False
        """The connection is established (or closing), and the guest has not ended its stream."""
        self.pending = 1 << Op.REQUEST if state == State.REQUESTED else 0

    # What the guest sends

    def receive(self, op: int, flags: int, buf_alloc: int, fwd_cnt: int) -> int:
        """Take in any packet but RW; returns a `Verdict`."""
        self.update_credit(buf_alloc, fwd_cnt)
        state = self.state
        match op:
            case Op.RST:
                self.state = State.CLOSED
                return Verdict.RESET
            case Op.RESPONSE if state == State.REQUESTED:
                self.state, self.guest_may_send = State.ESTABLISHED, True
                return Verdict.ACCEPTED
            case Op.SHUTDOWN if state != State.REQUESTED:
                self.guest_shutdown |= flags & Shutdown.BOTH
                self.guest_may_send = self.guest_may_send and not flags & Shutdown.SEND
                if self.guest_shutdown == Shutdown.BOTH:
                    self.state = State.CLOSED
                    return Verdict.FINISHED
                return Verdict.SHUTDOWN
            case Op.CREDIT_UPDATE if state in (State.ESTABLISHED, State.CLOSING):
                return Verdict.NOTHING
            case Op.CREDIT_REQUEST if state in (State.ESTABLISHED, State.CLOSING):
                self.pending |= 1 << Op.CREDIT_UPDATE
                return Verdict.NOTHING
        self.state = State.CLOSED
        return Verdict.VIOLATION

    def receive_data(self, length: int, buf_alloc: int, fwd_cnt: int) -> bool:
        """Take in an RW packet of ``length`` bytes; false if the guest may not send that: answer RST."""
        if fwd_cnt != self.peer_fwd_cnt or buf_alloc != self.peer_buf_alloc:
            self.update_credit(buf_alloc, fwd_cnt)
        self.rx_cnt = rx_cnt = self.rx_cnt + length
        return self.guest_may_send and rx_cnt - self.fwd_cnt <= self.buf_alloc

    def update_credit(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take in the guest's window. It may shrink; a ``fwd_cnt`` that goes back or ahead is ignored."""
        self.peer_buf_alloc, self.peer_fwd_cnt = buf_alloc, fwd_cnt
        in_flight = (self.tx_cnt - fwd_cnt) & COUNTER_MASK
        if in_flight < self.in_flight:
            self.in_flight = in_flight
            taken, tails = self.tx_cnt - in_flight, self.tails
            while tails and tails[0][0] <= taken:
                self.packets_in_flight -= tails.popleft()[1]

    # What we send

    def accept(self) -> None:
        """The host's end of a connection that the guest asked for is there."""
        self.state = State.ESTABLISHED
        self.guest_may_send = not self.guest_shutdown & Shutdown.SEND
        self.pending |= 1 << Op.RESPONSE

    @property
    def credit(self) -> int:
        """How many bytes the guest will take now."""
        return max(0, min(self.peer_buf_alloc, PEER_WINDOW_MAX) - self.in_flight)

    @property
    def packet_credit(self) -> int:
        """How many packets the guest will take now."""
        return max(0, max(1, self.peer_buf_alloc // PACKET_OVERHEAD_BYTES) - self.packets_in_flight)

    def sent(self, length: int, packets: int) -> None:
        """``length`` bytes went out in so many RW packets, each with a `header` made just now."""
        self.tx_cnt += length
        self.in_flight += length
        self.packets_in_flight += packets
        if self.tails is None:
            self.tails = deque()
        self.tails.append((self.tx_cnt, packets))

    def forwarded(self, unsent: int, *, drained: bool = False) -> None:
        """The host has taken all that the guest sent but ``unsent`` bytes; schedule a CREDIT_UPDATE if due.

        Args:
            unsent: Bytes received and not passed on.
            drained: Bytes were held back for a slow host before, and none are now.
        """
        self.fwd_cnt = self.rx_cnt - unsent
        news = self.fwd_cnt - self.last_fwd_cnt
        if news and (drained or news >= min(self.buf_alloc, self.peer_buf_alloc) // 4):
            self.pending |= 1 << Op.CREDIT_UPDATE

    def shut_down(self, flags: int) -> None:
        """We will not send, not receive, or neither any more; schedule SHUTDOWN if that is news."""
        if flags & ~self.shutdown_sent:
            self.shutdown_sent |= flags
            self.pending |= 1 << Op.SHUTDOWN
        if self.shutdown_sent == Shutdown.BOTH:
            self.state = State.CLOSING

    def header(self, op: int, length: int = 0, flags: int = 0) -> bytes:
        """A header that carries our newest credit."""
        self.last_fwd_cnt = self.fwd_cnt
        self.pending &= ~(1 << Op.CREDIT_UPDATE)
        guest_port, host_port, host_cid = self.address
        return HEADER.pack(
            host_cid,
            self.guest_cid,
            host_port,
            guest_port,
            length,
            self.kind,
            op,
            flags,
            self.buf_alloc,
            self.fwd_cnt & COUNTER_MASK,
        )

    def next_control(self) -> bytes | None:
        """The header of the control packet that is due first; None when none is."""
        if self.pending:
            for op in CONTROL_ORDER:
                if self.pending & 1 << op:
                    self.pending &= ~(1 << op)
                    return self.header(op, 0, self.shutdown_sent if op == Op.SHUTDOWN else 0)
        return None
