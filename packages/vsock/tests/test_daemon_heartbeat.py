"""The daemon answers the heartbeat of a Nitro enclave, and tells who asks for its counters."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nitro_vsock import PARENT_CID, cli
from nitro_vsock.device.packet import Op
from vhost_user_guest import PATIENCE_S, Guest, accept, listen

HEARTBEAT = b"\xb7"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the sockets of a daemon with a heartbeat are."""
    command = [sys.executable, "-m", "nitro_vsock.cli", "--guest-cid=16", f"--socket={tmp_path}/vhost"]
    options = [f"--uds-path={tmp_path}/vsock", f"--stats={tmp_path}/stats", "--heartbeat"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            assert b"serving" in process.stderr.readline()
            yield tmp_path
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def counted(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    assert cli.main(["stats", f"{directory}/stats", "--json"]) == cli.EXIT_OK
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert printed == json.dumps(report, indent=2) + "\n"
    found: dict[str, int] = report["vms"][0]["services"]["heartbeat"]
    return found


@pytest.mark.parametrize("cid", [2, PARENT_CID])
def test_a_heartbeat_is_answered_and_counted(
    directory: Path, cid: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Guest(directory / "vhost") as guest:
        guest.send(Op.REQUEST, 1024, 9000, dst_cid=cid)
        guest.expect(Op.RESPONSE)

        guest.send(Op.RW, 1024, 9000, HEARTBEAT, dst_cid=cid)

        assert guest.read(1) == HEARTBEAT
        guest.expect(Op.SHUTDOWN)
        assert counted(directory, capsys) == {"answered": 1, "wrong": 0}


@pytest.mark.parametrize("said", [b"\x00", b""])
def test_anything_else_is_not_answered_and_counted_as_wrong(
    directory: Path, said: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with Guest(directory / "vhost") as guest:
        guest.connect(1024, 9000)

        if said:
            guest.send(Op.RW, 1024, 9000, said)
        else:
            guest.send(Op.SHUTDOWN, 1024, 9000, flags=2)

        guest.expect(Op.SHUTDOWN)
        assert counted(directory, capsys) == {"answered": 0, "wrong": 1}


def test_a_users_listener_for_the_port_comes_first(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen(directory / "vsock_9000") as listener, Guest(directory / "vhost") as guest:
        guest.connect(1024, 9000)

        with accept(listener) as program:
            guest.send(Op.RW, 1024, 9000, HEARTBEAT)

            assert program.recv(1) == HEARTBEAT
        assert counted(directory, capsys) == {"answered": 0, "wrong": 0}
