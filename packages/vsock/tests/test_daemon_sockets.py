"""The daemon's own sockets: who may connect, what a manager hands over, and what goes wrong with them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nitro_vsock import cli
from vhost_user_guest import PATIENCE_S, Guest, listen

NOBODY, OTHER = 65534, 65533


@contextmanager
def start(directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "nitro_vsock.cli", "--guest-cid=16", f"--socket={directory}/s", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            assert b"serving" in line, line + process.stderr.read()
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_without_more_users_the_files_let_nobody_else_in(tmp_path: Path) -> None:
    with start(
        tmp_path, f"--uds-path={tmp_path}/u", f"--stats={tmp_path}/c", f"--publish=unix:{tmp_path}/p=80"
    ):
        assert {path.name: mode(path) for path in tmp_path.iterdir()} == dict.fromkeys("sucp", 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_allowed_users_get_in_and_others_do_not() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # where others can reach it
        open_to_all = Path(name)
        open_to_all.chmod(0o755)
        options = [f"--allow-uid={NOBODY}", f"--uds-path={name}/u", f"--stats={name}/c"]
        with start(open_to_all, *options, f"--publish=unix:{name}/p=80"):
            assert mode(open_to_all / "c") == 0o600, "the counters are for the owner"
            assert not answers(open_to_all / "s", OTHER)
            assert answers(open_to_all / "s", NOBODY)
            with Guest(open_to_all / "s") as guest:
                assert not reaches(guest, open_to_all / "u", OTHER)
                assert reaches(guest, open_to_all / "u", NOBODY)


def as_user(uid: int, code: str, path: Path) -> subprocess.Popen[bytes]:
    """A program of another user's; what it prints is the result."""
    program = f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({str(path)!r})\n{code}"
    return subprocess.Popen(
        ["/usr/bin/env", "python3", "-S", "-c", program], user=uid, stdout=subprocess.PIPE, cwd="/"
    )


def answers(path: Path, uid: int) -> bool:
    """Whether a front-end of this user is served: GET_FEATURES has an answer of 20 bytes."""
    code = "s.sendall(bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))\nprint(len(s.recv(100)))"
    output, _ = as_user(uid, code, path).communicate(timeout=PATIENCE_S)
    return output == b"20\n"


def reaches(guest: Guest, path: Path, uid: int) -> bool:
    """Whether a host program of this user is let through to the guest."""
    code = "s.sendall(b'CONNECT 80\\n')\nprint(s.recv(100))"
    with as_user(uid, code, path) as program:
        if uid == NOBODY:
            guest.accept(port=80)
        output, _ = program.communicate(timeout=PATIENCE_S)
    return output == b"b'OK 80\\n'\n"


def run(*arguments: str, pass_fds: tuple[int, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nitro_vsock.cli", *arguments],
        pass_fds=pass_fds,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_fd_alone_is_enough() -> None:
    ours, theirs = socket.socketpair()
    ours.close()  # a front-end that goes at once
    with theirs:
        code, story = run(f"--fd={theirs.fileno()}", pass_fds=(theirs.fileno(),))
    assert code == cli.EXIT_OK, story
    assert "serving (guests=[3])" in story


@pytest.mark.parametrize(
    ("family", "kind", "why"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, "neither listens nor is it connected"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "not a unix stream socket"),
        (socket.AF_INET, socket.SOCK_STREAM, "not a unix stream socket"),
    ],
)
def test_fd_of_another_kind_is_refused(family: int, kind: int, why: str) -> None:
    with socket.socket(family, kind) as given:
        code, story = run(f"--fd={given.fileno()}", pass_fds=(given.fileno(),))
    assert code == cli.EXIT_HOST
    assert why in story


@pytest.mark.parametrize(("given", "code"), [("-1", cli.EXIT_USAGE), ("999", cli.EXIT_HOST)])
def test_fd_that_is_none_is_refused(given: str, code: int) -> None:
    assert run(f"--fd={given}")[0] == code


def test_a_name_is_published_at_all_its_addresses(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with start(tmp_path, f"--publish=tcp:*:{port}=80"):
        for host in ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",):
            socket.create_connection((host, port), timeout=PATIENCE_S).close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_address_in_use_cannot_be_published(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"tcp:127.0.0.1:{other.getsockname()[1]}"
        code, story = run(f"--socket={tmp_path}/s", f"--publish={place}=80")
    assert code == cli.EXIT_HOST
    assert "cannot publish" in story
    assert not list(tmp_path.iterdir())


def test_with_a_json_log_everything_is_json(tmp_path: Path) -> None:
    with listen(tmp_path / "s"):
        code, story = run("--log-format=json", f"--socket={tmp_path}/s")
    assert code == cli.EXIT_HOST
    (entry,) = map(json.loads, story.splitlines())
    assert entry["level"] == "error"
    assert "in use by another program" in entry["message"]


def test_too_few_descriptors_are_announced_and_survived(tmp_path: Path) -> None:
    command = (
        f"ulimit -n 80; exec {sys.executable} -m nitro_vsock.cli --socket={tmp_path}/s --stats={tmp_path}/c"
    )
    with subprocess.Popen(["/bin/sh", "-c", command], stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"the limit of open files is lower" in process.stderr.readline()
        assert b"serving" in process.stderr.readline()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(100)]
        for client in clients:
            client.setblocking(False)
            client.connect(str(tmp_path / "c"))
        line = process.stderr.readline()
        assert line.startswith(b"error: cannot accept (why=Too many open files)"), line
        for client in clients:
            client.close()
        process.terminate()
        _, story = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert b"Traceback" not in story


def test_no_descriptors_at_all_is_the_hosts_fault(tmp_path: Path) -> None:
    command = f"ulimit -n 8; exec {sys.executable} -m nitro_vsock.cli --socket={tmp_path}/s"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False)
    assert done.returncode == cli.EXIT_HOST
    assert b"Traceback" not in done.stderr
