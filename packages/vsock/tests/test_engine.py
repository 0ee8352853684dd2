"""The device against a guest's side that sends whatever a test wants, and real sockets on the host's."""

import errno
import gc
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest

from nitro_vsock import (
    GuestMemory,
    HostError,
    QueueLayout,
    SocketType,
    SplitQueue,
    UsageError,
    Vring,
    VsockConfig,
    VsockEngine,
    VsockRouter,
)
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Header, Op, Shutdown
from nitro_vsock.testing import FakeGuest, Packet

CID = 16
WINDOW = 256 << 10


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


class Bench:
    """An engine with its guest, host programs, and a clock that stands still."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.path = directory / "v"
        self.clock = Clock()
        self.services: dict[int, Callable[[socket.socket], None]] = {}
        self.stack = stack

    def start(self, **options: object) -> FakeGuest:
        config = VsockConfig.model_validate({"guest_cid": CID, "uds_path": self.path} | options)
        self.engine = VsockEngine(config, services=self.services, clock=self.clock)
        self.stack.callback(self.engine.close)
        self.guest = FakeGuest(self.engine)
        self.stack.callback(self.guest.close)
        return self.guest

    def listen(self, port: int, kind: int = socket.SOCK_STREAM, backlog: int = 16) -> socket.socket:
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        listener.bind(f"{self.path}_{port}")
        listener.listen(backlog)
        listener.settimeout(5)
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        sock = self.stack.enter_context(listener.accept()[0])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.settimeout(5)
        return sock

    def dial(self, line: bytes | None = None, suffix: str = "") -> socket.socket:
        kind = socket.SOCK_SEQPACKET if suffix else socket.SOCK_STREAM
        sock = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.settimeout(5)
        sock.connect(f"{self.path}{suffix}")
        if line is not None:
            sock.send(line)
        self.guest.run()
        return sock

    def guest_opens(self, port: int = 5000, guest_port: int = 99) -> socket.socket:
        """A connection that the guest opened, and the host program's end of it."""
        listener = self.listen(port)
        self.guest.send(Op.REQUEST, guest_port, port)
        assert Op.RESPONSE in ops(self.guest.packets())
        return self.accept(listener)

    def host_opens(self, port: int = 52) -> tuple[socket.socket, int]:
        """A connection that the host opened, and the port of its end."""
        sock = self.dial(b"CONNECT %d\n" % port)
        (request,) = self.guest.packets()
        assert request.op == Op.REQUEST
        self.guest.send(Op.RESPONSE, port, request.header.src_port)
        assert sock.recv(100) == b"OK %d\n" % port
        return sock, request.header.src_port


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def ops(packets: list[Packet]) -> list[int]:
    return [packet.op for packet in packets]


def data(packets: list[Packet]) -> bytes:
    return b"".join(packet.data for packet in packets)


# Guest to host


@pytest.mark.parametrize("cid", [2, 3])
def test_a_guest_connects_to_a_unix_socket_under_either_host_cid(bench: Bench, cid: int) -> None:
    guest, listener = bench.start(), bench.listen(9000)
    guest.send(Op.REQUEST, 99, 9000, host_cid=cid)
    (response,) = guest.packets()
    assert response.op == Op.RESPONSE
    assert (response.header.src_cid, response.header.dst_cid) == (cid, CID)
    assert (response.header.src_port, response.header.dst_port) == (9000, 99)
    assert response.header.buf_alloc == WINDOW

    host = bench.accept(listener)
    guest.send(Op.RW, 99, 9000, b"\xb7", host_cid=cid)
    assert host.recv(10) == b"\xb7"
    host.send(b"\xb7")
    (echo,) = guest.packets()
    assert (echo.op, echo.data, echo.header.len) == (Op.RW, b"\xb7", 1)
    assert echo.header.fwd_cnt == 1


def test_a_port_where_nobody_listens_is_refused_at_once(bench: Bench) -> None:
    guest = bench.start()
    guest.send(Op.REQUEST, 99, 5000)
    (reset,) = guest.packets()
    assert reset.op == Op.RST
    assert (reset.header.src_cid, reset.header.src_port, reset.header.dst_port) == (2, 5000, 99)


def test_a_service_gets_connections_to_its_port(bench: Bench) -> None:
    got: list[socket.socket] = []
    bench.services[9000] = got.append
    guest = bench.start()
    guest.send(Op.REQUEST, 99, 9000, host_cid=3)
    assert ops(guest.packets()) == [Op.RESPONSE]
    with got[0] as service:
        service.sendall(b"hello")
        assert data(guest.packets()) == b"hello"
    assert guest.packets()[0].header.flags == Shutdown.BOTH


def test_a_unix_socket_takes_a_port_from_its_service(bench: Bench) -> None:
    bench.services[9000] = lambda _: pytest.fail("the user has a socket there")
    guest, listener = bench.start(), bench.listen(9000)
    guest.send(Op.REQUEST, 99, 9000)
    assert ops(guest.packets()) == [Op.RESPONSE]
    bench.accept(listener)


# Host to guest


def test_a_host_program_connects_to_the_guest(bench: Bench) -> None:
    bench.start()
    host, port = bench.host_opens(52)
    assert port in range(1 << 30, 1 << 31)
    host.send(b"ping")
    assert data(bench.guest.packets()) == b"ping"
    bench.guest.send(Op.RW, 52, port, b"pong")
    assert host.recv(10) == b"pong"


def test_ok_may_carry_the_hosts_port(bench: Bench) -> None:
    guest = bench.start(ok_port="host")
    host = bench.dial(b"connect   52 \n")
    (request,) = guest.packets()
    guest.send(Op.RESPONSE, 52, request.header.src_port)
    assert host.recv(100) == b"OK %d\n" % request.header.src_port


