"""Credit between two guests: what the one may send follows what the other one's program has read."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine_bench import Clock, ops
from nitro_vsock import SocketType, VsockConfig, VsockEngine, VsockRouter
from nitro_vsock.device.packet import HEADER_BYTES, Op, Sequence, Shutdown
from nitro_vsock.testing import FakeGuest

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

CIDS = (100, 101)
PORTS = (7, 80)
HELD_MAX = 8192
"""The device's own window."""
ROOM = 4096
"""A guest of the model tells by itself when it has less room left than this, as Linux does at 64 KiB."""


class Program:
    """A program with one connection, and its guest, which keeps the rules of Linux."""

    def __init__(self, guest: FakeGuest, side: int, kind: SocketType, buf_alloc: int, *, tells: bool) -> None:
        self.guest, self.kind, self.tells = guest, kind, tells
        self.ports, self.cid = (PORTS[side], PORTS[1 - side]), CIDS[1 - side]
        self.buf_alloc = self.largest_buffer = guest.buf_alloc = buf_alloc
        self.sent = bytearray()
        self.got = bytearray()
        self.unread: deque[int] = deque()
        self.read_count = self.told = self.peer_fwd_cnt = self.peer_buf_alloc = 0
        self.peer_shutdown = self.shutdown = 0
        self.left = 0
        """Bytes of the message that is being sent."""
        self.reset = False

    def send_packet(self, op: int, payload: bytes = b"", *, flags: int = 0) -> None:
        """Send a packet, which tells how much the program has read."""
        self.told = self.read_count
        self.guest.send(
            op,
            *self.ports,
            payload,
            host_cid=self.cid,
            run=False,
            type=self.kind,
            flags=flags,
            fwd_cnt=self.read_count,
            buf_alloc=self.buf_alloc,
        )

    def take(self) -> None:
        """The guest takes in what has come."""
        for packet in self.guest.packets():
            self.peer_fwd_cnt, self.peer_buf_alloc = packet.header.fwd_cnt, packet.header.buf_alloc
            match packet.op:
                case Op.REQUEST:
                    self.send_packet(Op.RESPONSE)
                case Op.RW:
                    self.got += packet.data
                    self.unread.append(len(packet.data))
                    assert sum(self.unread) <= self.largest_buffer
                case Op.CREDIT_REQUEST:
                    self.send_packet(Op.CREDIT_UPDATE)
                case Op.SHUTDOWN:
                    self.peer_shutdown |= packet.header.flags
                case Op.RST:
                    self.reset = True
        self.guest.run()

    @property
    def credit(self) -> int:
        """What Linux would let the program send now."""
        window = min(self.peer_buf_alloc, self.buf_alloc)
        return max(0, window - (len(self.sent) - self.peer_fwd_cnt))

    def write(self, size: int) -> None:
        """The program writes up to so many bytes, as far as there is credit."""
        if self.reset or self.shutdown & Shutdown.SEND or self.peer_shutdown & Shutdown.RECEIVE:
            return
        flags = 0
        if self.kind is SocketType.SEQPACKET:
            if not self.left:
                self.left = min(size, self.peer_buf_alloc, self.buf_alloc)
            size = self.left
        length = min(size, self.credit)
        if not length:
            return
        if self.kind is SocketType.SEQPACKET:
            self.left -= length
            flags = 0 if self.left else Sequence.END_OF_MESSAGE
        piece = bytes((len(self.sent) + i) % 251 for i in range(length))
        self.sent += piece
        self.send_packet(Op.RW, piece, flags=flags)

    def read(self, size: int) -> None:
        """The program reads packets of so many bytes or more; the guest tells if it finds that worth it."""
        while self.unread and size > 0:
            size -= self.unread[0]
            self.read_count += self.unread.popleft()
        news = self.read_count - self.told
        # A guest that did not even tell that a full buffer is empty could never get anything again.
        if news >= self.buf_alloc or (
            news and self.tells and (self.buf_alloc - news < ROOM or not self.unread)
        ):
            self.send_packet(Op.CREDIT_UPDATE)

    def resize(self, buf_alloc: int) -> None:
        """The program sets the size of its buffer."""
        self.buf_alloc = buf_alloc
        self.largest_buffer = max(self.largest_buffer, buf_alloc)
        self.send_packet(Op.CREDIT_UPDATE)


