"""``vsock-proxy``: AWS's arguments and allow-list, and who reaches it here."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nitro_vsock import HostError, SocketType, vsock_proxy
from nitro_vsock.host import af_vsock
from nitro_vsock.host.parent import SharedParentSide

PATIENCE_S = 30


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a TCP server that sends what it got once its client has ended, and then says goodbye."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            received = b""
            while data := connection.recv(4096):
                received += data
            connection.sendall(received + b", goodbye")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def allowed(tmp_path: Path, server: int) -> Path:
    """An allow-list with the server, in the form of AWS's file."""
    path = tmp_path / "vsock-proxy.yaml"
    path.write_text(f"about: ours\nallowlist:\n- {{address: 127.0.0.1, port: {server}, for: tests}}\n")
    return path


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "nitro-vsock"


@contextmanager
def proxy(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "nitro_vsock.vsock_proxy", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("listening" in line for line in process.stderr)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_S)


def ask(path: Path, text: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as guest:
        guest.settimeout(PATIENCE_S)
        guest.connect(str(path))
        guest.sendall(text)
        guest.shutdown(socket.SHUT_WR)
        return guest.makefile("rb").read()


def refused(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nitro_vsock.vsock_proxy", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_guest_reaches_the_server_and_each_end_of_writing_is_passed_on(
    tmp_path: Path, server: int, allowed: Path
) -> None:
    with proxy(8000, "127.0.0.1", server, "--config", allowed, f"--uds-path={tmp_path}/parent"):
        assert ask(tmp_path / "parent_8000", b"hello") == b"hello, goodbye"


def test_without_a_path_every_enclave_of_the_user_reaches_it(
    server: int, allowed: Path, runtime_directory: Path
) -> None:
    with proxy("-4", "8000", "127.0.0.1", server, "--config", allowed):
        with SharedParentSide().connect(8000, SocketType.STREAM) as guest:
            guest.setblocking(True)
            guest.sendall(b"hello")
            guest.shutdown(socket.SHUT_WR)
            assert guest.makefile("rb").read() == b"hello, goodbye"
        assert runtime_directory.stat().st_mode & 0o777 == 0o700

    with pytest.raises(FileNotFoundError):
        SharedParentSide().connect(8000, SocketType.STREAM)


def test_a_directory_that_others_can_write_to_is_not_believed(
    server: int, allowed: Path, runtime_directory: Path
) -> None:
    with proxy(8000, "127.0.0.1", server, "--config", allowed):
        runtime_directory.chmod(0o777)

        with pytest.raises(FileNotFoundError):
            SharedParentSide().connect(8000, SocketType.STREAM)

    code, message = refused(8000, "127.0.0.1", server, "--config", allowed)
    assert (code, "chmod 700" in message) == (1, True)


def test_more_connections_than_workers_wait(tmp_path: Path, server: int, allowed: Path) -> None:
    with (
        proxy(8000, "127.0.0.1", server, "-w", 1, "--config", allowed, f"--uds-path={tmp_path}/p"),
        socket.socket(socket.AF_UNIX) as first,
    ):
        first.connect(str(tmp_path / "p_8000"))
        answers: list[bytes] = []
        second = threading.Thread(target=lambda: answers.append(ask(tmp_path / "p_8000", b"second")))
        second.start()
        first.sendall(b"first")
        second.join(timeout=0.2)
        assert not answers, "there is one worker, and the first connection has it"

        first.shutdown(socket.SHUT_WR)
        assert first.makefile("rb").read() == b"first, goodbye"
        second.join(timeout=PATIENCE_S)

    assert answers == [b"second, goodbye"]


def test_a_server_that_is_away_ends_the_guests_connection(tmp_path: Path, allowed: Path, server: int) -> None:
    with proxy("-6", 8000, "127.0.0.1", server, "--config", allowed, f"--uds-path={tmp_path}/p") as process:
        with suppress(ConnectionError):
            assert ask(tmp_path / "p_8000", b"hello") == b""
        assert process.stderr is not None
        assert "cannot connect" in process.stderr.readline(), "127.0.0.1 is no IPv6 address"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_its_socket(
    tmp_path: Path, server: int, allowed: Path, number: signal.Signals, code: int
) -> None:
    arguments = (8000, "127.0.0.1", server, "--config", allowed, f"--uds-path={tmp_path}/p")
    with proxy(*arguments) as process:
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE_S) == code

    assert not (tmp_path / "p_8000").exists()