def test_a_guest_that_refuses_closes_the_host_program(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial(b"CONNECT 52\n")
    (request,) = guest.packets()
    guest.send(Op.RST, 52, request.header.src_port)
    assert host.recv(10) == b""
    assert guest.packets() == []


def test_what_follows_the_connect_line_is_delivered(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial(b"CONNECT 52\nearly ")
    host.send(b"bird")
    (request,) = guest.packets()
    assert request.op == Op.REQUEST
    guest.send(Op.RESPONSE, 52, request.header.src_port)
    assert data(guest.packets()) == b"early bird"


def test_a_connect_line_may_come_in_pieces(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial()
    for piece in (b"CONN", b"ECT ", b"5", b"2\n"):
        assert guest.packets() == []
        host.send(piece)
    assert ops(guest.packets()) == [Op.REQUEST]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"GET / HTTP/1.1\r\n",
        b"CONNECT 1" + b"0" * 40,
        b"CONNECT 1 2\n",
        b"CONNECT \xb2\n",
    ],
)
def test_any_other_line_closes_the_connection(bench: Bench, line: bytes) -> None:
    guest = bench.start()
    host = bench.dial(line)
    with pytest.raises(ConnectionResetError) if len(line) > 32 else nullcontext():
        assert host.recv(10) == b""
    assert guest.packets() == []
    assert bench.engine.counters().refused == 1


def test_a_host_program_that_says_nothing_costs_nothing(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial()
    host.close()
    guest.run()
    assert bench.engine.counters().half_open == 0
    assert not readable(bench.engine), "no spinning"


def test_a_host_program_that_never_finishes_its_line_is_dropped(bench: Bench) -> None:
    guest = bench.start(handshake_timeout_s=2)
    host = bench.dial(b"CONN")
    assert bench.engine.turn() == 2.0
    bench.clock.now += 2
    guest.run()
    assert host.recv(10) == b""
    assert bench.engine.turn() is None


def test_hundreds_that_connect_and_close_at_once_leave_nothing(bench: Bench) -> None:
    guest = bench.start()
    before = open_descriptors()
    for number in range(300):
        bench.dial(b"CONNECT 52\n").close()
        (request,) = guest.packets()
        if number % 2:
            guest.send(Op.RST, 52, request.header.src_port)
        else:
            guest.send(Op.RESPONSE, 52, request.header.src_port)
            (shutdown,) = guest.packets()
            assert shutdown.op == Op.SHUTDOWN
            assert shutdown.header.flags == Shutdown.BOTH
            guest.send(Op.RST, 52, request.header.src_port)
    assert open_descriptors() == before
    assert bench.engine.counters().connections == 0
    assert not readable(bench.engine)


def test_host_programs_are_closed_while_there_is_no_guest(bench: Bench) -> None:
    guest = bench.start()
    bench.engine.detach()
    host = bench.dial(b"CONNECT 52\n")
    with pytest.raises(ConnectionResetError):
        host.recv(10)
    assert guest.packets() == []


# Reset rules


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 0, 77])
def test_a_packet_of_no_connection_is_answered_with_rst(bench: Bench, op: int) -> None:
    guest = bench.start()
    guest.send(op, 99, 5000, b"data" if op == Op.RW else b"", host_cid=3)
    (reset,) = guest.packets()
    assert reset.op == Op.RST
    assert (reset.header.src_cid, reset.header.dst_cid) == (3, CID)
    assert (reset.header.src_port, reset.header.dst_port) == (5000, 99)


def test_rst_is_never_answered(bench: Bench) -> None:
    guest = bench.start()
    guest.send(Op.RST, 99, 5000)
    assert guest.packets() == []


@pytest.mark.parametrize("kind", [0, 2, 3, 0xFFFF])
def test_an_unknown_type_is_answered_with_rst_of_that_type(bench: Bench, kind: int) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, type=kind)
    (reset,) = guest.packets()
    assert (reset.op, reset.header.type) == (Op.RST, kind)


@pytest.mark.parametrize("cid", [0, 1, 4, CID, 2**32 - 1, 2**64 - 1])
def test_an_unknown_cid_is_answered_with_rst(bench: Bench, cid: int) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, host_cid=cid)
    (reset,) = guest.packets()
    assert (reset.op, reset.header.src_cid) == (Op.RST, cid)


def test_another_guests_cid_as_sender_is_dropped(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, src_cid=17)
    guest.send(Op.RW, 99, 5000, b"data", src_cid=17)
    assert guest.packets() == []
    assert bench.engine.counters().bad_packets == 2


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, 0, 77])
def test_what_makes_no_sense_in_a_connection_resets_it(bench: Bench, op: int) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(op, 99, 5000)
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_another_type_in_a_connection_resets_it(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"data", type=2)
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_data_before_the_guest_accepted_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial(b"CONNECT 52\n")
    (request,) = guest.packets()
    guest.send(Op.RW, 52, request.header.src_port, b"early")
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_more_data_said_than_there_is_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"data", len=5)
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_less_data_said_than_there_is_is_what_counts(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"data and padding", len=4)
    assert host.recv(100) == b"data"


def test_more_data_than_the_guest_may_send_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    block = bytes(64 << 10)
    for _ in range(40):
        guest.send(Op.RW, 99, 5000, block)
    got = guest.packets()
    assert Op.RST in ops(got)
    assert bench.engine.counters().credit_violations == 1
    received = drain(host, guest)
    assert len(received) % len(block) == 0, "what the guest was allowed to send arrives whole"
    assert WINDOW <= len(received) < 40 * len(block)


# Any layout of descriptors


@pytest.mark.parametrize(
    "pieces", [[44], [44, 32768], [44, 4096, 4096, 4096], [10, 20, 14], [1] * 43, [50], [65580], [44, 1, 1]]
)
def test_a_packet_may_be_cut_anywhere(bench: Bench, pieces: list[int]) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    payload = os.urandom(64 << 10)
    guest.send(Op.RW, 99, 5000, payload, pieces=pieces)
    assert drain(host, guest, len(payload)) == payload


@pytest.mark.parametrize("shape", [[4140], [4096], [44, 4096], [65580], [44, 100, 100], [20, 10, 100], [50]])
def test_receive_buffers_may_have_any_shape(bench: Bench, shape: list[int]) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.guest = FakeGuest(bench.engine, receive_buffers=shape, queue_size=128)
    bench.stack.callback(guest.close)
    host = bench.guest_opens()
    payload = os.urandom(10_000 if sum(shape) > 100 else 1000)
    host.sendall(payload)
    got = guest.packets()
    assert data(got) == payload
    assert all(packet.header.len == len(packet.data) <= sum(shape) - 44 for packet in got)


