"""Guests that share no group are served by processes of their own, under one supervisor."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nitro_vsock import cli
from nitro_vsock.daemon import supervisor
from nitro_vsock.daemon.config import DaemonConfig
from nitro_vsock.device.packet import Op
from vhost_user_guest import PATIENCE_S, Guest, accept, listen

GROUPS = {4: "a", 5: "b", 6: "a+c", 7: "d"}


def config(groups: dict[int, str]) -> DaemonConfig:
    vms = [{"guest_cid": cid, "socket": f"/run/{cid}", "groups": names} for cid, names in groups.items()]
    return DaemonConfig.model_validate({"vms": vms, "stats": "/run/stats", "allow_uid": [1000]})


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ({4: "a"}, [[4]]),
        ({4: "a", 5: "a"}, [[4, 5]]),
        ({4: "a", 5: "b"}, [[4], [5]]),
        ({4: "a", 5: "b", 6: "a+b"}, [[4, 5, 6]]),
        ({4: "a", 5: "b", 6: "c", 7: "a+c"}, [[5], [4, 6, 7]]),
        ({4: "", 5: ""}, [[4], [5]]),
    ],
)
def test_guests_that_reach_each_other_stay_together(groups: dict[int, str], parts: list[list[int]]) -> None:
    found = supervisor.split(config(groups))
    assert [[vm.guest_cid for vm in part.vms] for part in found] == parts
    assert all(part.stats is None and part.allow_uid == {1000} for part in found)


@contextlib.contextmanager
def start(
    directory: Path, *options: str, command: Sequence[str] = ("-m", "nitro_vsock.cli")
) -> Iterator[subprocess.Popen[bytes]]:
    vms = [
        f"--vm=guest-cid={cid},socket={directory}/vhost{cid},uds-path={directory}/vsock{cid},groups={groups}"
        for cid, groups in GROUPS.items()
    ]
    arguments = [sys.executable, *command, *vms, f"--stats={directory}/stats", *options]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def stats(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[int, dict[str, object]]:
    assert cli.main(["stats", f"{directory}/stats", "--json"]) == cli.EXIT_OK
    return {vm["guest_cid"]: vm for vm in json.loads(capsys.readouterr().out)["vms"]}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def talks(directory: Path, cid: int) -> bool:
    """Whether a guest of the daemon reaches a host program."""
    with (
        listen(Path(f"{directory}/vsock{cid}_5000")) as listener,
        Guest(Path(f"{directory}/vhost{cid}"), cid=cid) as guest,
    ):
        guest.send(Op.REQUEST, 1024, 5000)
        header, _ = guest.receive()
        accept(listener).close()
    Path(f"{directory}/vsock{cid}_5000").unlink()
    return header.op == Op.RESPONSE


def test_a_guest_whose_process_dies_gets_another_and_the_others_notice_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path /= "\x7f\x85\U0001f600"  # any name will do
    tmp_path.mkdir()
    with start(tmp_path) as process:
        assert process.stderr
        assert process.stderr.readline() == b"info: serving (guests=[4, 5, 6, 7])\n"
        workers = children(process.pid)
        assert len(workers) == 3, "4 and 6 share a group"
        assert set(stats(tmp_path, capsys)) == set(GROUPS)

        with Guest(tmp_path / "vhost5", cid=5):
            os.kill(of_guest(workers, tmp_path / "vhost4"), signal.SIGKILL)
            line = process.stderr.readline()
            while b"lost their process" not in line:
                line = process.stderr.readline()
            assert b"guests=[4, 6] why=SIGKILL" in line
            eventually(lambda: set(stats(tmp_path, capsys)) == set(GROUPS))
            assert stats(tmp_path, capsys)[5]["connected"]
        assert talks(tmp_path, 6)
        assert talks(tmp_path, 7)

        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert rest.count(b"ending") == 1
    assert not list(tmp_path.iterdir()), "the sockets' files go with the daemon"


def test_a_process_that_cannot_be_started_again_is_tried_later_and_ends_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"  # as while it is being upgraded
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    program = (
        f"import sys; sys.executable = {str(python)!r}; from nitro_vsock import cli; sys.exit(cli.main())"
    )
    with start(tmp_path, command=("-c", program)) as process:
        assert process.stderr
        assert b"serving" in process.stderr.readline()
        python.rename(tmp_path / "away")
        os.kill(of_guest(children(process.pid), tmp_path / "vhost5"), signal.SIGKILL)
        for why in (b"why=SIGKILL", b"No such file"):
            assert why in process.stderr.readline()
        assert set(stats(tmp_path, capsys)) == set(GROUPS) - {5}
        (tmp_path / "away").rename(python)
        eventually(lambda: set(stats(tmp_path, capsys)) == set(GROUPS))


def test_a_process_that_does_not_answer_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(tmp_path) as process:
        assert process.stderr
        process.stderr.readline()
        worker = of_guest(children(process.pid), tmp_path / "vhost5")
        os.kill(worker, signal.SIGSTOP)
        assert set(stats(tmp_path, capsys)) == set(GROUPS) - {5}
        os.kill(worker, signal.SIGCONT)
        eventually(lambda: set(stats(tmp_path, capsys)) == set(GROUPS))


def test_signals_at_the_end_and_a_process_that_is_not_there_leave_nothing(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stderr
        process.stderr.readline()
        os.kill(of_guest(children(process.pid), tmp_path / "vhost5"), signal.SIGKILL)
        assert b"lost their process" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert b"ending" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert not list(tmp_path.iterdir())


def of_guest(workers: list[int], path: Path) -> int:
    """The process that listens at ``path``."""
    (inode,) = (
        line.split()[6] for line in Path("/proc/net/unix").read_text().split("\n") if line.endswith(str(path))
    )
    (found,) = (
        pid
        for pid in workers
        if any(
            str(descriptor.readlink()) == f"socket:[{inode}]"
            for descriptor in Path(f"/proc/{pid}/fd").iterdir()
        )
    )
    return found


def test_the_processes_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stderr
        process.stderr.readline()
        workers = children(process.pid)
        process.kill()
        process.wait()
        for worker in workers:
            eventually(lambda pid=worker: gone(pid))  # type: ignore[misc]
    assert {path.name for path in tmp_path.iterdir()} == {"stats"}


def test_one_process_that_cannot_start_ends_the_daemon_with_its_reason(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "vhost5"))
        other.listen()
        with start(tmp_path) as process:
            _, story = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == cli.EXIT_HOST
    assert b"vhost5 is in use by another program" in story
    assert b"the process for guest 5 did not start: exit code 4" in story
    assert {path.name for path in tmp_path.iterdir()} == {"vhost5"}
