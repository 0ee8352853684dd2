"""What a service manager hears of the daemon."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitro_vsock.daemon.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What ``NOTIFY_SOCKET`` says, and the socket that it names."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        listening.bind(address if request.param == "file" else f"\0{address}")
        yield (address if request.param == "file" else f"@{address}"), listening


def test_states_are_sent_as_systemd_reads_them(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    notifier = Notifier({"NOTIFY_SOCKET": address}, clock_ns=lambda: 5_000_999)

    notifier.ready("serving guests 16")
    notifier.reloading()
    notifier.stopping()

    assert listening.recv(1000) == b"READY=1\nSTATUS=serving guests 16"
    assert listening.recv(1000) == b"RELOADING=1\nMONOTONIC_USEC=5000"
    assert listening.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_manager_nothing_is_sent(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Notifier(environment).ready("serving")

    assert not caplog.records


def test_a_manager_that_is_gone_is_no_reason_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")

    assert "cannot notify" in caplog.text