def test_bad_chains_go_back_and_the_device_goes_on(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    for _ in range(100):
        guest.transmit.write_descriptor(5, 2**40, 0xFFFF_FFFF, 0)
        guest.transmit.make_available(5)
        guest.send(Op.RW, 99, 5000, b"x")
    assert drain(host, guest, 100) == b"x" * 100
    assert bench.engine.counters().bad_chains == 100
    assert bench.engine.failure is None


def test_a_driver_of_nothing_but_bad_chains_is_given_up(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    for _ in range(1024):
        guest.transmit.write_descriptor(5, 2**40, 0xFFFF_FFFF, 0)
        guest.transmit.make_available(5)
        os.eventfd_write(guest.kick_fds[1], 1)
        guest.run()
    assert bench.engine.failure is not None
    assert host.recv(10) == b""
    assert not readable(bench.engine)


def test_a_broken_ring_ends_the_device_with_a_reason(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.transmit.set_available_index(30_000)
    os.eventfd_write(guest.kick_fds[1], 1)
    guest.run()
    assert "chains are available" in str(bench.engine.failure)
    assert host.recv(10) == b""


def test_receive_buffers_without_room_go_back_unused(bench: Bench) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.guest = FakeGuest(bench.engine, buffers=0)
    bench.stack.callback(guest.close)
    guest.receive.offer(writable=[44])
    guest.receive.offer(readable=[b"x" * 100])
    guest.send(Op.RW, 99, 5000)
    assert [chain.length for chain in guest.receive.used_chains()] == [0, 0]
    guest.receive.offer(writable=[100])
    assert guest.receive.used_chains() == []
    os.eventfd_write(guest.kick_fds[0], 1)
    guest.run()
    assert [chain.length for chain in guest.receive.used_chains()] == [44]


# The end of connections


def test_a_guest_that_ends_its_stream_still_gets_the_answer(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"question")
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    assert host.recv(100) == b"question"
    assert host.recv(100) == b""
    host.send(b"answer")
    assert data(guest.packets()) == b"answer"


def test_data_after_the_guest_ended_its_stream_resets(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    guest.send(Op.RW, 99, 5000, b"more")
    assert ops(guest.packets()) == [Op.RST]


def test_a_host_program_that_ends_its_stream_still_gets_the_answer(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    host.send(b"question")
    host.shutdown(socket.SHUT_WR)
    question, shutdown = guest.packets()
    assert question.data == b"question"
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.SEND)
    guest.send(Op.RW, 99, 5000, b"answer")
    assert host.recv(100) == b"answer"
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.BOTH)
    assert ops(guest.packets())[-1] == Op.RST
    assert host.recv(100) == b""


def test_a_host_program_that_closes_ends_both_directions(bench: Bench) -> None:
    guest = bench.start(close_timeout_s=2)
    host = bench.guest_opens()
    host.send(b"last words")
    host.close()
    words, shutdown = guest.packets()
    assert words.data == b"last words"
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    guest.send(Op.RW, 99, 5000, b"was on its way")
    guest.send(Op.RST, 99, 5000)
    assert guest.packets() == []
    assert bench.engine.counters().connections == 0
    assert bench.engine.turn() is None


def test_half_closed_by_both_ends_in_a_full_close(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    assert host.recv(10) == b""
    host.shutdown(socket.SHUT_WR)
    got = guest.packets()
    assert [packet.op for packet in got] == [Op.SHUTDOWN] * len(got)
    assert got[-1].header.flags == Shutdown.BOTH


def test_a_guest_that_does_not_agree_to_the_end_is_reset(bench: Bench) -> None:
    guest = bench.start(close_timeout_s=2)
    bench.guest_opens().close()
    assert ops(guest.packets()) == [Op.SHUTDOWN]
    assert bench.engine.turn() == 2.0
    bench.clock.now += 2
    assert ops(guest.packets()) == [Op.RST]
    assert bench.engine.counters().connections == 0


def test_a_guest_that_will_not_receive_stops_the_host_program(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.send(b"anything")
    guest.send(Op.RW, 99, 5000, b"still sending")
    assert host.recv(100) == b"still sending"
    host.close()
    assert ops(guest.packets()) == [Op.SHUTDOWN]


def test_all_that_a_guest_sent_before_it_closed_arrives_at_a_slow_reader(bench: Bench) -> None:
    guest = bench.start(tx_buffer_size=1 << 20)
    host = bench.guest_opens()
    sent = [os.urandom(64 << 10) for _ in range(12)]
    for block in sent:
        guest.send(Op.RW, 99, 5000, block)
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.BOTH)
    assert ops(guest.packets())[-1] == Op.RST
    assert bench.engine.counters().buffered_bytes > 0
    received = drain(host, guest)
    assert received == b"".join(sent)
    assert bench.engine.counters().connections == bench.engine.counters().buffered_bytes == 0


def test_a_host_program_that_never_reads_is_given_up(bench: Bench) -> None:
    guest = bench.start(linger_timeout_s=30, tx_buffer_size=1 << 20)
    bench.guest_opens()
    for _ in range(12):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    guest.send(Op.RST, 99, 5000)
    assert bench.engine.counters().connections == 1
    bench.clock.now += 30
    guest.run()
    assert bench.engine.counters().connections == bench.engine.counters().buffered_bytes == 0


def test_a_host_program_that_closes_with_data_unread_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"unread")
    host.close()
    assert ops(guest.packets())[-1] == Op.RST


def test_a_host_program_that_stops_reading_is_told_to_the_guest(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    host.shutdown(socket.SHUT_RD)
    guest.send(Op.RW, 99, 5000, b"nobody reads")
    (shutdown,) = guest.packets()
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)
    host.send(b"but I talk")
    assert data(guest.packets()) == b"but I talk"


# Credit


def test_a_slow_host_program_does_not_block_the_ring(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    fast = bench.guest_opens(6000, 100)
    for _ in range(4):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    guest.send(Op.RW, 100, 6000, b"others go on")
    assert fast.recv(100) == b"others go on"


def test_a_host_program_that_was_slow_once_has_room_for_the_window(bench: Bench) -> None:
    bench.start()
    host = bench.guest_opens()
    held = []
    for _ in range(2):
        for _ in range(4):
            bench.guest.send(Op.RW, 99, 5000, bytes(WINDOW // 4))
        held.append(bench.engine.counters().buffered_bytes)
        left = WINDOW
        while left:
            left -= len(host.recv(left))
            bench.guest.packets()
    assert held[0] > 0
    assert held[1] == 0


def test_credit_comes_back_as_the_host_program_reads(bench: Bench) -> None:
    guest = bench.start(tx_buffer_size=1 << 20)
    host = bench.guest_opens()
    for _ in range(16):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    assert guest.packets()[-1].header.fwd_cnt < 1 << 20
    drain(host, guest, 1 << 20)
    update = guest.packets()[-1]
    assert (update.op, update.header.fwd_cnt) == (Op.CREDIT_UPDATE, 1 << 20)


@pytest.mark.parametrize("window", [4096, 16 << 10, 64 << 10, 256 << 10])
def test_a_guest_with_a_small_window_of_its_own_never_waits_in_vain(bench: Bench, window: int) -> None:
    """Linux has no more on its way than its own buf_alloc, and sends no CREDIT_REQUEST."""
    guest = bench.start()
    guest.buf_alloc = window
    host = bench.guest_opens()
    sent = known = 0
    for _ in range(200):
        room = min(window, WINDOW) - (sent - known)
        assert room > 0, f"stuck after {sent} bytes"
        guest.send(Op.RW, 99, 5000, bytes(room))
        sent += room
        drain(host, guest, room)
        known = max([known, *(packet.header.fwd_cnt for packet in guest.packets())])


def test_a_credit_request_is_answered(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"12345")
    guest.send(Op.CREDIT_REQUEST, 99, 5000)
    (update,) = guest.packets()
    assert (update.op, update.header.fwd_cnt, update.header.buf_alloc) == (Op.CREDIT_UPDATE, 5, WINDOW)


def test_no_more_is_sent_than_the_guest_has_room_for(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=10_000)
    payload = os.urandom(30_000)
    host.sendall(payload)
    got = guest.packets()
    assert data(got) == payload[:10_000]
    assert ops(got)[-1] == Op.CREDIT_REQUEST
    assert not readable(bench.engine), "no spinning"
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=10_000, fwd_cnt=10_000)
    assert data(guest.packets()) == payload[10_000:20_000]
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=5_000, fwd_cnt=12_000)
    assert data(guest.packets()) == b"", "the window shrank"
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=100_000, fwd_cnt=20_000)
    assert data(guest.packets()) == payload[20_000:]


@pytest.mark.parametrize("fwd_cnt", [1, 0x8000_0000, 0xFFFF_FFFF])
def test_a_guest_that_took_what_it_was_not_sent_gains_nothing(bench: Bench, fwd_cnt: int) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=1000, fwd_cnt=fwd_cnt)
    host.sendall(bytes(5000))
    assert len(data(guest.packets())) == 1000


def test_small_packets_are_metered(bench: Bench) -> None:
    """Linux counts some 600 bytes a packet against buf_alloc, and resets the connection that has too many."""
    guest = bench.start()
    host = bench.guest_opens()
    got = []
    for _ in range(390):
        host.send(b"x" * 200)
        got += guest.packets()
    in_flight = len([packet for packet in got if packet.op == Op.RW])
    assert in_flight * 600 <= 0.76 * WINDOW
    assert ops(got)[-1] == Op.CREDIT_REQUEST
    taken = len(data(got))
    guest.send(Op.CREDIT_UPDATE, 99, 5000, fwd_cnt=taken)
    assert taken + len(data(guest.packets())) == 390 * 200


def test_a_guest_that_is_silent_about_small_packets_is_asked_again(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    last: list[Packet] = []
    for _ in range(390):
        host.send(b"x" * 20)
        last = guest.packets() or last
    assert ops(last)[-1] == Op.CREDIT_REQUEST
    delay = bench.engine.turn()
    assert delay is not None
    bench.clock.now += delay
    assert ops(guest.packets()) == [Op.CREDIT_REQUEST]


def test_transmission_goes_on_while_there_are_no_receive_buffers_until_too_much_waits(bench: Bench) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.guest = FakeGuest(bench.engine, buffers=0)
    bench.stack.callback(guest.close)
    for number in range(256):
        guest.send(Op.RW, number, 5000)
        assert guest.transmit.free_descriptors == 64
    for number in range(10):
        guest.send(Op.RW, number, 5000)
    assert guest.transmit.free_descriptors < 64, "the 257th packets stay in the ring"
    assert not readable(bench.engine), "no spinning"
    guest._buffers = 64
    guest.refill()
    assert ops(guest.packets()) == [Op.RST] * 266


# Limits


def test_connections_are_limited_in_both_directions(bench: Bench) -> None:
    guest = bench.start(connections_max=2)
    bench.guest_opens(5000)
    bench.host_opens(52)
    bench.listen(6000)
    guest.send(Op.REQUEST, 100, 6000)
    assert ops(guest.packets()) == [Op.RST]
    assert bench.dial().recv(10) == b""
    assert bench.engine.counters().refused == 2


def test_half_open_host_programs_are_limited(bench: Bench) -> None:
    bench.start(half_open_max=2)
    waiting = [bench.dial() for _ in range(2)]
    assert bench.dial().recv(10) == b""
    waiting[0].close()
    bench.guest.run()
    bench.host_opens(52)


def test_a_guest_that_does_not_answer_a_request_is_given_up(bench: Bench) -> None:
    guest = bench.start(connect_timeout_s=2)
    host = bench.dial(b"CONNECT 52\n")
    assert ops(guest.packets()) == [Op.REQUEST]
    bench.clock.now += 2
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_a_full_backlog_refuses_the_guest_and_waits_for_nobody(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000, backlog=0)
    guest.send(Op.REQUEST, 99, 5000)
    guest.send(Op.REQUEST, 100, 5000)
    assert ops(guest.packets()) == [Op.RESPONSE, Op.RST]


def test_what_is_held_for_slow_host_programs_is_limited(bench: Bench) -> None:
    guest = bench.start(buffered_bytes_max=4 << 20, tx_buffer_size=1 << 20)
    for number in range(10):
        bench.guest_opens(5000 + number, 100 + number)
    for number in range(10):
        for _ in range(16):
            guest.send(Op.RW, 100 + number, 5000 + number, bytes(64 << 10))
    counters = bench.engine.counters()
    assert counters.buffered_bytes <= 4 << 20
    assert counters.budget_resets >= 1
    late = bench.listen(7000)
    guest.send(Op.REQUEST, 200, 7000)
    assert guest.packets()[-1].header.buf_alloc < 1 << 20, "windows shrink with what is left"
    bench.accept(late)


def test_bulk_connections_share_receive_buffers_fairly(bench: Bench) -> None:
    guest = bench.start()
    hosts = [bench.guest_opens(5000 + number, 100 + number) for number in range(8)]
    for host in hosts:
        host.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                host.send(bytes(4096))
    got: dict[int, int] = {}
    for _ in range(12):
        for packet in once(guest):
            got[packet.header.dst_port] = got.get(packet.header.dst_port, 0) + packet.header.len
    assert len(got) == 8
    assert sum(got.values()) ** 2 / (8 * sum(size * size for size in got.values())) > 0.9  # Jain's index


# Sockets of the host


def test_the_socket_is_private_and_goes_away(bench: Bench) -> None:
    bench.start()
    assert bench.path.stat().st_mode & 0o777 == 0o600
    bench.engine.close()
    assert not bench.path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    config = VsockConfig(guest_cid=CID, uds_path=tmp_path / "v")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(config.uds_path))
    first = VsockEngine(config)
    with pytest.raises(HostError, match="in use"):
        VsockEngine(config)
    first.close()
    (tmp_path / "v").write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        VsockEngine(config)
    assert (tmp_path / "v").read_text() == "precious"


def test_a_socket_file_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    config = VsockConfig(guest_cid=CID, uds_path=tmp_path / "v")
    first = VsockEngine(config)
    (tmp_path / "v").unlink()
    second = VsockEngine(config)
    first.close()
    assert (tmp_path / "v").exists()
    second.close()


def test_too_long_a_path_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="unix sockets allow 107") as raised:
        VsockEngine(VsockConfig(guest_cid=CID, uds_path=tmp_path / ("x" * 100)))
    assert raised.value.hint == "choose a shorter one"
    with pytest.raises(HostError, match="cannot listen"):
        VsockEngine(VsockConfig(guest_cid=CID, uds_path=tmp_path / "absent" / "v"))


def test_programs_of_other_users_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    nobody = struct.pack("3i", 1, 12345, 12345)  # SO_PEERCRED: pid, uid, gid
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: nobody)
    assert bench.dial().recv(10) == b""


