"""Joining guests with the host's own vsock, where there is one."""

import select
import socket

import pytest

from nitro_vsock.daemon import forward
from nitro_vsock.errors import HostError
from nitro_vsock.packet import SocketType

LOOPBACK = 1


@pytest.fixture(scope="module")
def _has_vsock() -> None:
    try:
        with forward.listen(socket.VMADDR_PORT_ANY) as probe, socket.socket(socket.AF_VSOCK) as dialler:
            dialler.settimeout(1)
            dialler.connect((LOOPBACK, probe.getsockname()[1]))
    except (HostError, OSError) as error:
        pytest.skip(f"no vsock loopback on this host: {error}")


@pytest.mark.usefixtures("_has_vsock")
def test_a_guest_s_connection_goes_to_the_same_port_of_the_chosen_cid() -> None:
    with forward.listen(socket.VMADDR_PORT_ANY) as listener:
        port = listener.getsockname()[1]
        with forward.VsockHostSide(LOOPBACK).connect(port, SocketType.STREAM) as joined:
            select.select([], [joined], [])
            assert joined.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.fixture
def _no_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int) -> socket.socket:
        raise OSError(97, f"Address family not supported by protocol ({kind})")

    monkeypatch.setattr(forward, "_vsock", refuse)


@pytest.mark.usefixtures("_no_vsock")
def test_a_host_without_vsock_is_told_what_to_do() -> None:
    with pytest.raises(HostError, match=r"no AF_VSOCK .*--uds-path"):
        forward.check_available()


@pytest.mark.usefixtures("_has_vsock")
def test_a_port_that_is_taken() -> None:
    with forward.listen(socket.VMADDR_PORT_ANY) as listener, pytest.raises(HostError, match="cannot listen"):
        forward.listen(listener.getsockname()[1])
