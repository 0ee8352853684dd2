"""One vsock connection as the device keeps it: its state, its credit, and the control packets that are due.

Nothing here reads a socket, a ring or a clock. The numbers of packets come in, decisions go out, and the
caller moves the bytes and keeps the deadlines.

A short primer (virtio 1.3 §5.10.6). One side sends REQUEST, the other RESPONSE; then both may send RW, which
is data. RST ends everything at once, and is the answer to whatever does not fit; nothing answers an RST.
SHUTDOWN says "I will not send" or "I will not receive" any more. When one side has said both, the other side
answers RST, and the addresses may be used again.

**States.** `TRANSITIONS` is the table of all state changes, and `Connection._move` is the only place that
changes a state. What the table does not name is a violation of the protocol, which ends the connection:

============= ============================================================ =============================
In this state this is fine, and leads to                                   anything else
============= ============================================================ =============================
REQUESTED     RESPONSE -> ESTABLISHED                                      violation -> CLOSED
CONNECTING    SHUTDOWN -> CONNECTING, the host accepts -> ESTABLISHED      violation -> CLOSED
ESTABLISHED   SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST -> ESTABLISHED,      violation -> CLOSED
              we neither send nor receive any more -> CLOSING
CLOSING       SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST -> CLOSING           violation -> CLOSED
CLOSED        nothing                                                      stays CLOSED
============= ============================================================ =============================

From every state an RST, the second half of SHUTDOWN, and our own end of the connection lead to CLOSED. Data
is not in the table, because it changes no state: `Connection.receive_data` says whether it is allowed.

**Credit.** Every packet carries its sender's ``buf_alloc``, the size of its receive buffer, and ``fwd_cnt``,
the bytes that it has taken out of that buffer so far. A sender may have ``buf_alloc`` bytes on the way that
``fwd_cnt`` does not cover. What Linux makes of this decides how we behave:

* A Linux sender without credit waits in silence, so we send CREDIT_UPDATE unasked. It also waits when as many
  bytes are on the way as its own ``buf_alloc`` says, however large ours is. So we report progress after a
  quarter of the smaller of the two.
* Some Linux receivers count packets as well, each as some 600 bytes of bookkeeping, and reset a connection
  whose many small packets exceed ``buf_alloc``. So we meter packets, too.
* Older ones do not tell us when they have emptied a window that was full of small packets. So we ask again
  from time to time (`nitro_vsock.device.credit_wait`).

Where the credit comes from that we give is said in one place, `Connection._follow_credit`: from the host
program's socket, or from the guest at the other end (`nitro_vsock.device.lane`).
"""

from collections import deque
from typing import Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.lane import Lane
from nitro_vsock.device.packet import COUNTER_MASK, HEADER, Address, Op, Shutdown

PEER_WINDOW_MAX: Final = 16 << 20
"""We never have more bytes on the way than this, whatever ``buf_alloc`` the guest claims."""

PACKET_OVERHEAD_BYTES: Final = 800
"""What a packet counts against the guest's ``buf_alloc``: the 600 bytes of Linux, and a third in reserve."""

CONTROL_ORDER: Final = (Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN)
"""The order in which control packets that are due go out.

REQUEST and RESPONSE come first because the guest resets a connection that it does not know. SHUTDOWN comes
last because the guest may forget the connection when it gets one. No data can come too late for it: the
host's end is only known once everything before it was read and sent.
"""


class State:
    """Where a connection is in its life."""

    REQUESTED: Final = 1
    """We sent REQUEST, and the guest has not answered."""
    CONNECTING: Final = 2
    """The guest sent REQUEST, and the host's end is not there yet."""
    ESTABLISHED: Final = 3
    """Both sides have accepted. Each may have ended its sending or its receiving since."""
    CLOSING: Final = 4
    """We said that we neither send nor receive, and the guest's RST is missing. Its data is dropped."""
    CLOSED: Final = 5
    """Over. The guest may use the same ports again."""