# In process


def test_connect_gives_a_socket_joined_with_the_guest(bench: Bench) -> None:
    guest = bench.start()
    with bench.engine.connect(52) as host:
        host.settimeout(5)
        host.send(b"early")
        (request,) = guest.packets()
        guest.send(Op.RESPONSE, 52, request.header.src_port)
        assert data(guest.packets()) == b"early"
        guest.send(Op.RW, 52, request.header.src_port, b"answer")
        assert host.recv(100) == b"answer"
    with bench.engine.connect(53) as host:
        host.settimeout(5)
        (request,) = [packet for packet in guest.packets() if packet.op == Op.REQUEST]
        guest.send(Op.RST, 53, request.header.src_port)
        assert host.recv(100) == b""


def test_adopt_tells_whether_the_guest_accepted(bench: Bench) -> None:
    guest = bench.start()
    results: list[bool] = []
    for answer in (Op.RESPONSE, Op.RST):
        ours, theirs = socket.socketpair()
        with theirs:
            bench.engine.adopt(ours, 52, on_result=results.append)
            (request,) = [packet for packet in guest.packets() if packet.op == Op.REQUEST]
            guest.send(answer, 52, request.header.src_port)
    assert results == [True, False]
    bench.engine.detach()
    ours, theirs = socket.socketpair()
    bench.engine.adopt(ours, 52, on_result=results.append)
    guest.run()
    assert results == [True, False, False]
    with theirs:
        assert theirs.recv(1) == b""


