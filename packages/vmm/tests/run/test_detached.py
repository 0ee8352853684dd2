"""An enclave's process in the background: what it writes down, and how it answers requests."""

import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from nitro_nsm import parse_document
from nitro_vmm import Enclave, EnclaveConfig, Result, UsageError
from nitro_vmm.accel import Exit
from nitro_vmm.cli.report import exit_code_of, report
from nitro_vmm.errors import HostError
from nitro_vmm.run.control import ask, attest, stats
from nitro_vmm.run.detached import Server, see_through
from nitro_vmm.run.registry import ENDED, RUNNING, Entry, control_address, entries, find
from nitro_vmm.run.signals import EarlySignals
from nitro_vmm.testing import FakeAccelerator, FakeVcpu

# The bounds as they are promised, so that those of the program are held against them.
CLIENTS_MAX = 64
ANSWER_BYTES_MAX = 65536
REQUEST_BYTES_MAX = 16384

Talk = Callable[[Path], object]
"""What a client does, in a thread of its own, with an enclave whose directory this is."""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nitro-vmm"


def say_hi_and_wait(vcpu: FakeVcpu) -> Exit:
    if vcpu.runs == 1:
        vcpu.print(b"hi")
    return vcpu.wait_for_kick()


def describe(result: Result, number: int | None) -> dict[str, Any]:
    return report(result, exit_code_of(result, number))


@pytest.fixture
def see(image: Path, runtime: Path) -> Callable[..., object]:
    """Runs an enclave, has a client talk to it, and stops it; returns what the client returns."""

    def see(talk: Talk, *, forget: bool = False, **settings: object) -> object:
        found: list[object] = []
        failed: list[BaseException] = []

        def client(directory: Path) -> None:
            try:
                found.append(talk(directory))
            except BaseException as error:  # noqa: BLE001 - raised again below
                failed.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        threads: list[threading.Thread] = []

        def started(entry: Entry) -> None:
            threads.append(threading.Thread(target=client, args=(runtime / entry.name,)))
            threads[0].start()

        with EarlySignals():  # SIGTERM must not end the tests when the enclave has ended already
            see_through(
                EnclaveConfig.model_validate({"eif_path": image, **settings}),
                started=started,
                report=describe,
                forget=forget,
                accelerator=FakeAccelerator(say_hi_and_wait),
            )
            threads[0].join()
        for error in failed:
            raise error
        return found[0]

    return see


def test_its_entry_while_it_runs_and_afterwards(see: Callable[..., object], image: Path) -> None:
    def look_and_stop(directory: Path) -> Entry:
        entry = find(directory.name)
        with ask(directory, "stop") as control:
            control.recv(1)  # closed when it has ended
        return entry

    running = see(look_and_stop, debug_mode=True, memory_mib=64)
    (ended,) = entries()

    assert isinstance(running, Entry)
    assert (running.status, running.cid, running.memory_mib, running.processors) == (RUNNING, 16, 64, 1)
    assert (running.pid, running.image) == (os.getpid(), str(image))
    assert (running.debug_mode, running.console) == (True, True)
    assert running.id.startswith("i-")
    assert list(running.measurements) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2"]
    assert running.report is None
    assert ended.status == ENDED
    assert ended.report is not None
    assert (ended.report["ExitCode"], ended.report["Reason"]) == (143, "stopped by vmm stop")


def test_it_may_leave_nothing(see: Callable[..., object]) -> None:
    see(lambda _directory: None, forget=True)

    assert entries() == []


def test_the_sockets_that_go_with_it_are_noted(see: Callable[..., object], tmp_path: Path) -> None:
    entry = see(
        lambda directory: find(directory.name),
        vsock_path=tmp_path / "vsock",
        publish=[f"unix:{tmp_path}/web:80", "127.0.0.1:0:81"],
    )

    assert isinstance(entry, Entry)
    assert entry.sockets == [str(tmp_path / name) for name in ("web", "vsock", "vsock.seqpacket")]
    assert entry.published[0] == f"{tmp_path}/web=80"


def test_its_console_is_followed_from_the_first_byte_and_kept(see: Callable[..., object]) -> None:
    def talk(directory: Path) -> bytes:
        with ask(directory, "follow") as control:
            return control.recv(2, socket.MSG_WAITALL)

    assert see(talk, console=True) == b"hi"
    assert entries()[0].console


def test_what_it_uses(see: Callable[..., object]) -> None:
    usage = see(stats)

    assert isinstance(usage, dict)
    assert usage["Name"] == "small"
    assert 0 <= usage["Seconds"] < 3600
    assert 0 < usage["CpuSeconds"] < 36000
    assert 10 < usage["MaxResidentMiB"] < 100_000, "an interpreter has some tens of MiB"


