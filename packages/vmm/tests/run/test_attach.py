"""An enclave in the foreground: signals."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nitro_vmm import EnclaveConfig, Outcome, UsageError
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.defaults import HEARTBEAT, HEARTBEAT_PORT
from nitro_vmm.enclave import assembly
from nitro_vmm.machine.board import _Reserved
from nitro_vmm.plain_config import PlainConfig
from nitro_vmm.run import foreground
from nitro_vmm.run.attach import attach
from nitro_vmm.run.foreground import HIDDEN, Attached
from nitro_vmm.testing import FakeAccelerator, FakeVcpu
from nitro_vsock import VsockError


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (signal.SIGINT, signal.SIGTERM, "ended by Ctrl-C"),
        (signal.SIGTERM, signal.SIGINT, "ended by SIGTERM"),
        (signal.SIGINT, signal.SIGINT, "ended by Ctrl-C"),
    ],
)
def test_the_first_signal_counts(
    image: Path, first: signal.Signals, second: signal.Signals, reason: str
) -> None:
    def send_signals(vcpu: FakeVcpu) -> Exit:
        os.kill(os.getpid(), first)
        vcpu.wait_for_kick()  # the first one was obeyed
        os.kill(os.getpid(), second)
        return Exit(ExitReason.HALTED)

    attached = attach(EnclaveConfig(eif_path=image), accelerator=FakeAccelerator(send_signals))

    assert attached.signal is first
    assert (attached.result.outcome, attached.result.reason) == (Outcome.STOPPED, reason)


def test_the_console_arrives_before_it_returns(image: Path) -> None:
    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"last words")
        return Exit(ExitReason.HALTED)

    read_end, write_end = os.pipe()
    attached = attach(
        EnclaveConfig(eif_path=image, console=True),
        console_fd=write_end,
        accelerator=FakeAccelerator(speak),
    )
    os.close(write_end)
    printed = os.read(read_end, 100)
    os.close(read_end)

    assert printed == b"last words"
    assert attached.signal is None


def test_what_cannot_be_launched_is_one_error(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(20 << 20)

    with pytest.raises(UsageError, match="four times"):
        attach(EnclaveConfig(eif_path=image, memory_mib=64))


@pytest.mark.parametrize(
    ("raw", "printed"),
    [(False, b"a\x1b[31mb"), (True, b"a\x1b[31m\x1b]0;title\x07b")],
)
def test_a_terminal_gets_colours_and_the_rest_on_request(
    image: Path,
    raw: bool,  # noqa: FBT001 - a parameter of the test
    printed: bytes,
) -> None:
    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"a\x1b[31m\x1b]0;title\x07b")
        return Exit(ExitReason.HALTED)

    controller, terminal = os.openpty()
    attach(
        EnclaveConfig(eif_path=image, console=True),
        console_fd=terminal,
        accelerator=FakeAccelerator(speak),
        raw_console=raw,
    )
    os.close(terminal)
    seen = os.read(controller, 100)
    os.close(controller)

    assert seen == printed


def test_a_console_that_is_not_shown(image: Path) -> None:
    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"secret")
        return Exit(ExitReason.HALTED)

    read_end, write_end = os.pipe()
    said: list[str] = []
    attach(
        EnclaveConfig(eif_path=image),
        console_fd=write_end,
        accelerator=FakeAccelerator(speak),
        say=said.append,
    )
    os.close(write_end)
    printed = os.read(read_end, 100)
    os.close(read_end)

    assert printed == b""
    assert HIDDEN in said


class SecondHalf:
    """The second half of a launch, which begins when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: Callable[[], object]) -> None:
        self._begin = assembly.connect
        self._until = until
        monkeypatch.setattr(assembly, "connect", self)

    def __call__(self, *arguments: Any) -> assembly.Assembly:  # noqa: ANN401 - those of the real one
        self._until()
        return self._begin(*arguments)


