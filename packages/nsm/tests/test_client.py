"""The client over its three transports, and the module on a unix socket."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm import (
    DeviceTransport,
    ErrorCode,
    HostError,
    Nsm,
    NsmClient,
    NsmConfig,
    Refusal,
    Root,
    SocketTransport,
    unix_socket,
    verify,
)
from nitro_nsm.ioctl import NSM_IOCTL, NSM_RAW
from nitro_nsm.server import CONNECTIONS_MAX
from nitro_nsm.testing import serving

REPLY_BYTES_MAX = 0x3000


@pytest.fixture
def nsm(root: Root) -> Nsm:
    return Nsm(NsmConfig(pcrs={0: b"\1" * 48}), root=root)


def check_everything(client: NsmClient, nsm: Nsm, root: Root) -> None:
    described = client.describe_nsm()
    assert described.module_id == nsm.module_id
    assert (described.version, described.digest, described.max_pcrs) == ((1, 0, 0), "SHA384", 32)
    assert described.locked_pcrs == tuple(range(16))
    assert client.describe_pcr(0).value == b"\1" * 48
    assert client.describe_pcr(0).locked
    assert client.extend_pcr(16, b"x") == client.describe_pcr(16).value
    client.lock_pcr(16)
    client.lock_pcrs(18)
    with pytest.raises(Refusal) as caught:
        client.lock_pcr(17)
    assert caught.value.code is ErrorCode.READ_ONLY_INDEX
    assert len(client.get_random()) == 256
    document = client.attest(nonce=b"n", user_data=b"u", public_key=b"p")
    verified = verify(document, at=datetime.now(UTC), root=root.trust)
    assert (verified.nonce, verified.user_data, verified.public_key) == (b"n", b"u", b"p")
    with pytest.raises(Refusal) as caught:
        client.attest(nonce=bytes(0x1000))
    assert caught.value.code is ErrorCode.INPUT_TOO_LARGE


def test_the_device_is_opened_for_both_ways_and_for_this_program_only(tmp_path: Path) -> None:
    device = tmp_path / "nsm"
    device.touch()

    with DeviceTransport(device) as transport:
        descriptor = transport._descriptor
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) == fcntl.FD_CLOEXEC


def test_in_the_same_process(nsm: Nsm, root: Root) -> None:
    check_everything(NsmClient(nsm.handle), nsm, root)


def test_over_a_socket(nsm: Nsm, root: Root, tmp_path: Path) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path, SocketTransport(path) as transport:
        check_everything(NsmClient(transport), nsm, root)
    assert not list(tmp_path.iterdir())


def test_over_the_ioctl_of_linux(
    nsm: Nsm, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ioctl(_descriptor: int, number: int, message: bytearray) -> int:
        assert number == 0xC0200A00
        request, request_bytes, reply, reply_bytes = NSM_RAW.unpack(message)
        assert reply_bytes == REPLY_BYTES_MAX
        answer = nsm.handle(ctypes.string_at(request, request_bytes))
        ctypes.memmove(reply, answer, len(answer))
        message[:] = NSM_RAW.pack(request, request_bytes, reply, len(answer))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    device = tmp_path / "nsm"
    device.touch()

    with DeviceTransport(device) as transport:
        check_everything(NsmClient(transport), nsm, root)
    assert NSM_IOCTL == 0xC0200A00


def test_a_device_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        DeviceTransport(tmp_path / "nsm")
    (tmp_path / "file").touch()
    with DeviceTransport(tmp_path / "file") as transport, pytest.raises(HostError, match="does not answer"):
        transport(b"\x69GetRandom")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\xff",
        b"\x01",
        b"\xa0",
        cbor2.dumps("LockPCR"),
        cbor2.dumps({"GetRandom": {}}),
        cbor2.dumps({"Error": "New"}),
    ],
)
def test_a_reply_that_is_none(reply: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        NsmClient(lambda _: reply).get_random()
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


@given(st.binary(max_size=40))
def test_any_reply_is_an_answer_or_a_refusal(reply: bytes) -> None:
    with contextlib.suppress(Refusal):
        NsmClient(lambda _: reply).describe_nsm()


def test_all_connections_reach_the_same_module(nsm: Nsm, tmp_path: Path) -> None:
    with (
        serving(nsm, tmp_path / "nsm.sock") as path,
        SocketTransport(path) as first,
        SocketTransport(path) as second,
    ):
        NsmClient(first).lock_pcr(20)
        assert NsmClient(second).describe_pcr(20).locked


def test_a_request_in_pieces_and_several_at_once(nsm: Nsm, tmp_path: Path) -> None:
    frame = len(b"\x69GetRandom").to_bytes(4, "big") + b"\x69GetRandom"
    with serving(nsm, tmp_path / "nsm.sock") as path, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(frame[:2])
        client.sendall(frame[2:7])
        client.sendall(frame[7:] + frame + frame)
        replies = client.makefile("rb").read(3 * (4 + 278))

    assert [replies[start : start + 4] for start in (0, 282, 564)] == [(278).to_bytes(4, "big")] * 3


@pytest.mark.parametrize(
    ("length", "error"), [(0, "InvalidOperation"), (0x1001, "InputTooLarge"), (0xFFFF_FFFF, "InputTooLarge")]
)
def test_empty_and_long_requests_get_an_error(nsm: Nsm, tmp_path: Path, length: int, error: str) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(length.to_bytes(4, "big") + bytes(min(length, 0x1001)))
        client.shutdown(socket.SHUT_WR)
        reply = client.makefile("rb").read()

    assert reply[4:] == cbor2.dumps({"Error": error})


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(nsm: Nsm, tmp_path: Path) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"\0\0\0")
        with SocketTransport(path) as transport:
            assert NsmClient(transport).get_random()


def test_more_connections_than_there_is_room_for_wait_their_turn(nsm: Nsm, tmp_path: Path) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path, contextlib.ExitStack() as stack:
        first = SocketTransport(path)
        others = [stack.enter_context(SocketTransport(path)) for _ in range(CONNECTIONS_MAX)]
        *served, waiting = [first, *others]
        for transport in served:
            assert NsmClient(transport).get_random()

        first.close()

        assert NsmClient(waiting).get_random()


def test_a_server_that_leaves_is_the_hosts_fault(nsm: Nsm, tmp_path: Path) -> None:
    with serving(nsm, tmp_path / "nsm.sock") as path:
        transport = SocketTransport(path)
    with transport, pytest.raises(HostError, match="connection to the module is lost"):
        NsmClient(transport).get_random()
    with pytest.raises(HostError, match="No such file"):
        SocketTransport(path)


def test_a_path_in_use_is_refused_and_a_dead_one_taken(nsm: Nsm, tmp_path: Path) -> None:
    path = tmp_path / "nsm.sock"
    with serving(nsm, path):
        with pytest.raises(HostError, match="cannot listen"), serving(nsm, path):
            pass
        with SocketTransport(path) as transport:
            assert NsmClient(transport).get_random()

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(nsm, path), SocketTransport(path) as transport:
        assert NsmClient(transport).get_random()

    path.write_text("a file of someone's")
    with pytest.raises(HostError, match="cannot listen"), serving(nsm, path):
        pass
    assert path.read_text() == "a file of someone's"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal_and_removes_its_socket(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "nsm.sock"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nitro_nsm.cli",
            "serve",
            "--socket",
            str(path),
            "--instance-id",
            "i-0123abcd",
        ],
        stdout=subprocess.PIPE,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()

    with SocketTransport(path) as transport:
        assert said == f"{NsmClient(transport).describe_nsm().module_id} on {path}\n"
        process.send_signal(number)
        assert process.wait() == 0

    process.stdout.close()
    assert not path.exists()


def test_the_socket_is_its_owners_only(nsm: Nsm, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with serving(nsm, tmp_path / "nsm.sock") as path:
            mode = stat.S_IMODE(path.stat().st_mode)
    finally:
        os.umask(umask)

    assert mode == 0o600


def test_programs_of_other_users_are_disconnected(
    nsm: Nsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = iter([4711, 1234, 4712, 0])
    monkeypatch.setattr(unix_socket, "peer_user", lambda _: next(peers))

    with serving(nsm, tmp_path / "nsm.sock", users=[4712]) as path:
        mode = stat.S_IMODE(path.stat().st_mode)
        answered = []
        for _ in range(4):
            with SocketTransport(path) as transport:
                try:
                    answered.append(bool(NsmClient(transport).get_random()))
                except HostError:
                    answered.append(False)

    assert mode == 0o666
    assert answered == [False, False, True, True]


def test_a_peers_user_is_what_the_kernel_says() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert unix_socket.peer_user(ours) == os.getuid()
        assert unix_socket.may_connect(ours, unix_socket.allowed_users(()))


def test_a_file_that_took_the_sockets_place_stays(nsm: Nsm, tmp_path: Path) -> None:
    path = tmp_path / "nsm.sock"
    with serving(nsm, path):
        path.unlink()
        path.write_text("a file of someone's")

    assert path.read_text() == "a file of someone's"
