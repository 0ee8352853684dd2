"""What is told to a service manager, and what the end of the parent means."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nitro_vmm.run.process import notify

# The parent ends once its child has asked to end with it; the alarm ends a child whose request did nothing.
PARENT_AND_CHILD = """
import os, signal
from nitro_vmm.run.process import die_with_parent

def end(*_):
    os.write(1, b" and ended")
    os._exit(0)

ready, tell = os.pipe()
if os.fork() == 0:
    signal.signal(signal.SIGTERM, end)
    signal.alarm(30)
    die_with_parent()
    os.write(1, b"lived")
    os.write(tell, b"x")
    while True:
        signal.pause()
os.read(ready, 1)
"""


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


def test_a_process_ends_in_order_with_its_parent_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT_AND_CHILD], stdout=subprocess.PIPE, check=True)

    assert done.stdout == b"lived and ended"