def test_what_is_not_in_the_list_is_refused(allowed: Path) -> None:
    code, message = refused(8000, "127.0.0.1", 1, "--config", allowed)

    assert code == 1
    assert "127.0.0.1:1 is not in the allow-list" in message
    assert "hint:" in message


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, message = refused(8000, "kms.us-east-1.amazonaws.com", 443, "--config", tmp_path / "absent.yaml")

    assert code == 1
    assert "absent.yaml" in message


@pytest.mark.skipif(vsock_proxy.CONFIG_DEFAULT.exists(), reason="AWS's package is installed here")
def test_without_awss_file_its_contents_count() -> None:
    with proxy(8000, "kms.eu-central-1.amazonaws.com", 443):
        pass  # it listens

    for host, port in (("kms.eu-central-1.amazonaws.com", 80), ("example.com", 443), ("kms.evil.com", 443)):
        code, message = refused(8000, host, port)
        assert (code, "address and port are not allowed" in message) == (1, True), host


@pytest.mark.parametrize(
    "arguments",
    [
        ["-4", "-6", "8000", "localhost", "443"],
        ["8000", "localhost"],
        ["4294967296", "localhost", "443"],
        ["8000", "localhost", "0"],
        ["8000", "localhost", "65536"],
        ["4294967295", "localhost", "443"],
        ["-1", "localhost", "443"],
        ["-w", "0", "8000", "localhost", "443"],
        ["-w", "65537", "8000", "localhost", "443"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        vsock_proxy.main(arguments)

    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_what_the_numbers_may_be_and_how_many_connections_there_are_at_a_time() -> None:
    parse = vsock_proxy.parser().parse_args
    first, last = parse(["0", "a", "1"]), parse(["-w", "65536", "4294967294", "a", "65535"])

    assert (first.local_port, first.remote_port, first.num_workers) == (0, 1, 4)
    assert (last.local_port, last.remote_port, last.num_workers) == (4294967294, 65535, 65536)


def test_a_full_disk_and_too_few_descriptors_are_no_tracebacks(allowed: Path, server: int) -> None:
    command = f"{sys.executable} -m nitro_vsock.vsock_proxy 8000 127.0.0.1 {server} --config {allowed}"

    full = subprocess.run(
        ["bash", "-c", f"{command} --version > /dev/full"], capture_output=True, text=True, check=False
    )
    few = subprocess.run(
        ["bash", "-c", f"ulimit -n 7; {command}"], capture_output=True, text=True, check=False
    )

    assert (full.returncode, full.stderr) == (1, "vsock-proxy: error: No space left on device\n")
    assert (few.returncode, few.stderr) == (1, "vsock-proxy: error: Too many open files\n")


def test_a_port_that_is_taken(tmp_path: Path, server: int, allowed: Path) -> None:
    arguments = (8000, "127.0.0.1", server, "--config", allowed, f"--uds-path={tmp_path}/p")
    with proxy(*arguments):
        code, message = refused(*arguments)

    assert (code, "in use" in message) == (1, True)


def test_a_port_of_the_hosts_own_vsock_that_is_taken_is_told(server: int, allowed: Path) -> None:
    port = 1_000_000 + os.getpid()  # nobody else's
    try:
        af_vsock.check_available()
    except HostError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "nitro_vsock.vsock_proxy", str(port), "127.0.0.1", str(server)]

    with (
        af_vsock.listen(port),
        subprocess.Popen([*command, "--config", allowed], stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        warning, listening = process.stderr.readline(), process.stderr.readline()
        process.terminate()

    assert "only enclaves of this user reach this" in warning
    assert f"nitro-vsock/parent_{port} target" in listening


def test_it_stands_beside_the_python_that_runs_us() -> None:
    installed = Path(sys.executable).parent / vsock_proxy.PROGRAM
    if not installed.exists():
        pytest.skip("the package is not installed")

    assert subprocess.check_output([installed, "--version"], text=True).startswith("vsock-proxy ")
    assert os.access(installed, os.X_OK)