def test_a_guest_runs_before_the_second_half(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def speak(vcpu: FakeVcpu) -> Exit:
        began.set()
        vcpu.print(b"early")
        return Exit(ExitReason.HALTED)

    SecondHalf(monkeypatch, lambda: began.wait(10))
    read_end, write_end = os.pipe()
    attached = attach(
        PlainConfig(image, console=True),
        console_fd=write_end,
        accelerator=FakeAccelerator(speak),
    )
    os.close(write_end)
    printed = os.read(read_end, 100)
    os.close(read_end)

    assert attached.result.outcome is Outcome.ENDED
    assert began.is_set()
    assert printed == b"early"


def test_a_second_half_that_fails_ends_a_guest_that_runs_and_shows_nothing(
    image: Path, tmp_path: Path
) -> None:
    ended = threading.Event()

    def speak(vcpu: FakeVcpu) -> Exit:
        vcpu.print(b"never seen")
        vcpu.wait_for_kick()
        ended.set()
        return Exit(ExitReason.KICKED)

    read_end, write_end = os.pipe()
    with pytest.raises(VsockError):
        attach(
            PlainConfig(image, vsock_path=tmp_path / "none" / "vsock", console=True),
            console_fd=write_end,
            accelerator=FakeAccelerator(speak),
        )
    os.close(write_end)
    printed = os.read(read_end, 100)
    os.close(read_end)

    assert ended.is_set()
    assert printed == b""


def test_a_signal_before_the_event_loop_counts(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(vcpu: FakeVcpu) -> Exit:
        vcpu.wait_for_kick()
        return Exit(ExitReason.KICKED)

    SecondHalf(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    attached = attach(PlainConfig(image), accelerator=FakeAccelerator(wait))

    assert attached.signal is signal.SIGTERM
    assert attached.result.reason == "ended by SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_heartbeat_is_answered_before_there_is_an_event_loop(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, host = socket.socketpair()
    guest.settimeout(60)
    guest.sendall(HEARTBEAT)
    connect, see_through = assembly.connect, foreground.see_through
    answers: list[bytes] = []

    def connect_quickly(*arguments: Any) -> assembly.Assembly:  # noqa: ANN401 - those of the real one
        connected = connect(*arguments)
        arguments[-1].services[HEARTBEAT_PORT](host)
        return connected

    async def look(*arguments: Any) -> Attached:  # noqa: ANN401 - those of the real one
        answers.append(guest.recv(2))
        return await see_through(*arguments)

    def wait(vcpu: FakeVcpu) -> Exit:
        vcpu.wait_for_kick()
        return Exit(ExitReason.KICKED)

    monkeypatch.setattr(assembly, "connect", connect_quickly)
    monkeypatch.setattr(foreground, "see_through", look)
    SecondHalf(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    attached = attach(PlainConfig(image), accelerator=FakeAccelerator(wait))
    guest.close()

    assert answers == [HEARTBEAT]
    assert attached.result.heartbeat_s is not None
    assert attached.timeline.has("heartbeat")


def test_a_guest_may_end_before_its_devices_are_there(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait() -> None:
        for thread in threading.enumerate():
            if thread.name == "guest":
                thread.join()

    SecondHalf(monkeypatch, wait)
    attached = attach(PlainConfig(image, accelerator="unicorn"))

    assert attached.result.outcome is Outcome.ENDED


def test_a_host_without_room_for_the_guests_thread_is_not_waited_for(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "guest":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        attach(EnclaveConfig(eif_path=image), accelerator=FakeAccelerator(FakeVcpu.wait_for_kick))


def test_a_guest_may_look_for_its_devices_before_they_are_there(
    looking_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        while not any(waits_for_device(frame) for frame in sys._current_frames().values()):
            pass

    SecondHalf(monkeypatch, wait)
    attached = attach(PlainConfig(looking_image, accelerator="unicorn"))

    assert attached.result.outcome is Outcome.ENDED


def waits_for_device(frame: FrameType | None) -> bool:
    """Whether a thread waits for a device in a reserved slot."""
    while frame is not None:
        if frame.f_code is _Reserved.read.__code__:
            return True
        frame = frame.f_back
    return False
