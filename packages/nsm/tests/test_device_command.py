"""``nsm device``, with a socket for /dev/cuse where that is needed."""

import errno
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from nitro_nsm import HostError, cli
from nitro_nsm.commands import device
from nitro_nsm.cuse import IN_HEADER, INIT_IN, INIT_OUT, OUT_HEADER, CuseDevice, Opcode


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(device, "CUSE", Path("nowhere/cuse"))


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hint"),
    [
        (["--name", "a/b"], cli.EXIT_USAGE, "is not the name of a device", "such as nsm"),
        (["--name", ""], cli.EXIT_USAGE, "is not the name of a device", "such as nsm"),
        (["--name", "null"], cli.EXIT_HOST, "/dev/null is there already", "another --name"),
        (["--name", "nsm-test"], cli.EXIT_HOST, "nowhere/cuse: No such file", "modprobe cuse"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], code: int, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["device", *arguments]) == code

    err = capsys.readouterr().err
    assert said in err
    assert "hint: " in err
    assert hint in err


def message(opcode: Opcode, unique: int, body: bytes = b"") -> bytes:
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, 0, 0, 0, 0, 0, 0) + body


def test_it_answers_message_by_message_until_the_end() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ready = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            device.serve(ours.detach(), CuseDevice(lambda request: request, "nsm"), ready.set)
        except HostError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with kernel:
        kernel.send(message(Opcode.CUSE_INIT, 2, INIT_IN.pack(7, 41, 0, 1)))
        made = kernel.recv(1000)
        assert ready.wait(10)
        kernel.send(message(Opcode.INTERRUPT, 3))
        kernel.send(message(Opcode.RELEASE, 4))
        released = kernel.recv(1000)
    thread.join()

    assert made[OUT_HEADER.size + INIT_OUT.size :] == b"DEVNAME=nsm\0"
    assert OUT_HEADER.unpack(released) == (16, 0, 4)
    assert len(raised) == 1  # an end that is not the kernel's


def test_its_descriptor_is_closed() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = ours.detach()
    kernel.close()

    with pytest.raises(HostError):
        device.serve(descriptor, CuseDevice(bytes, "nsm"), lambda: None)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Signals do after the test what they did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_it_ends_with_the_kernels_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cuse").touch()
    monkeypatch.setattr(device, "CUSE", tmp_path / "cuse")
    flags: list[int] = []

    def serve(cuse: int, *_: object) -> None:
        flags.extend((fcntl.fcntl(cuse, fcntl.F_GETFL) & os.O_ACCMODE, fcntl.fcntl(cuse, fcntl.F_GETFD)))
        os.close(cuse)

    monkeypatch.setattr(device, "serve", serve)

    assert cli.main(["device", "--name", "nsm-test"]) == 0
    assert flags == [os.O_RDWR, fcntl.FD_CLOEXEC]


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_asked(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuse").touch()
    monkeypatch.setattr(device, "CUSE", tmp_path / "cuse")

    def serve(cuse: int, *_: object) -> None:
        os.close(cuse)
        signal.raise_signal(number)

    monkeypatch.setattr(device, "serve", serve)

    with pytest.raises(SystemExit) as ended:
        cli.main(["device", "--name", "nsm-test"])
    assert ended.value.code == 0


@pytest.mark.parametrize(("error", "quiet"), [(errno.ENODEV, True), (errno.EIO, False)])
def test_only_the_kernels_own_end_is_no_error(
    error: int, *, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: int) -> bytes:
        raise OSError(error, os.strerror(error))

    expected = nullcontext() if quiet else pytest.raises(HostError, match="Input/output error")
    kernel, ours = socket.socketpair()
    with kernel, expected, monkeypatch.context() as patched:
        patched.setattr(os, "read", read)
        device.serve(ours.detach(), CuseDevice(bytes, "nsm"), lambda: None)
