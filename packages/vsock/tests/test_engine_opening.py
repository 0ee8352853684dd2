"""How connections begin, from the guest, from the host and within the process."""

import select
import socket
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext

import pytest

from engine_bench import CID, WINDOW, Bench, Clock, data, open_descriptors, ops, readable, wait_for, words
from nitro_vsock import (
    SocketType,
    VsockConfig,
    VsockEngine,
)
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.testing import FakeGuest

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
    assert bench.engine.counters().refused == 1
    assert bench.engine.counters().opened_by_guest == 0


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


def test_a_host_program_connects_to_the_guest(bench: Bench) -> None:
    bench.start()
    host, port = bench.host_opens(52)
    assert port in range(1 << 30, 1 << 31)
    host.send(b"ping")
    assert data(bench.guest.packets()) == b"ping"
    bench.guest.send(Op.RW, 52, port, b"pong")
    assert host.recv(10) == b"pong"


def test_what_is_moved_is_counted_each_way(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    for data_of_guest in (b"four", b"fifth"):
        guest.send(Op.RW, 99, 5000, data_of_guest)
    host.send(b"answer")
    guest.packets()

    counters = bench.engine.counters()

    assert (counters.bytes_to_host, counters.packets_to_host) == (9, 2)
    assert (counters.bytes_to_guest, counters.packets_to_guest) == (6, 1)
    assert (counters.opened_by_guest, counters.opened_by_host, counters.connections) == (1, 0, 1)
    assert counters.interrupts > 0


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


class Unconnected:
    """A host side whose sockets are connected later, by the test."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def connect(self, _port: int, _socket_type: SocketType) -> socket.socket:
        self.sockets.append(socket.socket())
        return self.sockets[-1]


def test_a_server_may_speak_before_it_is_known_to_be_connected() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        host_side = Unconnected()
        engine = VsockEngine(VsockConfig(guest_cid=CID), host_side=host_side)
        stack.callback(engine.close)
        guest = FakeGuest(engine)
        stack.callback(guest.close)
        guest.send(Op.REQUEST, 99, 80)
        assert guest.packets() == []

        host_side.sockets[0].connect_ex(listener.getsockname())
        host = stack.enter_context(listener.accept()[0])
        host.sendall(b"220 ready")
        select.select(host_side.sockets, [], [])  # the kernel's TCP takes its time

        assert words(guest) == [(Op.RESPONSE, b""), (Op.RW, b"220 ready")]


def test_the_hosts_ports_are_given_in_turn_and_begin_anew_behind_the_last_one(bench: Bench) -> None:
    bench.start()
    first = bench.host_opens(52)[1]
    bench.engine._dialer._next_host_port = (1 << 31) - 1  # a billion connections later

    ports = [bench.host_opens(guest_port)[1] for guest_port in (52, 53, 52)]

    assert first == 1 << 30
    assert ports == [(1 << 31) - 1, 1 << 30, (1 << 30) + 1]
