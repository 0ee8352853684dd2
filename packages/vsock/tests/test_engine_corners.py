"""What only unusual drivers, host programs or moments bring about."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from nitro_vsock import UsageError, Vring, VsockConfig, VsockEngine
from nitro_vsock.addresses import SocketType
from nitro_vsock.device.connection_table import RESETS_MAX
from nitro_vsock.device.credit_wait import STALL_PROBE_S
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.testing import FakeGuest
from nitro_vsock.virtio import split_queue

CID, PORT = 16, 5000
Ends = list[socket.socket]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.fixture
def ends() -> Ends:
    """The host's ends of what guests open."""
    return []


@pytest.fixture
def start(stack: ExitStack, ends: Ends) -> Callable[..., FakeGuest]:
    """Makes guests: options of the guest, and those of its engine."""

    def close_all() -> None:
        for end in ends:
            end.close()

    def make(
        *, clock: Callable[[], float] = lambda: 0.0, seqpacket: bool = False, **options: int
    ) -> FakeGuest:
        engine = VsockEngine(
            VsockConfig(guest_cid=CID, seqpacket=seqpacket), services={PORT: ends.append}, clock=clock
        )
        stack.callback(engine.close)
        guest = FakeGuest(engine, **options)  # type: ignore[arg-type]
        stack.callback(guest.close)
        stack.callback(close_all)
        return guest

    return make


def words(guest: FakeGuest) -> list[tuple[int, bytes]]:
    return [(packet.op, packet.data) for packet in guest.packets()]


def test_connections_that_come_and_go_unanswered_are_bounded(
    start: Callable[..., FakeGuest], ends: Ends
) -> None:
    guest = start(buffers=0)
    guest.send(Op.REQUEST, 1, PORT)
    for port in range(2, 4000):
        guest.send(Op.REQUEST, port, PORT, run=False)
        guest.send(Op.RST, port, PORT)
        if guest.transmit.free_descriptors < 2:
            break
    else:
        pytest.fail("the device takes all that comes")
    assert len(ends) <= guest.engine.config.connections_max + RESETS_MAX + 64


def test_buffers_of_many_pieces_take_a_lot_at_once(start: Callable[..., FakeGuest], ends: Ends) -> None:
    pieces = [44, *[64] * 17]
    guest = start(queue_size=2048, receive_buffers=pieces, buf_alloc=1 << 20)
    guest.send(Op.REQUEST, 99, PORT)
    assert words(guest) == [(Op.RESPONSE, b"")]
    data = os.urandom(300_000)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ends[0].sendall(data)
    received = words(guest)
    assert {op for op, _ in received} == {Op.RW}
    assert b"".join(part for _, part in received) == data


def test_credit_does_not_keep_a_connection_that_is_closing(
    start: Callable[..., FakeGuest], ends: Ends
) -> None:
    now = 0.0
    guest = start(clock=lambda: now, buf_alloc=100)
    guest.send(Op.REQUEST, 99, PORT)
    ends[0].send(b"x" * 1000)
    guest.packets()
    guest.send(Op.SHUTDOWN, 99, PORT, flags=Shutdown.RECEIVE)
    ends[0].close()
    guest.packets()
    guest.send(Op.CREDIT_UPDATE, 99, PORT, fwd_cnt=100)
    now += guest.engine.config.close_timeout_s
    assert words(guest) == [(Op.RST, b"")]
    assert guest.engine.counters().connections == 0


def test_a_guest_with_room_for_bytes_and_not_for_packets_is_asked_again(
    start: Callable[..., FakeGuest], ends: Ends
) -> None:
    now = 0.0
    guest = start(clock=lambda: now, buf_alloc=1600, receive_buffers=(44 + 800,))
    guest.send(Op.REQUEST, 99, PORT)
    ends[0].send(b"x" * 2000)
    assert [op for op, _ in words(guest)] == [Op.RESPONSE, Op.RW, Op.RW, Op.CREDIT_REQUEST]
    guest.send(Op.CREDIT_UPDATE, 99, PORT, fwd_cnt=100)
    assert words(guest) == []
    now += STALL_PROBE_S
    assert words(guest) == [(Op.CREDIT_REQUEST, b"")]


def test_what_follows_urgent_data_arrives(start: Callable[..., FakeGuest], stack: ExitStack) -> None:
    guest = start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = stack.enter_context(server.accept()[0])
    guest.engine.adopt(ours, 9)
    (request,) = guest.packets()
    theirs.send(b"A")
    theirs.send(b"!", socket.MSG_OOB)
    theirs.send(b"B")
    guest.send(Op.RESPONSE, 9, request.header.src_port)
    received, deadline = b"", time.monotonic() + 10
    while received != b"AB":
        assert time.monotonic() < deadline
        received += b"".join(data for _, data in words(guest))


