"""Rings against their model, any guest against the device, and two well-behaved ends against each other."""

import random
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hostile import SIZE, RingDriver, hostile_guest, hostile_ring, hostile_siblings
from nitro_vsock import VsockConfig, VsockEngine
from nitro_vsock.addresses import SocketType
from nitro_vsock.device.connection import Connection, State, Verdict
from nitro_vsock.device.packet import HEADER, Address, Header, Op, Shutdown
from nitro_vsock.testing import FakeGuest

if TYPE_CHECKING:
    import socket

U32 = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_driver_gets_chains_as_specified_or_refused(data: bytes) -> None:
    hostile_ring(data)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_guest_and_any_host_programs_leave_the_device_well(data: bytes) -> None:
    hostile_guest(data)


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_any_two_guests_that_reach_each_other_leave_nothing_behind(data: bytes) -> None:
    hostile_siblings(data)


class AnyDriver(RuleBasedStateMachine):
    """A driver that writes what it wants against the walker and its model."""

    @initialize(event_idx=st.booleans(), indirect=st.booleans())
    def start(self, *, event_idx: bool, indirect: bool) -> None:
        self.driver = RingDriver(event_idx=event_idx, indirect=indirect)

    @rule(
        place=st.integers(0, 2 * SIZE - 1),
        address=st.sampled_from([0, 0x400, 0x420, 0x1FFF, 0x2000, 0x1_0000_0000, 2**64 - 1])
        | st.integers(0, 2**64 - 1),
        length=st.sampled_from([0, 1, 16, 32, 128, 144, 2**32 - 1]) | U32,
        flags=st.integers(0, 15),
        following=st.integers(0, SIZE),
    )
    def write_descriptor(self, place: int, address: int, length: int, flags: int, following: int) -> None:
        self.driver.write_descriptor(place, address, length, flags, following)

    @rule(head=st.integers(0, SIZE - 1))
    def make_available(self, head: int) -> None:
        self.driver.make_available(head)

    @rule(index=st.integers(0, 0xFFFF))
    def set_index(self, index: int) -> None:
        self.driver.set_index(index)

    @rule(limit=st.integers(1, 2 * SIZE))
    def pop(self, limit: int) -> None:
        self.driver.pop(limit)

    @rule()
    def publish(self) -> None:
        self.driver.publish()

    @rule()
    def enable_notifications(self) -> None:
        self.driver.queue.enable_notifications()


TestAnyDriver = AnyDriver.TestCase
TestAnyDriver.settings = settings(deadline=None)

ADDRESS: Address = (1, 2, 2)


def connection(state: int, buf_alloc: int = 65536) -> Connection:
    return Connection(ADDRESS, guest_cid=16, socket_type=SocketType.STREAM, state=state, buf_alloc=buf_alloc)


def expected_verdict(state: int, op: int, shutdown: int) -> tuple[int, int]:
    """The table of the state machine."""
    match state, op:
        case _, Op.RST:
            return Verdict.RESET, State.CLOSED
        case State.REQUESTED, Op.RESPONSE:
            return Verdict.ACCEPTED, State.ESTABLISHED
        case State.REQUESTED | State.CLOSED, _:
            return Verdict.VIOLATION, State.CLOSED
        case _, Op.SHUTDOWN if shutdown == Shutdown.BOTH:
            return Verdict.FINISHED, State.CLOSED
        case _, Op.SHUTDOWN:
            return Verdict.SHUTDOWN, state
        case State.ESTABLISHED | State.CLOSING, Op.CREDIT_UPDATE | Op.CREDIT_REQUEST:
            return Verdict.NOTHING, state
    return Verdict.VIOLATION, State.CLOSED


