"""The heartbeat that a vhost-user daemon answers: what its counters say, and what is said without them."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from nitro_vmm import Enclave, EnclaveConfig, Outcome
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.enclave.daemon_heartbeat import DaemonHeartbeat
from nitro_vmm.enclave.heartbeat import Heartbeat
from nitro_vmm.errors import HostError
from nitro_vmm.testing import FakeAccelerator

CID = 16


def report(services: object, cid: int = CID) -> bytes:
    return json.dumps({"vms": [{"guest_cid": cid, "services": services}]}).encode()


def counted(answered: int, wrong: int = 0) -> bytes:
    return report({"heartbeat": {"answered": answered, "wrong": wrong}})


class Daemon:
    """Gives one answer after the other, and the last one for ever."""

    def __init__(self, path: Path) -> None:
        self.answers = [b""]
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.recv(100)
                client.sendall(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path / "stats")
    yield running
    running.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def heartbeat(said: list[str]) -> Heartbeat:
    return Heartbeat(said.append, lambda: 1.5)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([counted(0), counted(0), counted(1)], id="the first enclave"),
        pytest.param(
            [counted(3), counted(3), counted(3), counted(4)], id="a daemon that served others before"
        ),
        pytest.param([counted(3), counted(0), counted(1)], id="a daemon that was started again"),
        pytest.param([counted(0), b"", b"{", counted(1)], id="a daemon that was away"),
    ],
)
async def test_a_heartbeat_that_the_daemon_counts_has_come(
    daemon: Daemon, heartbeat: Heartbeat, answers: list[bytes]
) -> None:
    daemon.answers = answers
    asked = await trio.to_thread.run_sync(DaemonHeartbeat, daemon.path, CID)

    with trio.fail_after(60):
        await asked.watch(heartbeat)

    assert heartbeat.at_s == 1.5
    assert daemon.answers == answers[-1:]


@pytest.fixture
def back_end(tmp_path: Path) -> Iterator[Path]:
    """A daemon that serves vsock; its own counters do not matter."""
    path = tmp_path / "vhost"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    fd = listener.fileno()
    command = ("--fd", str(fd), "--guest-cid", str(CID), "--uds-path", f"{path}.uds")
    program = [sys.executable, "-m", "nitro_vsock.cli", *command]
    with subprocess.Popen(program, pass_fds=[fd], stderr=subprocess.PIPE) as process:
        listener.close()
        assert process.stderr is not None
        assert b"serving" in process.stderr.readline()  # or a slow machine's daemon would not answer in time
        yield path
        process.terminate()


async def test_an_enclave_that_ends_at_once_has_booted_all_the_same(
    image: Path, daemon: Daemon, back_end: Path
) -> None:
    daemon.answers = [counted(0), counted(1)]
    config = EnclaveConfig(eif_path=image, vhost_user_path=back_end, vhost_user_stats_path=daemon.path)

    async with Enclave(config, accelerator=FakeAccelerator(lambda _: Exit(ExitReason.HALTED))) as enclave:
        result = await enclave.wait()

    assert (result.outcome, result.cid) == (Outcome.ENDED, CID)
    assert result.heartbeat_s is not None


async def test_what_is_no_heartbeat_is_told(daemon: Daemon, heartbeat: Heartbeat, said: list[str]) -> None:
    daemon.answers = [counted(0), counted(0, wrong=1), counted(1, wrong=1)]
    asked = await trio.to_thread.run_sync(DaemonHeartbeat, daemon.path, CID)

    with trio.fail_after(60):
        await asked.watch(heartbeat)

    assert said[0] == "the daemon got something from the enclave that is no heartbeat"
    assert heartbeat.failures == 1


def gone(daemon: Daemon) -> None:
    daemon.path.unlink()


def answering(answer: bytes) -> Callable[[Daemon], None]:
    def answer_so(daemon: Daemon) -> None:
        daemon.answers = [answer]

    return answer_so


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (gone, "no daemon tells its counters at .*: No such file", "--stats PATH"),
        (answering(b"HTTP/1.0 400"), "it sends something else", "--stats PATH"),
        (answering(b"[" * 100_000), "it sends something else", "--stats PATH"),
        (answering(b"[1]"), "it sends something else", "--stats PATH"),
        (answering(b'{"vms": 3}'), "it sends something else", "--stats PATH"),
        (answering(b'{"vms": [[]]}'), "it sends something else", "--stats PATH"),
        (answering(report([])), "it sends something else", "--stats PATH"),
        (answering(report({"heartbeat": {"answered": "x"}})), "it sends something else", "--stats PATH"),
        (answering(report({}, cid=17)), "has no guest with CID 16", "of the same daemon"),
        (answering(report({"proxy 1": {}})), "does not answer the heartbeat of its guest 16", "--heartbeat"),
    ],
)
def test_what_is_missing_is_said_at_once(
    daemon: Daemon, change: Callable[[Daemon], None], message: str, hint: str
) -> None:
    change(daemon)

    with pytest.raises(HostError, match=message) as caught:
        DaemonHeartbeat(daemon.path, CID)

    assert hint in caught.value.hint