class Futures:
    """A host side that dials elsewhere, and says so later."""

    def __init__(self) -> None:
        self.asked: list[Future[socket.socket]] = []

    def connect(self, _port: int, _socket_type: SocketType) -> Future[socket.socket]:
        self.asked.append(Future())
        return self.asked[-1]


def test_a_host_side_may_answer_later() -> None:
    clock, host_side = Clock(), Futures()
    engine = VsockEngine(VsockConfig(guest_cid=CID), host_side=host_side, clock=clock)
    guest = FakeGuest(engine)
    with ExitStack() as stack:
        stack.callback(engine.close)
        stack.callback(guest.close)
        for port in range(4):
            guest.send(Op.REQUEST, port, 80)
        assert guest.packets() == []
        ours, theirs = socket.socketpair()
        stack.enter_context(theirs)
        host_side.asked[0].set_result(ours)
        host_side.asked[1].set_exception(OSError("no route"))
        got = guest.packets()
        assert [(packet.header.dst_port, packet.op) for packet in got] == [(1, Op.RST), (0, Op.RESPONSE)]
        theirs.send(b"hi")
        assert data(guest.packets()) == b"hi"
        guest.send(Op.RST, 2, 80)
        too_late, other = socket.socketpair()
        stack.enter_context(other)
        host_side.asked[2].set_result(too_late)
        assert guest.packets() == []
        clock.now += 2
        assert [(packet.header.dst_port, packet.op) for packet in guest.packets()] == [(3, Op.RST)]


