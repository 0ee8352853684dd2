"""The device against a guest's side that sends whatever a test wants, and real sockets on the host's."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nitro_vsock import VsockConfig, VsockEngine
from nitro_vsock.packet import Op, Shutdown
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
        assert ops(self.guest.packets()) == [Op.RESPONSE]
        return self.accept(listener)

    def host_opens(self, port: int = 52) -> tuple[socket.socket, int]:
        """A connection that the host opened, and the port of its end."""
        sock = self.dial(b"CONNECT %d\n" % port)
        (request,) = self.guest.packets()
        assert request.op is Op.REQUEST
        self.guest.send(Op.RESPONSE, port, request.header.src_port)
        assert sock.recv(100) == b"OK %d\n" % port
        return sock, request.header.src_port


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def ops(packets: list[Packet]) -> list[Op]:
    return [packet.op for packet in packets]


def data(packets: list[Packet]) -> bytes:
    return b"".join(packet.data for packet in packets)


# Guest to host


@pytest.mark.parametrize("cid", [2, 3])
def test_a_guest_connects_to_a_unix_socket_under_either_host_cid(bench: Bench, cid: int) -> None:
    guest, listener = bench.start(), bench.listen(9000)
    guest.send(Op.REQUEST, 99, 9000, host_cid=cid)
    (response,) = guest.packets()
    assert response.op is Op.RESPONSE
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
    assert reset.op is Op.RST
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
