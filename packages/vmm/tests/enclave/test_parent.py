"""Who gets the connections that the enclave opens."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import trio

from nitro_vmm import UsageError
from nitro_vmm.defaults import HEARTBEAT_PORT
from nitro_vmm.enclave.listener import BACKLOG
from nitro_vmm.enclave.parent import ParentSide
from nitro_vsock import HostSide, SocketType, UnixHostSide, UnixListener
from nitro_vsock.host.parent import make_parent_directory


class Elsewhere:
    """A host side that remembers what was asked of it."""

    def __init__(self) -> None:
        self.ports: list[int] = []

    def connect(self, port: int, _socket_type: SocketType, /) -> socket.socket:
        self.ports.append(port)
        return socket.socket(socket.AF_UNIX)


def parent_side(inner: HostSide | None = None, heartbeat: Callable[[], None] = lambda: None) -> ParentSide:
    return ParentSide(inner, heartbeat, soon=lambda function: function())


def taken(connection: socket.socket | Future[socket.socket]) -> socket.socket:
    """What a listener has taken, as the vsock device sees it."""
    assert isinstance(connection, Future)
    return connection.result(0)


async def test_a_listener_gets_the_connection() -> None:
    parent = parent_side()

    with parent.listen(8000) as listener:
        enclave = taken(parent.connect(8000, SocketType.STREAM))
        async with await listener.accept() as stream:
            enclave.send(b"hello")
            received = await stream.receive_some()
        enclave.close()

    assert received == b"hello"


def test_a_port_without_listener_goes_elsewhere() -> None:
    inner = Elsewhere()
    parent = parent_side(inner)

    with parent.listen(8000):
        for port, kind in ((8001, SocketType.STREAM), (8000, SocketType.SEQPACKET)):
            connection = parent.connect(port, kind)
            assert isinstance(connection, socket.socket)
            connection.close()

    assert inner.ports == [8001, 8000]


def test_a_port_that_nobody_knows() -> None:
    with pytest.raises(FileNotFoundError):
        parent_side().connect(8000, SocketType.STREAM)


@pytest.mark.parametrize("port", [0, -1, (1 << 32) - 1, 1 << 40])
def test_ports_that_cannot_be(port: int) -> None:
    with pytest.raises(UsageError, match=str(port)):
        parent_side().listen(port)


def test_one_listener_a_port() -> None:
    parent = parent_side()

    with parent.listen(8000), pytest.raises(UsageError, match="8000"):
        parent.listen(8000)
    parent.listen(8000).close()


def test_a_full_backlog_refuses() -> None:
    parent = parent_side()
    with parent.listen(8000):
        connections = [taken(parent.connect(8000, SocketType.STREAM)) for _ in range(BACKLOG)]

        with pytest.raises(ConnectionRefusedError):
            taken(parent.connect(8000, SocketType.STREAM))

    for connection in connections:
        assert connection.recv(1) == b""  # closing the listener refused it
        connection.close()


async def test_the_end_of_the_enclave_ends_accept() -> None:
    parent = parent_side()
    with parent.listen(8000) as listener:
        parent.end()

        with pytest.raises(trio.ClosedResourceError, match="ended"):
            await listener.accept()


def test_a_program_that_takes_the_heartbeat_is_noticed() -> None:
    noted: list[bool] = []
    parent = parent_side(Elsewhere(), lambda: noted.append(True))

    for port in (8000, HEARTBEAT_PORT):
        connection = parent.connect(port, SocketType.STREAM)
        assert isinstance(connection, socket.socket)
        connection.close()

    assert noted == [True]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs listen for all enclaves of the user; one listens at ports 8000 and 9000."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    prefix = make_parent_directory()
    listeners = [UnixListener(prefix.with_name(f"{prefix.name}_{port}")) for port in (8000, HEARTBEAT_PORT)]
    yield prefix
    for listener in listeners:
        listener.close()


def test_a_program_that_listens_for_all_enclaves_comes_last(shared: Path, tmp_path: Path) -> None:
    own = UnixListener(tmp_path / "own_8000")
    with_own = parent_side(UnixHostSide(tmp_path / "own"))
    without = parent_side()

    for parent, peer in ((with_own, tmp_path / "own_8000"), (without, Path(f"{shared}_8000"))):
        connection = parent.connect(8000, SocketType.STREAM)
        assert isinstance(connection, socket.socket)
        assert connection.getpeername() == str(peer)
        connection.close()
    own.close()


def test_no_program_takes_the_heartbeats_of_all_enclaves(shared: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parent_side().connect(HEARTBEAT_PORT, SocketType.STREAM)
