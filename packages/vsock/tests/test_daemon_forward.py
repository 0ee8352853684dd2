"""Joining guests with the host's own vsock, where there is one: `nox -s forwarding` has one."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitro_vsock.addresses import PARENT_CID, SocketType
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.errors import HostError
from nitro_vsock.host import af_vsock
from vhost_user_guest import PATIENCE_S, Guest

LOOPBACK = 1
HOST_PORT, CLOSED_PORT, GUEST_PORT = 7000, 7001, 9001


@pytest.fixture(scope="module")
def _has_vsock() -> None:
    try:
        with af_vsock.listen(socket.VMADDR_PORT_ANY) as probe, socket.socket(socket.AF_VSOCK) as dialler:
            dialler.settimeout(1)
            dialler.connect((LOOPBACK, probe.getsockname()[1]))
    except (HostError, OSError) as error:
        pytest.skip(f"no vsock loopback on this host: {error}")


@pytest.mark.usefixtures("_has_vsock")
def test_a_guest_s_connection_goes_to_the_same_port_of_the_chosen_cid() -> None:
    with af_vsock.listen(socket.VMADDR_PORT_ANY) as listener:
        port = listener.getsockname()[1]
        with af_vsock.AfVsockHostSide(LOOPBACK).connect(port, SocketType.STREAM) as joined:
            select.select([], [joined], [])
            assert joined.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.fixture
def _no_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int) -> socket.socket:
        raise OSError(97, f"Address family not supported by protocol ({kind})")

    monkeypatch.setattr(af_vsock, "_vsock", refuse)


@pytest.mark.usefixtures("_no_vsock")
def test_a_host_without_vsock_is_told_what_to_do() -> None:
    with pytest.raises(HostError, match="no AF_VSOCK") as raised:
        af_vsock.check_available()

    assert "--uds-path" in raised.value.hint


@pytest.mark.usefixtures("_has_vsock")
def test_a_port_that_is_taken() -> None:
    with af_vsock.listen(socket.VMADDR_PORT_ANY) as listener, pytest.raises(HostError, match="cannot listen"):
        af_vsock.listen(listener.getsockname()[1])


@pytest.fixture
def guest(_has_vsock: None, tmp_path: Path) -> Iterator[Guest]:
    """A guest of a daemon that forwards both ways."""
    path = tmp_path / "vhost"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nitro_vsock.cli", "--guest-cid=16", f"--socket={path}"),
            *(f"--forward-cid={LOOPBACK}", f"--forward-listen={GUEST_PORT}"),
        ],
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith(b"info: serving"), line + process.stderr.read()
        with Guest(path) as running:
            yield running
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return data


def _agree_to_the_end(guest: Guest) -> None:
    shutdown = guest.expect(Op.SHUTDOWN)
    guest.send(Op.RST, shutdown.dst_port, shutdown.src_port, dst_cid=shutdown.src_cid)


def test_a_guest_exchanges_data_with_a_program_on_the_host_s_vsock(guest: Guest) -> None:
    data = os.urandom(1 << 16)
    with socket.socket(socket.AF_VSOCK) as listener:
        listener.bind((socket.VMADDR_CID_ANY, HOST_PORT))
        listener.listen()
        guest.connect(500, HOST_PORT, dst_cid=PARENT_CID)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE_S)
        for _ in range(16):
            guest.send(Op.RW, 500, HOST_PORT, data, dst_cid=PARENT_CID)
            assert _receive(connection, len(data)) == data
        guest.send(Op.SHUTDOWN, 500, HOST_PORT, dst_cid=PARENT_CID, flags=Shutdown.SEND)
        assert connection.recv(1) == b""
        connection.sendall(b"answer to a half-closed stream")
        assert guest.read(30) == b"answer to a half-closed stream"
    _agree_to_the_end(guest)


def test_a_port_of_the_host_s_vsock_where_nobody_listens(guest: Guest) -> None:
    guest.send(Op.REQUEST, 501, CLOSED_PORT)
    guest.expect(Op.RST)


def test_a_program_on_the_host_s_vsock_connects_to_the_guest(guest: Guest) -> None:
    data = os.urandom(200_000)
    with socket.socket(socket.AF_VSOCK) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect((LOOPBACK, GUEST_PORT))
        request = guest.accept(port=GUEST_PORT)
        connection.sendall(data)
        assert guest.read(len(data)) == data
        guest.send(Op.RW, GUEST_PORT, request.src_port, b"hello", dst_cid=request.src_cid)
        assert _receive(connection, 5) == b"hello"
    _agree_to_the_end(guest)