class AnyPeer(RuleBasedStateMachine):
    """A guest that sends any packet, and a host that does what it may, against the table and the counters."""

    @initialize(state=st.sampled_from([State.REQUESTED, State.CONNECTING]), buf_alloc=st.integers(1, 2**18))
    def start(self, state: int, buf_alloc: int) -> None:
        self.connection = connection(state, buf_alloc)
        self.received = self.unsent = self.sent = self.taken = self.shutdown = 0
        self.window = 0

    @rule(op=st.integers(0, 9).filter(lambda op: op != Op.RW), flags=U32, buf_alloc=U32, fwd_cnt=U32)
    def receive(self, op: int, flags: int, buf_alloc: int, fwd_cnt: int) -> None:
        if self.connection.state == State.CLOSED:
            return
        shutdown = self.shutdown | (flags & 3 if op == Op.SHUTDOWN else 0)
        verdict, state = expected_verdict(self.connection.state, op, shutdown)
        assert self.connection.receive(op, flags, buf_alloc, fwd_cnt) == verdict
        assert self.connection.state == state
        if verdict == Verdict.SHUTDOWN:
            self.shutdown = shutdown
        self.learn(buf_alloc, fwd_cnt)

    @rule(length=st.integers(0, 2**18), buf_alloc=U32, fwd_cnt=U32)
    def receive_data(self, length: int, buf_alloc: int, fwd_cnt: int) -> None:
        if self.connection.state == State.CLOSED:
            return
        may = (
            self.connection.state in {State.ESTABLISHED, State.CLOSING}
            and not self.shutdown & Shutdown.SEND
            and self.unsent + length <= self.connection.buf_alloc
        )
        assert self.connection.receive_data(length, buf_alloc, fwd_cnt) is may
        self.learn(buf_alloc, fwd_cnt)
        if may:
            self.received += length
            self.unsent += length
        else:
            self.connection.state = State.CLOSED

    def learn(self, buf_alloc: int, fwd_cnt: int) -> None:
        self.window = buf_alloc
        ahead = (fwd_cnt - self.taken) & 0xFFFF_FFFF
        if ahead <= self.sent - self.taken:
            self.taken += ahead

    @rule(part=st.floats(0, 1))
    def forward(self, part: float) -> None:
        self.unsent = int(self.unsent * part)
        self.connection.forwarded(self.unsent)
        news = self.connection.fwd_cnt + self.connection.window - self.connection.last_limit
        if news and news >= min(self.connection.buf_alloc, self.window) // 4:
            assert self.connection.pending & 1 << Op.CREDIT_UPDATE

    @rule()
    def accept(self) -> None:
        if self.connection.state == State.CONNECTING:
            self.connection.accept()

    @rule(part=st.floats(0, 1), packets=st.integers(1, 64))
    def send(self, part: float, packets: int) -> None:
        packets = min(packets, self.connection.packet_credit)
        length = int(self.connection.credit * part)
        if self.connection.state == State.ESTABLISHED and packets and length:
            self.connection.header(Op.RW, length)
            self.connection.sent(length, packets)
            self.sent += length

    @rule(flags=st.integers(0, 3))
    def shut_down(self, flags: int) -> None:
        if self.connection.state == State.ESTABLISHED:
            self.connection.shut_down(flags)

    @rule()
    def control(self) -> None:
        header = self.connection.next_control()
        if header is not None and self.connection.state != State.CLOSED:
            decoded = Header(*HEADER.unpack(header))
            assert decoded.fwd_cnt == (self.received - self.unsent) & 0xFFFF_FFFF
            assert decoded.buf_alloc == self.connection.buf_alloc

    @invariant()
    def counters_agree(self) -> None:
        if not hasattr(self, "connection"):
            return
        in_flight = self.sent - self.taken
        assert self.connection.in_flight == in_flight
        assert self.connection.credit == max(0, min(self.window, 16 << 20) - in_flight)
        assert self.connection.packets_in_flight >= 0
        assert bool(self.connection.tails) == bool(in_flight)


TestAnyPeer = AnyPeer.TestCase
TestAnyPeer.settings = settings(deadline=None)


class End:
    """One end of a connection in memory: a core, what its program writes, and what it has read."""

    def __init__(self, core: Connection, total: int) -> None:
        self.core, self.left, self.held, self.got = core, total, 0, 0

    def packets(self, piece: int) -> list[Header]:
        """What this end has to send: due control packets, and data of up to ``piece`` bytes."""
        out = []
        while (header := self.core.next_control()) is not None:
            out.append(Header(*HEADER.unpack(header)))
        length = min(piece, self.left, self.core.credit if self.core.packet_credit else 0)
        if self.core.state == State.ESTABLISHED and length:
            out.append(Header(*HEADER.unpack(self.core.header(Op.RW, length))))
            self.core.sent(length, 1)
            self.left -= length
        return out

    def take(self, header: Header) -> None:
        """Take a packet of the other end in."""
        if header.op == Op.RW:
            assert self.core.receive_data(header.len, header.buf_alloc, header.fwd_cnt), "broke our own rules"
            self.held += header.len
        else:
            verdict = self.core.receive(header.op, header.flags, header.buf_alloc, header.fwd_cnt)
            assert verdict in {Verdict.NOTHING, Verdict.ACCEPTED}

    def read(self, size: int) -> None:
        """The program reads up to so many bytes."""
        size = min(size, self.held)
        self.held -= size
        self.got += size
        self.core.forwarded(self.held, drained=not self.held)