class Event:
    """What moves a connection from state to state. Packets of the guest are events by their `Op`."""

    LAST_SHUTDOWN: Final = 16
    """A SHUTDOWN after which the guest has said that it neither sends nor receives."""
    HOST_ACCEPTED: Final = 17
    """The host's end of a connection that the guest asked for is there."""
    HOST_DONE: Final = 18
    """We have said that we neither send nor receive."""
    ENDED: Final = 19
    """We give the connection up: the host refused it, time ran out, or a limit was reached."""


class Verdict:
    """What a packet of the guest means for its connection."""

    NOTHING: Final = 1
    """It is fine, and nothing is to be done but to send what is due."""
    ACCEPTED: Final = 2
    """The guest took our request: the connection is established."""
    SHUTDOWN: Final = 3
    """The guest will send or receive no more; see `Connection.guest_shutdown`."""
    FINISHED: Final = 4
    """The connection is over by agreement: answer RST and forget it."""
    RESET: Final = 5
    """The guest reset the connection: forget it and answer nothing."""
    VIOLATION: Final = 6
    """The packet is against the protocol: answer RST and forget the connection."""


_OVER: Final = {
    Op.RST: (State.CLOSED, Verdict.RESET),
    Event.LAST_SHUTDOWN: (State.CLOSED, Verdict.FINISHED),
    Event.ENDED: (State.CLOSED, Verdict.NOTHING),
}
"""What ends a connection in whatever state it is."""

TRANSITIONS: Final[dict[int, dict[int, tuple[int, int]]]] = {
    State.REQUESTED: {
        Op.RST: _OVER[Op.RST],
        Event.ENDED: _OVER[Event.ENDED],
        Op.RESPONSE: (State.ESTABLISHED, Verdict.ACCEPTED),
    },
    State.CONNECTING: {
        **_OVER,
        Op.SHUTDOWN: (State.CONNECTING, Verdict.SHUTDOWN),
        Event.HOST_ACCEPTED: (State.ESTABLISHED, Verdict.NOTHING),
    },
    State.ESTABLISHED: {
        **_OVER,
        Op.SHUTDOWN: (State.ESTABLISHED, Verdict.SHUTDOWN),
        Op.CREDIT_UPDATE: (State.ESTABLISHED, Verdict.NOTHING),
        Op.CREDIT_REQUEST: (State.ESTABLISHED, Verdict.NOTHING),
        Event.HOST_DONE: (State.CLOSING, Verdict.NOTHING),
    },
    State.CLOSING: {
        **_OVER,
        Op.SHUTDOWN: (State.CLOSING, Verdict.SHUTDOWN),
        Op.CREDIT_UPDATE: (State.CLOSING, Verdict.NOTHING),
        Op.CREDIT_REQUEST: (State.CLOSING, Verdict.NOTHING),
        Event.HOST_DONE: (State.CLOSING, Verdict.NOTHING),
    },
    State.CLOSED: {
        Event.ENDED: _OVER[Event.ENDED],
    },
}
"""State, then event: the next state, and what the event means. What is missing is a violation."""

_VIOLATION: Final = (State.CLOSED, Verdict.VIOLATION)


