"""A device on the bench: an engine, its guest, host programs, and a clock that stands still."""

import inspect
import select
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_vsock import VsockConfig, VsockEngine
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Header, Op
from nitro_vsock.testing import FakeGuest, Packet

if TYPE_CHECKING:
    from collections.abc import Callable

CID = 16
PORT = 5000
WINDOW = 256 << 10

GUEST_OPTIONS = frozenset(inspect.signature(FakeGuest).parameters)


class Clock:
    """Seconds, which pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """An engine with its guest, host programs, and a clock that stands still."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.path = directory / "v"
        self.clock = Clock()
        self.services: dict[int, Callable[[socket.socket], None]] = {}
        self.stack = stack

    def start(self, **options: object) -> FakeGuest:
        """Make the engine and its guest; options of either."""
        of_guest = {name: options.pop(name) for name in GUEST_OPTIONS & options.keys()}
        config = VsockConfig.model_validate({"guest_cid": CID, "uds_path": self.path} | options)
        self.engine = VsockEngine(config, services=self.services, clock=self.clock)
        self.stack.callback(self.engine.close)
        return self.another_guest(**of_guest)

    def another_guest(self, **options: object) -> FakeGuest:
        """A guest with rings of its own, on the same engine."""
        self.guest = FakeGuest(self.engine, **options)  # type: ignore[arg-type]
        self.stack.callback(self.guest.close)
        return self.guest

    def serve(self, port: int) -> list[socket.socket]:
        """The host's ends of what the guest will open to ``port``, in order; closed when the test ends."""
        ends: list[socket.socket] = []

        def close_all() -> None:
            for end in ends:
                end.close()

        self.services[port] = ends.append
        self.stack.callback(close_all)
        return ends

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


def ops(packets: list[Packet]) -> list[int]:
    return [packet.op for packet in packets]


def data(packets: list[Packet]) -> bytes:
    return b"".join(packet.data for packet in packets)


def words(guest: FakeGuest) -> list[tuple[int, bytes]]:
    """What the guest got: what for, and the data."""
    return [(packet.op, packet.data) for packet in guest.packets()]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


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
