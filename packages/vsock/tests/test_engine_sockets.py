"""The host's sockets: files, users, and what TCP does."""

import os
import resource
import socket
import struct
import time
from pathlib import Path

import pytest

from engine_bench import CID, PORT, Bench, words
from nitro_vsock import (
    HostError,
    VsockConfig,
    VsockEngine,
)
from nitro_vsock.device.packet import Op

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_the_socket_is_private_and_goes_away(bench: Bench) -> None:
    bench.start()
    assert bench.path.stat().st_mode & 0o777 == 0o600
    bench.engine.close()
    assert not bench.path.exists()


def descriptors() -> set[int]:
    return {number for number in range(256) if Path(f"/proc/self/fd/{number}").is_symlink()}


def test_no_descriptor_goes_to_programs_that_are_started(bench: Bench) -> None:
    before = descriptors()

    bench.start()
    bench.guest_opens()
    bench.host_opens()

    ours = descriptors() - before
    assert len(ours) > 8
    assert [number for number in ours if os.get_inheritable(number)] == []


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    config = VsockConfig(guest_cid=CID, uds_path=tmp_path / "v")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(config.uds_path))
    first = VsockEngine(config)
    with pytest.raises(HostError, match="in use"):
        VsockEngine(config)
    first.close()
    (tmp_path / "v").write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        VsockEngine(config)
    assert (tmp_path / "v").read_text() == "precious"


def test_a_socket_file_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    config = VsockConfig(guest_cid=CID, uds_path=tmp_path / "v")
    first = VsockEngine(config)
    (tmp_path / "v").unlink()
    second = VsockEngine(config)
    first.close()
    assert (tmp_path / "v").exists()
    second.close()


def test_too_long_a_path_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="unix sockets allow 107") as raised:
        VsockEngine(VsockConfig(guest_cid=CID, uds_path=tmp_path / ("x" * 100)))
    assert raised.value.hint == "choose a shorter one"
    with pytest.raises(HostError, match="cannot listen"):
        VsockEngine(VsockConfig(guest_cid=CID, uds_path=tmp_path / "absent" / "v"))


def test_programs_of_other_users_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    nobody = struct.pack("3i", 1, 12345, 12345)  # SO_PEERCRED: pid, uid, gid
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: nobody)
    assert bench.dial().recv(10) == b""


def test_a_lack_of_descriptors_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.serve(PORT)
    guest = bench.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as last:
        lowest_free = last.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))

    try:
        for guest_port in 1, 2:
            guest.send(Op.REQUEST, guest_port, PORT)
        replies = [packet.header.op for packet in guest.packets()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert replies == [Op.RST, Op.RST]
    (message,) = caplog.messages
    assert "ulimit -n" in message


def test_what_follows_urgent_data_arrives(bench: Bench) -> None:
    bench.serve(PORT)
    guest = bench.start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = bench.stack.enter_context(server.accept()[0])
    guest.engine.adopt(ours, 9)
    (request,) = guest.packets()
    theirs.send(b"A")
    theirs.send(b"!", socket.MSG_OOB)
    theirs.send(b"B")
    guest.send(Op.RESPONSE, 9, request.header.src_port)
    received, deadline = b"", time.monotonic() + 10
    while received != b"AB":
        assert time.monotonic() < deadline
        received += b"".join(data for _, data in words(guest))
