"""An enclave that moves bytes over vsock as it is told: `guest/traffic.c`, from its parent's side."""

import socket
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import images

CONTROL_PORT: Final = 9001
PEER_PORT: Final = 9002
"""Where the enclave connects to."""
OWN_PORT: Final = 9003
"""Where it listens."""
COMMAND: Final = "/traffic"
PATIENCE_S: Final = 120.0
BACKLOG: Final = 4096
"""The enclave connects faster than we accept."""
TOGETHER: Final = 8
"""How many programs connect at a time in `GuestTraffic.host_connects_together`."""
CHUNK_BYTES: Final = 1 << 18
MIB: Final = 1 << 20


class TrafficError(Exception):
    """The enclave does not do as it is told."""


def build(kernel: str) -> Path:
    """The enclave's image.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: a part cannot be built.
    """
    with TemporaryDirectory() as scratch:
        images.compile_program(images.GUEST_SOURCES / "traffic.c", Path(scratch, "traffic"))
        return images.build("traffic", kernel, Path(scratch), "--cmd", COMMAND)


class GuestTraffic:
    """A running enclave, once `accept` has returned. Create it before the enclave starts.

    Args:
        vsock_path: the prefix of its parent's sockets.
    """

    def __init__(self, vsock_path: str) -> None:
        self._path = vsock_path
        self._control_listener, self._peers = (self._listen(port) for port in (CONTROL_PORT, PEER_PORT))
        self._control: socket.socket | None = None

    def _listen(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{self._path}_{port}")
        sock.listen(BACKLOG)
        sock.settimeout(PATIENCE_S)
        return sock

    def accept(self) -> None:
        """Wait for the enclave.

        Raises:
            TrafficError: it does not connect.
        """
        try:
            self._control, _ = self._control_listener.accept()
        except TimeoutError as error:
            raise TrafficError("the enclave does not connect") from error
        self._control.settimeout(PATIENCE_S)

    def close(self) -> None:
        """Close all sockets; the enclave ends."""
        for sock in (self._control_listener, self._peers, self._control):
            if sock is not None:
                sock.close()

    def round_trips(self, count: int) -> None:
        """A byte there and back again, so many times."""
        control = self._begin(b"t", count)
        for _ in range(count):
            control.sendall(b"x")
            control.recv(1)
        self._end(b"t")

    def guest_connects(self, count: int) -> None:
        """The enclave connects and closes, so many times."""
        self._begin(b"c", count)
        for _ in range(count):
            peer, _ = self._peers.accept()
            peer.close()
        self._end(b"c")

    def host_connects(self, count: int) -> None:
        """The parent connects and closes, so many times."""
        self._begin(b"a", count)
        for _ in range(count):
            self._connect().close()
        self._end(b"a")

    def host_connects_together(self, count: int) -> None:
        """The parent connects and closes so many times, `TOGETHER` programs at a time."""
        self._begin(b"a", count)
        for _ in range(count // TOGETHER):
            programs = [self._knock() for _ in range(TOGETHER)]
            for program in programs:
                self._let_in(program)
            for program in programs:
                program.close()
        self._end(b"a")

    def host_asks(self, count: int) -> None:
        """The parent connects, gets a byte answered and closes, so many times."""
        self._begin(b"h", count)
        for _ in range(count):
            with self._connect() as sock:
                sock.sendall(b"x")
                if sock.recv(1) != b"x":
                    raise TrafficError("the enclave does not answer at its port")
        self._end(b"h")

    def _connect(self) -> socket.socket:
        sock = self._knock()
        self._let_in(sock)
        return sock

    def _knock(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(self._path)
        sock.sendall(b"CONNECT %d\n" % OWN_PORT)
        return sock

    def _let_in(self, sock: socket.socket) -> None:
        if not (line := sock.recv(64)).startswith(b"OK "):
            sock.close()
            raise TrafficError(f"the enclave does not accept at its port: {line!r}")

    def mib_out(self, count: int) -> None:
        """The enclave sends so many MiB, 64 KiB at a time."""
        self._mib_out(b"o", count)

    def mib_out_by_halves(self, count: int) -> None:
        """The enclave sends so many MiB, 32 KiB at a time."""
        self._mib_out(b"p", count)

    def _mib_out(self, order: bytes, count: int) -> None:
        self._begin(order, count)
        buffer, left = bytearray(CHUNK_BYTES), count * MIB
        peer, _ = self._peers.accept()
        with peer:
            while left and (length := peer.recv_into(buffer)):
                left -= length
        self._end(order)

    def mib_in(self, count: int) -> None:
        """The enclave receives so many MiB."""
        self._begin(b"i", count)
        chunk = bytes(CHUNK_BYTES)
        peer, _ = self._peers.accept()
        with peer:
            for _ in range(count * (MIB // CHUNK_BYTES)):
                peer.sendall(chunk)
        self._end(b"i")

    def _begin(self, order: bytes, count: int) -> socket.socket:
        if self._control is None:
            raise TrafficError("the enclave has not connected")
        self._control.sendall(struct.pack("<cI", order, count))
        return self._control

    def _end(self, order: bytes) -> None:
        answer = self._control.recv(1) if self._control is not None else b""
        if answer != order:
            raise TrafficError(f"the enclave answers {answer!r} to {order!r}")