class Pair:
    """Two guests that are siblings, and their programs, connected with each other."""

    def __init__(
        self, stack: ExitStack, kind: SocketType, buffers: tuple[int, int], tells: tuple[bool, bool]
    ) -> None:
        self.clock = Clock()
        router = VsockRouter()
        self.programs = []
        for side, cid in enumerate(CIDS):
            config = VsockConfig(
                guest_cid=cid, tx_buffer_size=HELD_MAX, seqpacket=True, connect_timeout_s=1000
            )
            engine = VsockEngine(config, router=router, clock=self.clock)
            stack.callback(engine.close)
            guest = FakeGuest(engine, receive_buffers=(HEADER_BYTES + 1500,))
            stack.callback(guest.close)
            self.programs.append(Program(guest, side, kind, buffers[side], tells=tells[side]))
        self.programs[0].send_packet(Op.REQUEST)
        for _ in range(3):
            self.take()

    def take(self) -> None:
        """Have everything arrive."""
        for program in self.programs:
            program.take()

    def finish(self) -> None:
        """Have both programs read all, and go on with messages that they have begun."""
        quiet = 0
        while quiet < 8:
            before = [(len(program.sent), program.read_count) for program in self.programs]
            self.clock.now += 0.25
            for program in self.programs:
                program.take()
                program.read(1 << 20)
                if program.left:
                    program.write(0)
            after = [(len(program.sent), program.read_count) for program in self.programs]
            quiet = quiet + 1 if before == after else 0


@contextmanager
def pair(
    kind: SocketType = SocketType.STREAM,
    buffers: tuple[int, int] = (6000, 6000),
    tells: tuple[bool, bool] = (True, True),
) -> Iterator[Pair]:
    """A pair that is closed at the end."""
    with ExitStack() as stack:
        yield Pair(stack, kind, buffers, tells)


def fill(sender: Program, both: Pair) -> None:
    """Send until no credit is left."""
    for _ in range(50):
        sender.write(1500)
        both.take()


@pytest.mark.parametrize("kind", [SocketType.STREAM, SocketType.SEQPACKET])
@pytest.mark.parametrize(("own", "others"), [(6000, 3000), (3000, 6000), (4500, 4500)])
def test_a_guest_may_have_no_more_unread_than_either_buffer_holds(
    kind: SocketType, own: int, others: int
) -> None:
    with pair(kind, (own, others)) as both:
        sender, receiver = both.programs

        fill(sender, both)

        assert len(sender.sent) == min(own, others)
        assert sender.peer_fwd_cnt == receiver.read_count == 0
        assert bytes(receiver.got) == bytes(sender.sent)


def test_what_the_other_program_reads_is_what_the_sender_may_send_again() -> None:
    with pair() as both:
        sender, receiver = both.programs
        fill(sender, both)

        receiver.read(6000)
        both.take()
        both.take()

        assert sender.credit == 6000
        assert sender.peer_fwd_cnt == 6000


def test_a_larger_buffer_of_the_receiver_is_more_credit_at_once() -> None:
    with pair(buffers=(20_000, 3000)) as both:
        sender, receiver = both.programs
        fill(sender, both)

        receiver.resize(7000)
        both.take()
        both.take()

        assert (sender.peer_buf_alloc, sender.credit) == (7000, 4000)


def test_a_smaller_buffer_of_the_receiver_is_told_at_once_and_loses_nothing() -> None:
    with pair() as both:
        sender, receiver = both.programs
        fill(sender, both)

        receiver.resize(1000)
        both.take()
        both.take()

        assert (sender.peer_buf_alloc, sender.credit) == (1000, 0)
        both.finish()
        assert bytes(receiver.got) == bytes(sender.sent)
        assert sender.credit == 1000