class Connection:
    """State, credit and due control packets of one connection.

    Args:
        address: Its ports, and the CID by which the guest knows the other end.
        guest_cid: The guest's address.
        socket_type: Stream or messages.
        state: `State.REQUESTED` or `State.CONNECTING`.
        buf_alloc: How many bytes of the guest we are ready to hold.
    """

    __slots__ = (
        "accepted",
        "address",
        "buf_alloc",
        "fwd_cnt",
        "guest_cid",
        "guest_may_send",
        "guest_shutdown",
        "in_flight",
        "kind",
        "last_fwd_cnt",
        "last_limit",
        "packets_in_flight",
        "peer_buf_alloc",
        "peer_fwd_cnt",
        "pending",
        "receives",
        "rx_cnt",
        "sends",
        "shutdown_sent",
        "socket_type",
        "state",
        "tails",
        "tx_cnt",
        "window",
    )

    def __init__(
        self, address: Address, *, guest_cid: int, socket_type: SocketType, state: int, buf_alloc: int
    ) -> None:
        self.address = address
        self.guest_cid = guest_cid
        self.socket_type = socket_type
        self.kind = int(socket_type)
        """``socket_type`` as a plain number, which is faster to compare."""
        self.state = state
        """A `State`. Read only: `_move` changes it."""
        self.buf_alloc = buf_alloc
        self.sends: Lane | None = None
        """How the guest's bytes get to a sibling; `None`: they go to a host program, or the sibling takes no
        more."""
        self.receives: Lane | None = None
        """How a sibling's bytes get to the guest; `None`: they come from a host program."""
        # Our counters do not wrap. They are cut to 32 bits only where they go on the wire.
        self.rx_cnt = 0
        """Bytes received from the guest."""
        self.accepted = 0
        """Bytes of the guest that the host's socket has accepted."""
        self.fwd_cnt = 0
        """Bytes of the guest that count as taken by the other end (virtio: ``fwd_cnt``)."""
        self.window = buf_alloc
        """How many bytes more than that the guest may send (virtio: ``buf_alloc``)."""
        self.last_fwd_cnt = 0
        """The ``fwd_cnt`` that the guest was told last."""
        self.last_limit = buf_alloc
        """``fwd_cnt`` plus ``window`` as the guest was told last: the end of what it may send."""
        self.tx_cnt = 0
        """Bytes sent to the guest."""
        self.in_flight = 0
        """Bytes sent to the guest that it has not reported as taken."""
        self.packets_in_flight = 0
        """Packets with data that the guest has not reported as taken."""
        self.tails: deque[tuple[int, int]] | None = None
        """For each batch that the guest has not acknowledged: ``tx_cnt`` behind it, and its number of
        packets.

        `None` until the first batch, because most connections to the host never send one.
        """
        self.peer_buf_alloc = 0
        """The size of the guest's receive buffer, as its newest packet says."""
        self.peer_fwd_cnt = 0
        """Bytes that the guest has taken, as its newest packet says: 32 bits, and not to be trusted."""
        self.guest_shutdown = 0
        """What the guest said that it will not do any more, as `Shutdown` flags."""
        self.shutdown_sent = 0
        """What we said that we will not do any more, as `Shutdown` flags."""
        self.guest_may_send = False
        """The connection is established (or closing), and the guest has not ended its sending."""
        self.pending = 1 << Op.REQUEST if state == State.REQUESTED else 0
        """Control packets that are due, as a bit for each `Op`."""

    def _move(self, event: int) -> int:
        """Change the state as `TRANSITIONS` says; returns a `Verdict`."""
        self.state, verdict = TRANSITIONS[self.state].get(event, _VIOLATION)
        return verdict

    # What the guest sends

    def receive(self, op: int, flags: int, buf_alloc: int, fwd_cnt: int) -> int:
        """Take in any packet but RW; returns a `Verdict`."""
        # Every packet carries the guest's credit, whatever it is for, and most say the same as the one
        # before.
        if fwd_cnt != self.peer_fwd_cnt or buf_alloc != self.peer_buf_alloc:
            self.update_credit(buf_alloc, fwd_cnt)
        event = op if op <= Op.CREDIT_REQUEST else 0  # `Event` has the greater numbers
        if op == Op.SHUTDOWN and self.state != State.REQUESTED:
            # The flags of several packets add up (virtio 1.3 §5.10.6.5).
            self.guest_shutdown |= flags & Shutdown.BOTH
            if self.guest_shutdown & Shutdown.SEND:
                self.guest_may_send = False
            if self.guest_shutdown == Shutdown.BOTH:
                event = Event.LAST_SHUTDOWN
        verdict = self._move(event)
        if verdict == Verdict.ACCEPTED:
            self.guest_may_send = True  # not before, because a guest that sends unasked is not to be trusted
        # The answer says nothing new if nothing was taken, but the guest waits for it all the same.
        elif op == Op.CREDIT_REQUEST and verdict == Verdict.NOTHING:
            self.pending |= 1 << Op.CREDIT_UPDATE
        return verdict

    def receive_data(self, length: int, buf_alloc: int, fwd_cnt: int) -> bool:
        """Take in an RW packet of ``length`` bytes; false if the guest may not send that: answer RST."""
        if fwd_cnt != self.peer_fwd_cnt or buf_alloc != self.peer_buf_alloc:
            self.update_credit(buf_alloc, fwd_cnt)
        # Counted before it is checked, so that the caller can tell the two reasons for a refusal apart.
        self.rx_cnt = rx_cnt = self.rx_cnt + length
        return self.guest_may_send and rx_cnt - self.accepted <= self.buf_alloc

    def update_credit(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take in the guest's window.

        The window may shrink. A ``fwd_cnt`` that goes back, or is ahead of what we sent, is ignored: both
        make the distance to ``tx_cnt`` greater than it was, modulo 2**32.
        """
        self.peer_buf_alloc, self.peer_fwd_cnt = buf_alloc, fwd_cnt
        # The guest's counter has 32 bits and wraps, and so does the difference. Ours is exact.
        in_flight = (self.tx_cnt - fwd_cnt) & COUNTER_MASK
        if in_flight < self.in_flight:
            self.in_flight = in_flight
            taken, tails = self.tx_cnt - in_flight, self.tails
            # A batch counts until the last of its bytes was taken, so we may meter too much and never too
            # little.
            while tails and tails[0][0] <= taken:
                self.packets_in_flight -= tails.popleft()[1]
        if self.receives is not None:
            self.receives.report(self.tx_cnt - self.in_flight, buf_alloc)

    # What we send

    def accept(self) -> None:
        """The host's end of a connection that the guest asked for is there; schedule RESPONSE."""
        self._move(Event.HOST_ACCEPTED)
        # The guest may have ended its sending while it waited, and then data would be a violation.
        self.guest_may_send = not self.guest_shutdown & Shutdown.SEND
        self.pending |= 1 << Op.RESPONSE

    def end(self) -> None:
        """The connection is over for the guest, whatever the guest thinks of it."""
        self._move(Event.ENDED)
        self.part()

    @property
    def credit(self) -> int:
        """How many bytes the guest will take now."""
        return max(0, min(self.peer_buf_alloc, PEER_WINDOW_MAX) - self.in_flight)

    @property
    def packet_credit(self) -> int:
        """How many packets the guest will take now. Any window holds one, or nothing would ever move."""
        return max(0, max(1, self.peer_buf_alloc // PACKET_OVERHEAD_BYTES) - self.packets_in_flight)

    def sent(self, length: int, packets: int) -> None:
        """Take note of ``length`` bytes that went out, in so many RW packets with fresh headers."""
        self.tx_cnt += length
        self.in_flight += length
        self.packets_in_flight += packets
        if self.tails is None:
            self.tails = deque()
        # One entry for the whole batch: an entry for each packet would cost more than the packet does.
        self.tails.append((self.tx_cnt, packets))
        lane = self.receives
        # A sibling waits to hear what the guest takes, and not every guest says so in time.
        if lane is not None and self.tx_cnt - max(lane.asked, lane.taken) >= lane.enough:
            lane.asked = self.tx_cnt
            self.pending |= 1 << Op.CREDIT_REQUEST

    def forwarded(self, unsent: int, *, drained: bool = False) -> None:
        """Take note of how far the host is, and schedule a CREDIT_UPDATE if the guest should hear of it.

        Args:
            unsent: Bytes of the guest that the host has not accepted.
            drained: Bytes were held for a slow host before, and none are now. The guest may have stopped at
                the end of its window, so it is told of any progress.
        """
        self.accepted = self.rx_cnt - unsent
        self._follow_credit()
        # Not for every byte, because each CREDIT_UPDATE costs the guest an interrupt and a packet. Data on
        # its way to the guest brings the same news for nothing.
        # Linux stops at the end of the window, or when its own buffer's size is under way.
        news = max(self.fwd_cnt - self.last_fwd_cnt, self.fwd_cnt + self.window - self.last_limit)
        if news > 0 and (drained or news >= self._worth_telling()):
            self.pending |= 1 << Op.CREDIT_UPDATE

    def _follow_credit(self) -> None:
        """Where the credit comes from that we give: from what the other end has taken, and has room for."""
        lane = self.sends
        if lane is None:
            self.fwd_cnt, self.window = self.accepted, self.buf_alloc
            return
        taken, buf_alloc = lane.taken, lane.buf_alloc
        if self.kind == SocketType.STREAM:
            self.fwd_cnt = taken
            # What is under way is ours to hold until the socket accepts it, and the sibling's to hold after.
            self.window = min(buf_alloc, self.buf_alloc + self.accepted - taken)
        else:
            # No message may be longer than the window, and we have to hold one as a whole. So a larger buffer
            # of the sibling does not make the window larger; instead, what fits there counts as taken.
            self.window = min(buf_alloc, self.buf_alloc)
            fits = min(taken + buf_alloc - self.window, max(self.accepted, taken))
            self.fwd_cnt = max(self.fwd_cnt, fits)  # a buffer that becomes smaller takes nothing back

    def _worth_telling(self) -> int:
        """So many bytes of news are worth a packet of their own."""
        return min(self.window, self.peer_buf_alloc) // 4

    # Siblings

    def join_sibling(self, sends: Lane, receives: Lane) -> None:
        """The other end is a guest as well: have credit follow what that one and this one take."""
        self.sends, self.receives = sends, receives
        receives.report(0, self.peer_buf_alloc)

    def follow_sibling(self) -> None:
        """Take in what the sibling has taken, and schedule a CREDIT_UPDATE if that is any news."""
        lane = self.sends
        if lane is not None:
            self._follow_credit()
            # A smaller window is news as well: the guest should not send what the sibling has no room for.
            if (self.fwd_cnt, self.fwd_cnt + self.window) != (self.last_fwd_cnt, self.last_limit):
                self.pending |= 1 << Op.CREDIT_UPDATE

    def _tell_news(self, lane: Lane) -> None:
        """A packet is on its way to the guest, with the newest credit that the sibling gives."""
        taken, buf_alloc = lane.taken, lane.buf_alloc
        self._follow_credit()
        # Twice as much as for a host program, because this news wakes another engine.
        lane.note_told(taken, buf_alloc, 2 * self._worth_telling())
        # Had the sibling changed it and changed it back before it saw what was told, it would not ring.
        if lane.buf_alloc != buf_alloc:
            self.pending |= 1 << Op.CREDIT_UPDATE

    @property
    def short_of_credit(self) -> bool:
        """The guest has little credit left that we know of, and a sibling gives it."""
        if self.sends is None:
            return False
        # Linux uses up the last byte, but never has more under way than its own buffer holds either.
        left = min(self.window, self.peer_buf_alloc) - (self.rx_cnt - self.fwd_cnt)
        return left < max(1, self._worth_telling())

    def part(self) -> None:
        """Credit has nothing to do with a sibling any more."""
        self.sends = self.receives = None

    def shut_down(self, flags: int) -> None:
        """We will not send, not receive, or neither any more; schedule SHUTDOWN if that is news."""
        # Flags add up, and repeating them would tell the guest nothing.
        if flags & ~self.shutdown_sent:
            self.shutdown_sent |= flags
            self.pending |= 1 << Op.SHUTDOWN
        if self.shutdown_sent == Shutdown.BOTH:
            self._move(Event.HOST_DONE)

    def header(self, op: int, length: int = 0, flags: int = 0) -> bytes:
        """A packet's header. It carries our newest credit, so no CREDIT_UPDATE is due any more."""
        self.pending &= ~(1 << Op.CREDIT_UPDATE)
        lane = self.sends
        if lane is not None:
            self._tell_news(lane)
        # The guest is about to read these numbers, so this is the moment that counts for `forwarded`.
        self.last_fwd_cnt = self.fwd_cnt
        self.last_limit = self.fwd_cnt + self.window
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
            self.window,
            self.fwd_cnt & COUNTER_MASK,
        )

    def next_control(self) -> bytes | None:
        """The header of the control packet that goes out first; `None` when none is due."""
        if self.pending:
            for op in CONTROL_ORDER:
                if self.pending & 1 << op:
                    self.pending &= ~(1 << op)
                    return self.header(op, 0, self.shutdown_sent if op == Op.SHUTDOWN else 0)
        return None
