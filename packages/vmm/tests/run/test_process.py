"""What is told to a service manager."""

import socket
from pathlib import Path

import pytest

from nitro_vmm.run.process import notify


@pytest.mark.parametrize("abstract", ["", "@"])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: str) -> None:
    address = f"{abstract}{tmp_path / 'notify'}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)

        notify("READY=1")

        assert manager.recv(100) == b"READY=1"


def test_nobody_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notify("READY=1")