def test_an_empty_message_is_not_the_end(start: Callable[..., FakeGuest], ends: Ends) -> None:
    guest = start(seqpacket=True)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    for message in (b"", b"x", b""):
        ends[0].send(message)
    ends[0].close()
    assert words(guest) == [(Op.RW, b""), (Op.RW, b"x"), (Op.RW, b""), (Op.SHUTDOWN, b"")]


def test_more_empty_messages_than_packets_are_metered_do_not_stop_it(
    start: Callable[..., FakeGuest], ends: Ends
) -> None:
    guest = start(seqpacket=True, buf_alloc=16000)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    for message in [b""] * 100 + [b"hello"]:
        ends[0].send(message)
        guest.run()
    assert words(guest) == [(Op.RW, b"")] * 100 + [(Op.RW, b"hello")]


def test_an_empty_message_waits_for_a_buffer(start: Callable[..., FakeGuest], ends: Ends) -> None:
    guest = start(seqpacket=True, buffers=1)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    ends[0].send(b"")
    guest.run()
    ends[0].send(b"y")
    assert words(guest) == [(Op.RESPONSE, b""), (Op.RW, b""), (Op.RW, b"y")]


def test_detach_delivers_what_comes_after_a_bad_chain(start: Callable[..., FakeGuest], ends: Ends) -> None:
    guest = start()
    guest.send(Op.REQUEST, 99, PORT)
    guest.packets()
    guest.send(Op.RW, 99, PORT, b"one", run=False)
    guest.transmit.write_descriptor(60, 1 << 50, 10, 0)
    guest.transmit.make_available(60)
    guest.send(Op.RW, 99, PORT, b"two", run=False)
    guest.engine.detach()
    assert ends[0].recv(100) + ends[0].recv(100) == b"onetwo"


def test_a_reset_before_the_rings_are_there_keeps_what_the_guest_opens_then(
    start: Callable[..., FakeGuest], ends: Ends
) -> None:
    guest = start()
    guest.engine.detach()
    guest.engine.reset_transport()
    guest.send(Op.REQUEST, 99, PORT, run=False)
    guest._attach()
    assert words(guest) == [(Op.RESPONSE, b"")]
    assert guest.event.used() == [bytes(4)]
    ends[0].send(b"hello")
    assert words(guest) == [(Op.RW, b"hello")]


def test_a_kick_descriptor_that_is_none_leaves_the_engine_detached(start: Callable[..., FakeGuest]) -> None:
    guest = start()
    guest.engine.detach()
    with tempfile.TemporaryFile() as file:
        receive, transmit = (
            Vring(driver.queue, kick_fd, lambda: None)
            for driver, kick_fd in ((guest.receive, guest.kick_fds[0]), (guest.transmit, file.fileno()))
        )
        with pytest.raises(UsageError, match="cannot wait for kicks"):
            guest.engine.attach(receive=receive, transmit=transmit)
    guest.engine.attach(receive=receive, transmit=transmit._replace(kick_fd=guest.kick_fds[1]))
    guest.send(Op.REQUEST, 99, PORT)
    assert words(guest) == [(Op.RESPONSE, b"")]


@pytest.mark.skipif(not split_queue.__file__.endswith(".py"), reason="compiled code takes no stand-ins")
def test_a_buffer_that_comes_just_before_the_engine_asks_for_kicks_gets_the_event(
    start: Callable[..., FakeGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = start()
    guest.run()
    guest.engine.reset_transport()
    guest.run()
    assert len(guest.event.used()) == 1
    enable = guest.event.queue.enable_notifications

    def late() -> bool:
        if guest.event.free_descriptors == 64:  # once
            guest.event.offer(writable=[4])
        return enable()

    monkeypatch.setattr(guest.event.queue, "enable_notifications", late)
    guest.engine.reset_transport()
    guest.run()
    assert len(guest.event.used()) == 1


def test_partial_messages_count_as_held(start: Callable[..., FakeGuest], ends: Ends) -> None:
    guest = start(seqpacket=True)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    guest.send(Op.RW, 99, PORT, b"x" * 1000, type=SocketType.SEQPACKET)
    assert guest.engine.counters().buffered_bytes == 1000
    guest.send(Op.RW, 99, PORT, b"y", type=SocketType.SEQPACKET, flags=1)
    assert ends[0].recv(2000) == b"x" * 1000 + b"y"
    assert guest.engine.counters().buffered_bytes == 0
    guest.send(Op.RW, 99, PORT, b"x" * 1000, type=SocketType.SEQPACKET)
    guest.send(Op.RST, 99, PORT, type=SocketType.SEQPACKET)
    assert guest.engine.counters().buffered_bytes == 0