def test_what_it_uses_is_in_milliseconds_and_mebibytes(
    see: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux counts the greatest resident set in KiB (getrusage(2))."""
    used = SimpleNamespace(ru_utime=1.20004, ru_stime=0.03441, ru_maxrss=77 * 1024 + 1023)
    monkeypatch.setattr("resource.getrusage", lambda _who: used)

    usage = see(stats)

    assert isinstance(usage, dict)
    assert (usage["CpuSeconds"], usage["MaxResidentMiB"]) == (1.234, 77)
    assert usage["Seconds"] == round(usage["Seconds"], 3)


def test_a_document_says_what_was_asked_for(see: Callable[..., object]) -> None:
    contents = {"nonce": b"n", "user_data": b"u" * 1500, "public_key": b"k" * 500}
    document = see(lambda directory: attest(directory, contents))

    assert isinstance(document, bytes)
    parsed = parse_document(document)
    assert (parsed.nonce, parsed.user_data, parsed.public_key) == (b"n", b"u" * 1500, b"k" * 500)
    assert len(document) < ANSWER_BYTES_MAX


def test_the_longest_request_is_answered(see: Callable[..., object]) -> None:
    contents = {"user_data": b"u" * 4095}

    with pytest.raises(UsageError, match="InputTooLarge: 4141 bytes of 4096"):
        see(lambda directory: attest(directory, contents))


def answer_to(directory: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client, control_address(directory) as address:
        client.connect(address)
        client.sendall(request)
        with client.makefile("rb") as answer:
            return answer.readline()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b'{"do": "dance"}\n', {"error": "no such request"}),
        (b'{"do": "attest", "nonce": "xy"}\n', {"error": "what a document is to say must be hexadecimal"}),
        (b'{"do": "attest", "nonce": 5}\n', {"error": "what a document is to say must be hexadecimal"}),
        (b'{"do": "follow"}\n', {"error": "the console is not shown"}),
        (b"x" * REQUEST_BYTES_MAX, {"error": "no such request"}),
    ],
)
def test_requests_that_it_refuses(
    see: Callable[..., object], request_: bytes, answer: dict[str, str]
) -> None:
    line = see(lambda directory: answer_to(directory, request_))

    assert isinstance(line, bytes)
    assert json.loads(line) == answer


def first_byte(directory: Path) -> bytes:
    """What the console shows first; nothing to a client that is turned away."""
    try:
        with ask(directory, "follow") as control:
            return control.recv(1)
    except (HostError, OSError):
        return b""


def test_so_many_clients_and_no_more(see: Callable[..., object]) -> None:
    def talk(directory: Path) -> tuple[list[bytes], bytes]:
        with ExitStack() as clients:
            served = [clients.enter_context(ask(directory, "follow")).recv(1) for _ in range(CLIENTS_MAX)]
            return served, first_byte(directory)

    assert see(talk, console=True) == ([b"h"] * CLIENTS_MAX, b"")


def test_clients_that_have_gone_leave_their_places_to_others(see: Callable[..., object]) -> None:
    def talk(directory: Path) -> object:
        for _ in range(CLIENTS_MAX + 1):
            named = stats(directory)["Name"]
        return named

    assert see(talk) == "small"


class Printing:
    """An enclave's console, and its readers, as the server of its requests sees them."""

    def __init__(self, *, ends: bool) -> None:
        self.console, self._ends = self, ends

    async def stream(self) -> AsyncIterator[bytes]:
        yield b"hi"
        if not self._ends:
            await trio.sleep_forever()


def seconds_to_finish(*, ends: bool) -> float:
    """How long the end of an enclave waits for a reader of its console, by a clock that does not wait."""

    async def run() -> float:
        server = Server(cast("Enclave", Printing(ends=ends)), cast("Entry", None))
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        with theirs:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(server._follow, stream)
                await trio.testing.wait_all_tasks_blocked()
                began = trio.current_time()
                await server.finish()
                seconds = trio.current_time() - began
                nursery.cancel_scope.cancel()
        return seconds

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_has_read_all_of_the_console_is_not_waited_for() -> None:
    assert seconds_to_finish(ends=True) == 0


def test_who_reads_for_ever_is_waited_for_a_second() -> None:
    assert seconds_to_finish(ends=False) == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]])
def test_the_first_signal_ends_it(
    see: Callable[..., object], image: Path, numbers: list[signal.Signals]
) -> None:
    def started(_entry: Entry) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    with EarlySignals():
        see_through(
            EnclaveConfig(eif_path=image),
            started=started,
            report=describe,
            accelerator=FakeAccelerator(say_hi_and_wait),
        )

    (ended,) = entries()
    assert ended.report is not None
    assert ended.report["ExitCode"] in {128 + number for number in numbers}


def test_one_that_cannot_be_launched_leaves_nothing(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(20 << 20)

    with pytest.raises(UsageError, match="four times"):
        see_through(
            EnclaveConfig(eif_path=image, memory_mib=64),
            started=lambda _entry: None,
            report=describe,
            accelerator=FakeAccelerator(say_hi_and_wait),
        )

    assert entries() == []


def test_a_bug_of_its_process_is_written_down(image: Path) -> None:
    def crash(_entry: Entry) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        see_through(
            EnclaveConfig(eif_path=image),
            started=crash,
            report=describe,
            accelerator=FakeAccelerator(say_hi_and_wait),
        )

    (ended,) = entries()
    assert ended.report is not None
    assert (ended.report["ExitCode"], ended.report["Outcome"]) == (1, "FAILED")
    assert ended.report["Reason"] == "its process failed: RuntimeError('a bug')"


def test_nobody_takes_requests(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        ask(tmp_path, "stop")

    assert caught.value.code == "M13"
    assert caught.value.hint == f"vmm terminate {tmp_path.name} ends it"