def test_a_receiver_that_tells_nothing_by_itself_is_asked() -> None:
    with pair(buffers=(3000, 6000), tells=(True, False)) as both:
        sender, receiver = both.programs
        fill(sender, both)
        receiver.read(1500)

        both.clock.now += 0.5
        both.take()
        both.take()
        both.take()

        assert sender.peer_fwd_cnt == receiver.read_count >= 1500


def test_a_sender_whose_own_buffer_shrinks_hears_of_what_was_read() -> None:
    with pair(buffers=(6000, 6000), tells=(True, False)) as both:
        sender, receiver = both.programs
        sender.write(1500)
        both.take()
        both.take()
        receiver.read(1500)

        sender.resize(1400)
        both.take()
        both.clock.now += 0.5
        for _ in range(4):
            both.take()

        assert sender.credit == 1400


def test_a_guest_that_asks_hears_what_its_sibling_has_read() -> None:
    with pair(tells=(True, False)) as both:
        sender, receiver = both.programs
        sender.write(100)
        both.take()
        both.take()
        receiver.read(100)

        sender.send_packet(Op.CREDIT_REQUEST)
        for _ in range(4):
            both.take()

        assert sender.peer_fwd_cnt == 100


def test_a_sibling_that_never_reads_is_asked_more_and_more_seldom() -> None:
    with pair(buffers=(3000, 6000)) as both:
        sender, receiver = both.programs
        fill(sender, both)
        receiver.take()
        asked = 0

        for _ in range(10_000):
            both.clock.now += 0.001
            sender.guest.run()
            asked += ops(receiver.guest.packets()).count(Op.CREDIT_REQUEST)

        assert 45 <= asked <= 60, "10 s, every 0.2 s, and some before"


def test_a_sibling_is_not_asked_when_there_is_credit() -> None:
    with pair() as both:
        sender, receiver = both.programs
        sender.write(1000)
        both.take()
        both.take()

        both.clock.now += 100

        assert sender.guest.engine.turn() is None
        assert receiver.guest.packets() == []


def test_what_the_device_holds_is_bounded_whatever_the_buffers() -> None:
    with pair(buffers=(1 << 20, 1 << 20)) as both:
        sender, receiver = both.programs
        paused = receiver.guest.engine
        paused.detach(keep_connections=True)

        for _ in range(1000):
            sender.write(20_000)
            sender.take()

        assert not sender.reset
        assert sender.guest.engine.counters().buffered_bytes <= HELD_MAX
        receiver.guest._attach()
        both.finish()
        assert bytes(receiver.got) == bytes(sender.sent)


def test_a_guest_that_sends_more_than_its_credit_is_reset() -> None:
    with pair() as both:
        sender, receiver = both.programs
        receiver.guest.engine.detach(keep_connections=True)
        for _ in range(200):
            sender.send_packet(Op.RW, bytes(8000))
            sender.take()

        assert sender.reset
        assert sender.guest.engine.counters().credit_violations == 1