class Tcp:
    """A host side that dials TCP without waiting."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, _port: int, _socket_type: SocketType) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", self.port))
        return sock


def test_a_host_side_may_be_connecting() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        host_side = Tcp(listener.getsockname()[1])
        engine = VsockEngine(VsockConfig(guest_cid=CID), host_side=host_side)
        stack.callback(engine.close)
        guest = FakeGuest(engine)
        stack.callback(guest.close)
        guest.send(Op.REQUEST, 99, 80)
        host = stack.enter_context(listener.accept()[0])
        assert ops(guest.packets()) == [Op.RESPONSE]
        host.sendall(b"hi")
        assert data(wait_for(guest, engine)) == b"hi"

        listener.close()
        guest.send(Op.REQUEST, 100, 80)
        assert ops(wait_for(guest, engine)) == [Op.RST]


# Attaching, detaching, events


def test_detach_delivers_what_was_sent_and_gives_buffers_back(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"last words", run=False)
    used = guest.receive.queue.next_available
    bench.engine.detach()
    assert host.recv(100) == b"last words"
    assert host.recv(100) == b""
    assert guest.receive.queue.next_available <= used
    guest._attach()
    with pytest.raises(UsageError, match="attached"):
        guest._attach()


def test_a_transport_reset_is_announced_on_the_event_queue(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    bench.engine.reset_transport()
    assert guest.packets() == [], "the guest ends its connections by itself"
    assert guest.event.used() == [bytes(4)]
    assert host.recv(10) == b""
    bench.engine.reset_transport()
    guest.run()
    assert guest.event.used() == []
    guest.event.offer(writable=[4])
    os.eventfd_write(guest.kick_fds[2], 1)
    guest.run()
    assert guest.event.used() == [bytes(4)]


def test_a_saved_device_goes_on_in_another_engine_without_its_connections(bench: Bench) -> None:
    guest = bench.start()
    lost = bench.guest_opens()
    lost.send(b"never read")
    guest.packets()
    saved, before = bench.engine.state(), guest.receive.queue.next_available
    bench.engine.close()
    bench.engine = guest.engine = VsockEngine(bench.engine.config, clock=bench.clock)
    bench.stack.callback(bench.engine.close)
    queues = [
        SplitQueue(driver.memory, driver.layout, event_idx=True)
        for driver in (guest.receive, guest.transmit, guest.event)
    ]
    vrings = [Vring(queue, fd, lambda: None) for queue, fd in zip(queues, guest.kick_fds, strict=True)]
    assert saved is not None

    bench.engine.restore(saved, receive=vrings[0], transmit=vrings[1], event=vrings[2])

    assert saved.receive.next_available < before, "buffers that wait in the engine count as not taken"
    guest.run()
    assert guest.event.used() == [bytes(4)], "a transport reset"
    assert bench.engine.counters().connections == 0
    guest.send(Op.RW, 99, 5000, b"of before")
    assert ops(guest.packets()) == [Op.RST]
    with bench.engine.connect(52):
        assert ops(guest.packets()) == [Op.REQUEST]


def test_an_engine_without_rings_has_no_state(bench: Bench) -> None:
    bench.start()
    bench.engine.detach()
    assert bench.engine.state() is None


def test_turn_says_when_it_wants_to_be_called(bench: Bench) -> None:
    bench.start()
    assert bench.engine.turn() is None
    assert not readable(bench.engine)
    bench.guest.send(Op.RW, 1, 2, run=False)
    assert readable(bench.engine)


def test_a_closed_engine_is_quiet(bench: Bench) -> None:
    bench.start()
    bench.engine.close()
    bench.engine.close()
    assert bench.engine.turn() is None
    with bench.engine.connect(52) as host:
        assert host.recv(1) == b""


@pytest.mark.parametrize("pause", [True, False])
def test_events_seen_before_connections_are_lost_are_not_taken_for_those_of_a_later_socket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, pause: bool
) -> None:
    guest = bench.start()
    first, listener, coalescing = bench.guest_opens(5000, 99), bench.listen(6000), bench.engine._coalescing
    look = coalescing._poll
    later: list[socket.socket] = []

    def look_and_lose(wait: float | None, most: int) -> list[tuple[int, int]]:
        """Between seeing that ``first`` is closed and acting on it, another thread detaches or resets."""
        events = look(wait, most)
        monkeypatch.undo()
        if pause:
            bench.engine.detach()
            guest._attach()
        else:
            bench.engine.reset_transport()
        guest.send(Op.REQUEST, 100, 6000, run=False)
        assert bench.engine._rings is not None
        bench.engine._rings._transmitter.batch()
        by_fd = bench.engine._connections.table.by_fd
        assert {fd for fd, _ in events} & set(by_fd), "the number is used again"
        later.append(bench.accept(listener))
        return events

    first.close()
    monkeypatch.setattr(coalescing, "_poll", look_and_lose)
    guest.packets()
    later[0].shutdown(socket.SHUT_WR)
    assert guest.packets()[-1].header.flags == Shutdown.SEND


def test_run_serves_in_a_thread_until_it_is_stopped_or_closed(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.run()
    other = VsockEngine(VsockConfig(guest_cid=CID))
    for engine, end in ((bench.engine, bench.engine.stop), (other, other.close)):
        thread = threading.Thread(target=engine.run)
        thread.start()
        end()
        thread.join(10)
        assert not thread.is_alive()


def test_an_interrupt_may_take_a_lock_that_the_machine_holds_while_it_attaches(bench: Bench) -> None:
    """Else: the device waits for the machine's lock with its own held, the machine for the device's."""
    guest = bench.start()
    bench.guest_opens()
    raised = threading.Event()

    def call() -> None:
        other = threading.Thread(target=bench.engine.counters)
        other.start()
        other.join(10)
        assert not other.is_alive(), "the engine's lock is held"
        raised.set()

    guest.on_interrupt = call
    guest.receive.want_interrupts()
    guest.send(Op.CREDIT_REQUEST, 99, 5000)
    assert raised.is_set()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_guest_hears_that_its_packets_were_taken_while_the_engine_never_sleeps(*, event_idx: bool) -> None:
    with ExitStack() as stack:
        engine = VsockEngine(VsockConfig(guest_cid=CID, spin_us=10_000))
        stack.callback(engine.close)
        guest = FakeGuest(engine, event_idx=event_idx)
        stack.callback(guest.close)
        host = stack.enter_context(engine.connect(52))
        (request,) = guest.packets()
        guest.send(Op.RESPONSE, 52, request.header.src_port)
        guest.packets()
        engine._coalescing.spin_pays = True  # as in `run`, when short sleeps were seen
        guest.transmit.used_chains()
        guest.transmit.want_interrupts()
        before = guest.interrupts
        rounds = 0
        while guest.interrupts == before:
            guest.send(Op.RW, 52, request.header.src_port, b"a lone packet", run=False)
            engine._round(None)
            rounds += 1
            assert rounds < 30
        assert rounds > 1
        assert host.recv(1000) == b"a lone packet" * rounds


def test_a_guest_that_is_paused_hears_that_its_packet_was_taken(bench: Bench) -> None:
    guest = bench.start(spin_us=10_000)
    host = bench.guest_opens()
    guest.packets()
    bench.engine._coalescing.spin_pays = True  # as in `run`, when short sleeps were seen
    guest.transmit.want_interrupts()
    guest.send(Op.RW, 99, 5000, b"a lone packet", run=False)
    before = guest.interrupts
    bench.engine._round(None)
    assert guest.interrupts == before
    bench.engine.detach(keep_connections=True)
    assert guest.interrupts == before + 1
    assert host.recv(100) == b"a lone packet"


def test_no_view_of_guest_memory_outlives_detach(bench: Bench) -> None:
    """Else the mapping could not be closed. The garbage collector must not be what saves us."""
    bench.start()
    bench.engine.detach()
    ram = bytearray(1 << 16)
    with memoryview(ram) as view:
        queues = [
            SplitQueue(GuestMemory([(0, view)]), QueueLayout(8, place, place + 0x100, place + 0x200))
            for place in (0, 0x1000)
        ]
        view[0x1102:0x1104] = b"\xff\xff"
        gc.disable()
        bench.stack.callback(gc.enable)
        kick_fd = bench.guest.kick_fds[0]
        bench.engine.attach(
            receive=Vring(queues[0], kick_fd, nothing), transmit=Vring(queues[1], -1, nothing)
        )
        bench.engine.turn()
        assert bench.engine.failure is not None
        bench.engine.detach()
        del queues
    ram.append(0)  # BufferError if there were views


def test_sixty_drivers_one_after_another_leave_nothing(bench: Bench) -> None:
    bench.start()
    listener = bench.listen(5000)
    bench.guest.close()
    before = open_descriptors()
    for _ in range(60):
        guest = FakeGuest(bench.engine)
        guest.send(Op.REQUEST, 99, 5000)
        assert ops(guest.packets()) == [Op.RESPONSE]
        listener.accept()[0].close()
        guest.close()
        assert open_descriptors() == before


def test_a_paused_guest_finds_its_connections_again(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    bench.engine.detach(keep_connections=True)
    host.send(b"while you were away")
    guest.run()
    guest._attach()
    assert data(guest.packets()) == b"while you were away"
    guest.send(Op.RW, 99, 5000, b"back")
    assert host.recv(10) == b"back"


def test_a_host_without_descriptors_left_is_asked_again_later(bench: Bench) -> None:
    guest = bench.start()
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(5)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            host.connect(str(bench.path))
            host.send(b"CONNECT 52\n")
            delay = bench.engine.turn()
            assert delay, "not at once, and not never"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        bench.clock.now += delay
        assert ops(guest.packets()) == [Op.REQUEST]


def test_a_host_without_epoll_watches_left_is_asked_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, epoll = bench.start(), bench.engine._epoll

    class Full:
        """``fs.epoll.max_user_watches`` is reached."""

        poll, modify = epoll.poll, epoll.modify

        def register(self, *_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(bench.engine._connections.door, "_epoll", Full())
        with socket.socket(socket.AF_UNIX) as host:
            host.settimeout(5)
            host.connect(str(bench.path))
            delay = bench.engine.turn()
            assert delay, "not at once, and not never"
            assert host.recv(1) == b""
        assert bench.engine.counters().half_open == 0
    bench.clock.now += delay
    bench.dial(b"CONNECT 52\n")
    assert ops(guest.packets()) == [Op.REQUEST]


# Messages


def test_empty_messages_to_a_slow_reader_are_bounded(bench: Bench) -> None:
    guest = bench.start(seqpacket=True, tx_buffer_size=4096)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    bench.accept(listener)
    for _ in range(200):
        for _ in range(60):
            guest.send(Op.RW, 99, 5000, type=2, flags=1, run=False)
        if Op.RST in ops(guest.packets()):
            break
    assert bench.engine.counters().credit_violations == 1


def test_messages_keep_their_boundaries_both_ways(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    (response,) = guest.packets()
    assert (response.op, response.header.type) == (Op.RESPONSE, 2)
    host = bench.accept(listener)
    guest.send(Op.RW, 99, 5000, b"one ", type=2)
    guest.send(Op.RW, 99, 5000, b"message", type=2, flags=1)
    guest.send(Op.RW, 99, 5000, b"another", type=2, flags=3)
    assert host.recv(1000) == b"one message"
    assert host.recv(1000) == b"another"

    long = os.urandom(10_000)
    host.send(long)
    host.send(b"short")
    got = guest.packets()
    assert [(packet.header.len, packet.header.flags) for packet in got] == [
        (4096, 0),
        (4096, 0),
        (1808, 1),
        (5, 1),
    ]
    assert data(got) == long + b"short"
    host.close()
    assert guest.packets()[-1].header.flags == Shutdown.BOTH


def test_a_host_program_connects_for_messages(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    host = bench.dial(b"CONNECT 52\n", ".seqpacket")
    (request,) = guest.packets()
    assert (request.op, request.header.type) == (Op.REQUEST, 2)
    guest.send(Op.RESPONSE, 52, request.header.src_port, type=2)
    assert host.recv(100) == b"OK 52\n"
    host.send(b"ping")
    host.send(b"")
    host.send(b"pong")
    assert [packet.data for packet in guest.packets()] == [b"ping", b"", b"pong"]


def test_a_stream_listener_does_not_take_messages(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    assert ops(guest.packets()) == [Op.RST]


def test_messages_for_a_slow_reader_are_held_within_the_window(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    host = bench.accept(listener)
    sent = credit = 0
    messages = []
    for number in range(1000):
        credit = max([credit, *(packet.header.fwd_cnt for packet in guest.packets())])
        message = bytes([number % 256]) * 10_000
        if sent + len(message) - credit > WINDOW:
            break
        guest.send(Op.RW, 99, 5000, message, type=2, flags=1)
        sent += len(message)
        messages.append(message)
    assert bench.engine.counters().buffered_bytes <= WINDOW
    received = []
    for _ in messages:
        received.append(host.recv(20_000))
        guest.run()
    assert received == messages
    assert guest.packets()[-1].header.fwd_cnt == sent


@pytest.mark.parametrize("length", [1, 212_961, WINDOW])
def test_messages_as_long_as_the_window_arrive(bench: Bench, length: int) -> None:
    bench.start(seqpacket=True)
    host = bench.engine.connect(52, SocketType.SEQPACKET)
    (request,) = bench.guest.packets()
    port = request.header.src_port
    bench.guest.send(Op.RESPONSE, 52, port, type=SocketType.SEQPACKET)
    message = bytes(length)
    for start in range(0, length, 1 << 16):
        piece = message[start : start + (1 << 16)]
        last = start + len(piece) == length
        bench.guest.send(Op.RW, 52, port, piece, type=SocketType.SEQPACKET, flags=int(last))
    with host:
        assert host.recv(1 << 20) == message


def test_messages_longer_than_the_window_reset(bench: Bench) -> None:
    guest = bench.start(seqpacket=True, tx_buffer_size=65536)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    bench.accept(listener)
    for _ in range(3):
        guest.send(Op.RW, 99, 5000, bytes(32768), type=2)
    assert ops(guest.packets())[-1] == Op.RST


# Siblings


def siblings(stack: ExitStack, *groups: set[str]) -> tuple[list[FakeGuest], Callable[[], None]]:
    router = VsockRouter()
    guests = []
    for number, names in enumerate(groups):
        engine = VsockEngine(
            VsockConfig(guest_cid=100 + number, groups=frozenset(names), seqpacket=True), router=router
        )
        stack.callback(engine.close)
        guests.append(FakeGuest(engine))
        stack.callback(guests[-1].close)

    def run() -> None:
        for _ in range(8):
            for guest in guests:
                guest.run()

    return guests, run


@pytest.mark.parametrize("kind", [1, 2])
def test_siblings_exchange_packets_cut_to_the_receivers_buffers(kind: int) -> None:
    with ExitStack() as stack:
        (a, b), run = siblings(stack, {"x", "y"}, {"y"})
        a.send(Op.REQUEST, 7, 80, host_cid=101, type=kind)
        run()
        (request,) = b.packets()
        assert (request.header.src_cid, request.header.src_port, request.header.dst_port) == (100, 7, 80)
        assert a.packets() == [], "not before the sibling has accepted"
        b.send(Op.RESPONSE, 80, 7, host_cid=100, type=kind)
        run()
        assert ops(a.packets()) == [Op.RESPONSE]

        payload = os.urandom(64 << 10)
        a.send(Op.RW, 7, 80, payload, host_cid=101, type=kind, flags=kind - 1)
        run()
        got = b.packets()
        assert data(got) == payload
        assert max(packet.header.len for packet in got) == 4096
        b.send(Op.RW, 80, 7, b"thanks", host_cid=100, type=kind, flags=kind - 1)
        run()
        assert data(a.packets()) == b"thanks"

        a.send(Op.SHUTDOWN, 7, 80, host_cid=101, type=kind, flags=Shutdown.BOTH)
        run()
        assert ops(a.packets())[-1] == Op.RST
        assert b.packets()[-1].header.flags == Shutdown.BOTH


def test_a_host_at_any_address_leaves_siblings_theirs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        router = VsockRouter()
        paths = [tmp_path / "a", tmp_path / "b"]
        engines = [
            VsockEngine(VsockConfig(guest_cid=CID + i, uds_path=path, any_cid=True), router=router)
            for i, path in enumerate(paths)
        ]
        guests = [FakeGuest(engine) for engine in engines]
        for engine, guest in zip(engines, guests, strict=True):
            stack.callback(engine.close)
            stack.callback(guest.close)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{paths[0]}_5000")
        listener.listen()
        a, b = guests

        a.send(Op.REQUEST, 99, 5000, host_cid=77)
        (response,) = a.packets()
        assert (response.op, response.header.src_cid) == (Op.RESPONSE, 77)
        a.send(Op.REQUEST, 98, 5000, host_cid=CID + 1)
        assert ops(b.packets()) == [Op.REQUEST]


def test_siblings_that_refuse_or_share_no_group_are_reset() -> None:
    with ExitStack() as stack:
        (a, b, _), run = siblings(stack, {"x"}, {"x"}, {"y"})
        a.send(Op.REQUEST, 7, 80, host_cid=102)
        assert ops(a.packets()) == [Op.RST]
        a.send(Op.REQUEST, 7, 80, host_cid=101)
        run()
        b.send(Op.RST, 80, 7, host_cid=100)
        run()
        assert ops(a.packets()) == [Op.RST]


def test_a_sibling_that_does_not_read_is_bounded() -> None:
    with ExitStack() as stack:
        (a, b), run = siblings(stack, {"x"}, {"x"})
        a.send(Op.REQUEST, 7, 80, host_cid=101)
        run()
        b.send(Op.RESPONSE, 80, 7, host_cid=100)
        run()
        a.packets()
        sent = credit = 0
        while sent - credit < WINDOW:
            a.send(Op.RW, 7, 80, bytes(32768), host_cid=101)
            sent += 32768
            run()
            credit = max([credit, *(packet.header.fwd_cnt for packet in a.packets())])
        assert sent < 4 * WINDOW
        assert len(data(b.packets())) <= WINDOW


def test_a_cid_may_be_given_once() -> None:
    router = VsockRouter()
    engine = VsockEngine(VsockConfig(guest_cid=100), router=router)
    with pytest.raises(UsageError, match="100"):
        VsockEngine(VsockConfig(guest_cid=100), router=router)
    engine.close()
    VsockEngine(VsockConfig(guest_cid=100), router=router).close()


# Helpers


def nothing() -> None:
    """What an interrupt does that nobody waits for."""


def readable(engine: VsockEngine) -> bool:
    return bool(select.select([engine.fileno()], [], [], 0)[0])


def wait_for(guest: FakeGuest, engine: VsockEngine) -> list[Packet]:
    """The next packets, where the kernel's TCP takes its time."""
    packets = guest.packets()
    while not packets:
        select.select([engine.fileno()], [], [], 10)
        packets = guest.packets()
    return packets


def once(guest: FakeGuest) -> list[Packet]:
    """What one filling of the receive buffers holds."""
    guest.run()
    chains = guest.receive.used_chains()
    guest._offered -= len(chains)
    guest.refill()
    return [
        Packet(Header(*HEADER.unpack_from(chain.written)), chain.written[HEADER_BYTES:]) for chain in chains
    ]


def drain(host: socket.socket, guest: FakeGuest, size: int = 1 << 30) -> bytes:
    """What the host program reads, up to the end or to so many bytes, with the device at work meanwhile."""
    received = b""
    while len(received) < size:
        piece = host.recv(min(size - len(received), 1 << 16))
        if not piece:
            break
        received += piece
        guest.run()
    return received