@settings(deadline=None)
@given(
    windows=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    totals=st.tuples(st.integers(0, 4000), st.integers(0, 4000)),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 3000)), max_size=60),
)
def test_two_ends_bring_every_byte_across_in_any_order(
    windows: tuple[int, int], totals: tuple[int, int], steps: list[tuple[int, int, int]]
) -> None:
    ends = [
        End(connection(State.REQUESTED, windows[0]), totals[0]),
        End(connection(State.CONNECTING, windows[1]), totals[1]),
    ]
    wires: list[deque[Header]] = [deque(), deque()]
    (request,) = ends[0].packets(0)
    ends[1].core.update_credit(request.buf_alloc, request.fwd_cnt)
    ends[1].core.accept()

    def step(kind: int, side: int, size: int) -> None:
        match kind:
            case 0:
                wires[side].extend(ends[side].packets(size))
            case 1:
                if wires[1 - side]:
                    ends[side].take(wires[1 - side].popleft())
            case 2:
                ends[side].read(size)

    for kind, side, size in steps:
        step(kind, side, size)
    for _ in range(sum(totals) * 8 + 100):
        if [end.got for end in ends] == list(reversed(totals)):
            break
        for kind in (0, 1, 1, 2):
            for side in (0, 1):
                step(kind, side, 1 << 20)
    assert [end.got for end in ends] == list(reversed(totals)), "stuck"


WINDOW = 1 << 20
STREAM = random.Random(0).randbytes(8 << 20)


class Talk:
    """A guest that keeps the rules and a host program, with the device between; both check what they get."""

    def __init__(self, layout: tuple[int, ...]) -> None:
        self.hosts: list[socket.socket] = []
        self.engine = VsockEngine(
            VsockConfig(guest_cid=16, tx_buffer_size=WINDOW), services={80: self.hosts.append}
        )
        self.guest = FakeGuest(self.engine, receive_buffers=layout)
        self.guest.send(Op.REQUEST, 1, 80)
        self.guest.packets()
        self.host = self.hosts[0]
        self.host.setblocking(False)
        self.guest_sent = self.host_got = self.host_sent = self.guest_got = self.credit = self.taken = 0

    def guest_sends(self, size: int) -> None:
        """The guest sends as much of ``size`` bytes as its credit allows."""
        size = min(size, WINDOW - (self.guest_sent - self.credit), 64 << 10)
        piece = STREAM[self.guest_sent : self.guest_sent + size]
        self.guest.send(Op.RW, 1, 80, piece, fwd_cnt=self.taken)
        self.guest_sent += size

    def guest_reads(self) -> None:
        """The guest takes what is in its receive buffers, and says so."""
        for packet in self.guest.packets():
            assert packet.op in {Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST}
            assert packet.data == STREAM[self.guest_got : self.guest_got + len(packet.data)]
            self.guest_got += len(packet.data)
            self.credit = max(self.credit, packet.header.fwd_cnt)
        assert self.guest_got - self.taken <= self.guest.buf_alloc, "more than the guest's window"
        self.taken = self.guest_got
        self.guest.send(Op.CREDIT_UPDATE, 1, 80, fwd_cnt=self.taken)

    def host_sends(self, size: int) -> None:
        """The host program writes up to ``size`` bytes."""
        with suppress(BlockingIOError):
            self.host_sent += self.host.send(STREAM[self.host_sent : self.host_sent + size])
        self.guest.run()

    def host_reads(self, size: int) -> None:
        """The host program reads up to ``size`` bytes."""
        with suppress(BlockingIOError):
            data = self.host.recv(size)
            assert data == STREAM[self.host_got : self.host_got + len(data)]
            self.host_got += len(data)
        self.guest.run()

    def close(self) -> None:
        self.guest.close()
        self.engine.close()
        self.host.close()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(4140,), (44, 4096), (60, 100), (20, 30, 4000), (65580,)]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100_000)), max_size=60),
)
def test_whatever_the_order_every_byte_arrives_in_its_place(
    layout: tuple[int, ...], steps: list[tuple[int, int]]
) -> None:
    talk = Talk(layout)
    try:
        for kind, size in steps:
            match kind:
                case 0:
                    talk.guest_sends(size)
                case 1:
                    talk.guest_reads()
                case 2:
                    talk.host_sends(size)
                case 3:
                    talk.host_reads(size)
        for _ in range(400):
            if talk.host_got == talk.guest_sent and talk.guest_got == talk.host_sent:
                break
            talk.host_reads(1 << 20)
            talk.guest_reads()
        assert (talk.host_got, talk.guest_got) == (talk.guest_sent, talk.host_sent)
    finally:
        talk.close()