def test_a_sender_hears_that_its_sibling_takes_no_more_and_is_not_kept_waiting() -> None:
    with pair() as both:
        sender, receiver = both.programs
        fill(sender, both)

        receiver.shutdown = Shutdown.RECEIVE
        receiver.send_packet(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        both.take()
        both.take()

        assert sender.peer_shutdown == Shutdown.RECEIVE
        both.clock.now += 100
        sender.guest.run()
        assert sender.guest.engine.turn() is None, "nobody is asked any more"


@pytest.mark.parametrize("keep", [True, False])
def test_a_receiver_that_goes_away_ends_the_waiting_and_one_that_pauses_does_not(*, keep: bool) -> None:
    with pair(tells=(True, False)) as both:
        sender, receiver = both.programs
        fill(sender, both)

        receiver.guest.engine.detach(keep_connections=keep)
        receiver.guest._attach()
        for _ in range(5):
            both.clock.now += 0.25
            sender.take()

        assert sender.peer_shutdown == (0 if keep else Shutdown.BOTH)
        if keep:
            both.finish()
            assert sender.credit == 6000


class AnySiblings(RuleBasedStateMachine):
    """Two programs that send, read, set the size of their buffers and end, and guests that pause."""

    @initialize(
        kind=st.sampled_from([SocketType.STREAM, SocketType.SEQPACKET]),
        buffers=st.tuples(st.integers(100, 20_000), st.integers(100, 20_000)),
        tells=st.tuples(st.booleans(), st.booleans()),
    )
    def start(self, kind: SocketType, buffers: tuple[int, int], tells: tuple[bool, bool]) -> None:
        self.stack = ExitStack()
        self.kind = kind
        self.pair = Pair(self.stack, kind, buffers, tells)
        self.shrunk = False

    @rule(side=st.integers(0, 1), size=st.integers(1, 20_000))
    def write(self, side: int, size: int) -> None:
        self.pair.programs[side].write(size)

    @rule(side=st.integers(0, 1), size=st.integers(1, 20_000))
    def read(self, side: int, size: int) -> None:
        self.pair.programs[side].read(size)

    @rule(side=st.integers(0, 1))
    def take(self, side: int) -> None:
        self.pair.programs[side].take()

    @rule(side=st.integers(0, 1), passed=st.sampled_from([0.0005, 0.002, 0.3]))
    def run(self, side: int, passed: float) -> None:
        self.pair.clock.now += passed
        self.pair.programs[side].guest.run()

    @rule(side=st.integers(0, 1), size=st.integers(100, 20_000))
    def resize(self, side: int, size: int) -> None:
        program = self.pair.programs[side]
        # A message that was begun could never arrive in a smaller buffer.
        if self.kind is SocketType.STREAM or size > program.buf_alloc:
            program.resize(size)

    @rule(side=st.integers(0, 1))
    def pause(self, side: int) -> None:
        guest = self.pair.programs[side].guest
        guest.engine.detach(keep_connections=True)
        guest._attach()

    @precondition(lambda self: self.kind is SocketType.STREAM)
    @rule(side=st.integers(0, 1), rarely=st.integers(0, 9))
    def end_sending(self, side: int, rarely: int) -> None:
        program = self.pair.programs[side]
        if not rarely and not program.shutdown:
            program.shutdown = Shutdown.SEND
            program.send_packet(Op.SHUTDOWN, flags=Shutdown.SEND)

    @invariant()
    def nobody_is_promised_what_the_other_has_no_room_for(self) -> None:
        if not hasattr(self, "pair"):
            return
        for sender, receiver in zip(self.pair.programs, reversed(self.pair.programs), strict=True):
            assert self.kind is SocketType.SEQPACKET or sender.peer_fwd_cnt <= receiver.read_count
            promised = sender.peer_fwd_cnt + sender.peer_buf_alloc
            ended = sender.shutdown or sender.peer_shutdown & Shutdown.RECEIVE
            assert ended or promised <= receiver.read_count + receiver.largest_buffer
            assert len(sender.sent) - receiver.read_count <= receiver.largest_buffer
            assert sender.guest.engine.counters().buffered_bytes <= HELD_MAX + 64 * len(sender.sent)
            assert not sender.reset

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        try:
            self.pair.finish()
            for sender, receiver in zip(self.pair.programs, reversed(self.pair.programs), strict=True):
                assert bytes(receiver.got) == bytes(sender.sent), "lost or stuck"
                assert not sender.left
                assert receiver.peer_shutdown & Shutdown.SEND == sender.shutdown
                if not sender.shutdown:
                    window = min(sender.buf_alloc, receiver.buf_alloc, HELD_MAX)
                    assert sender.credit >= window // 4, "has not heard of what was read"
        finally:
            self.stack.close()


TestAnySiblings = AnySiblings.TestCase
TestAnySiblings.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
