"""The whole daemon, as a process, against a guest and host programs that do what real ones do.

Each test is a fault that a vhost-user-vsock daemon in use today has: a hang, a leak, lost data, a spin.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nitro_vsock import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, SocketType
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.errors import HostError
from nitro_vsock.vhost_user import FrontendSocket
from vhost_user_guest import (
    PATIENCE_S,
    QUEUE_SIZE,
    RX_BUFFERS,
    Guest,
    accept,
    dial,
    listen,
    patient,
)

CID, OTHER, STRANGER = 16, 17, 18
KIB = 1024


@dataclass
class Daemon:
    """The daemon's process and its sockets."""

    process: subprocess.Popen[bytes]
    directory: Path

    def socket(self, cid: int = CID) -> Path:
        return self.directory / f"vhost{cid}"

    def uds(self, cid: int = CID) -> Path:
        return self.directory / f"vsock{cid}"

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def sleeps(self) -> bool:
        """Whether none of its threads runs, or would if it were given a processor."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "S" for thread in threads)

    def assert_idle(self) -> None:
        """It sleeps once it has done what there is to do: a thread that spins never would."""
        deadline = time.monotonic() + PATIENCE_S
        looks = 0
        while looks < 100:
            looks = looks + 1 if self.sleeps() else 0
            assert time.monotonic() < deadline, "a thread never sleeps"

    def assert_descriptors(self, expected: int) -> None:
        """As many descriptors as before; those of a close that is under way may take a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while self.descriptors() != expected and time.monotonic() < deadline:
            os.sched_yield()
        assert self.descriptors() == expected


@contextlib.contextmanager
def start(directory: Path, *options: str) -> Iterator[Daemon]:
    """A daemon that listens, with two guests that share a group and one of another; ends cleanly.

    The second one has a group with each of the others, so all are in one process.
    """
    vms = [
        f"--vm=guest-cid={cid},socket={directory}/vhost{cid},uds-path={directory}/vsock{cid},groups={groups},spin-us=30"
        for cid, groups in ((CID, "default"), (OTHER, "default+strangers"), (STRANGER, "strangers"))
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "nitro_vsock.cli", *vms, *options], stderr=subprocess.PIPE
    )
    try:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith(b"info: serving"), line + process.stderr.read()
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield Daemon(process, directory)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        drain.join()
        assert not list(directory.glob("vhost*")), "the sockets' files go with the daemon"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with start(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def guest(daemon: Daemon) -> Iterator[Guest]:
    with Guest(daemon.socket()) as running:
        yield running


@pytest.fixture
def listener(daemon: Daemon) -> Iterator[socket.socket]:
    """A host program that waits at port 5000."""
    path = Path(f"{daemon.uds()}_5000")
    with listen(path) as waiting:
        yield waiting
    path.unlink()


def ended(connection: socket.socket) -> bool:
    """Whether the next thing to read is the end."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_nobody_listens(guest: Guest) -> None:
    guest.send(Op.REQUEST, 1000, 5999)
    header = guest.expect(Op.RST)
    assert (header.src_port, header.dst_port, header.src_cid) == (5999, 1000, 2)


@pytest.mark.parametrize("cid", [99, STRANGER])
def test_an_unknown_guest_or_one_of_another_group(daemon: Daemon, guest: Guest, cid: int) -> None:
    with Guest(daemon.socket(STRANGER), cid=STRANGER):
        guest.send(Op.REQUEST, 1000, 5000, dst_cid=cid)
        assert guest.expect(Op.RST).src_cid == cid


def test_data_on_no_connection(guest: Guest) -> None:
    guest.send(Op.RW, 1000, 5000, b"data")
    guest.expect(Op.RST)


@pytest.mark.parametrize("kind", [SocketType.SEQPACKET, 77])
def test_an_unknown_type_is_reset_in_kind(guest: Guest, kind: int) -> None:
    guest.send(Op.REQUEST, 1000, 5000, type=kind)
    assert guest.expect(Op.RST).type == kind


@pytest.mark.parametrize(
    ("features", "cut"),
    [
        (F_VERSION_1 | F_EVENT_IDX, (32768,)),
        (F_VERSION_1, tuple(range(4096, 65536, 4096))),
        (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC, (32768,)),
        (F_EVENT_IDX, ()),
    ],
)
def test_64_kib_writes_of_current_kernels(
    daemon: Daemon, listener: socket.socket, features: int, cut: tuple[int, ...]
) -> None:
    """Their packets have more than two descriptors."""
    data = bytes(range(256)) * 256
    with Guest(daemon.socket(), features=features) as guest:
        guest.connect(1000, 5000)
        with accept(listener) as host:
            for _ in range(20):
                guest.send(Op.RW, 1000, 5000, data, cut=cut)
                assert host.recv(len(data), socket.MSG_WAITALL) == data


def test_the_guest_s_half_close_reaches_the_host_and_leaves_the_answer_open(
    guest: Guest, listener: socket.socket
) -> None:
    guest.connect(1000, 5000)
    with accept(listener) as host:
        guest.send(Op.RW, 1000, 5000, b"question")
        guest.send(Op.SHUTDOWN, 1000, 5000, flags=Shutdown.SEND)
        assert host.recv(100) == b"question"
        assert host.recv(100) == b""
        host.sendall(b"answer")
        assert guest.read(6) == b"answer"


def test_the_host_s_half_close_leaves_the_guest_s_half_open(guest: Guest, listener: socket.socket) -> None:
    guest.connect(1000, 5000)
    with accept(listener) as host:
        host.shutdown(socket.SHUT_WR)
        assert guest.expect(Op.SHUTDOWN).flags == Shutdown.SEND
        guest.send(Op.RW, 1000, 5000, b"still here")
        assert host.recv(100) == b"still here"


def test_a_guest_that_closes_before_the_host_has_read(
    daemon: Daemon, guest: Guest, listener: socket.socket
) -> None:
    """What it sent arrives, then the end; the guest gets its RST; no descriptor stays."""
    before = daemon.descriptors()
    guest.connect(1000, 5000)
    with accept(listener) as host:
        host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        data = os.urandom(64 * KIB)
        for _ in range(4):
            guest.send(Op.RW, 1000, 5000, data)
        guest.send(Op.SHUTDOWN, 1000, 5000, flags=Shutdown.BOTH)
        guest.expect(Op.RST)
        assert host.recv(4 * len(data), socket.MSG_WAITALL) == data * 4
        assert host.recv(1) == b""
    daemon.assert_descriptors(before)


def test_data_behind_connect_is_delivered(daemon: Daemon, guest: Guest) -> None:
    with dial(daemon.uds(), b"CONNECT 7000\nhello") as host:
        guest.accept(port=7000)
        assert guest.read(5) == b"hello"
        assert host.recv(100) == b"OK 7000\n"


def test_connect_in_pieces(daemon: Daemon, guest: Guest) -> None:
    with dial(daemon.uds(), b"CON") as host:
        for piece in (b"NECT 70", b"00", b"\nhel", b"lo"):
            host.sendall(piece)
        guest.accept(port=7000)
        assert guest.read(5) == b"hello"


def test_a_host_that_connects_and_says_nothing(daemon: Daemon, guest: Guest) -> None:
    before = daemon.descriptors()
    for _ in range(20):
        dial(daemon.uds(), b"").close()
    daemon.assert_idle()
    daemon.assert_descriptors(before)


@pytest.mark.parametrize(
    "text", [b"CONNECT 7000", b"CONNECT 7000\n", b"CONNECT x\n", b"GET / HTTP/1.1\r\n", b"\xff" * 200]
)
def test_a_host_that_goes_in_the_handshake(daemon: Daemon, guest: Guest, text: bytes) -> None:
    before = daemon.descriptors()
    for _ in range(20):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            dial(daemon.uds(), text).close()
    if text.endswith(b"7000\n"):
        for _ in range(20):
            request = guest.expect(Op.REQUEST)
            guest.send(Op.RST, 7000, request.src_port)
    daemon.assert_idle()
    daemon.assert_descriptors(before)


def test_three_hundred_hosts_that_connect_and_go_at_once(daemon: Daemon, guest: Guest) -> None:
    before = daemon.descriptors()
    opened = closed = 0
    for _ in range(300):
        dial(daemon.uds(), b"CONNECT 7000\n").close()
        header, _ = guest.receive()
        while header.op != Op.REQUEST:
            if header.op == Op.SHUTDOWN:
                closed += 1
                guest.send(Op.RST, 7000, header.src_port)
            header, _ = guest.receive()
        opened += 1
        guest.send(Op.RESPONSE, 7000, header.src_port)
    while closed < opened:
        header = guest.expect(Op.SHUTDOWN)
        closed += 1
        guest.send(Op.RST, 7000, header.src_port)
    daemon.assert_idle()
    daemon.assert_descriptors(before)


def test_a_host_that_writes_before_the_guest_has_accepted(daemon: Daemon, guest: Guest) -> None:
    with dial(daemon.uds(), b"CONNECT 7000\n") as host:
        request = guest.expect(Op.REQUEST)
        host.sendall(b"early")
        guest.send(Op.RESPONSE, 7000, request.src_port)
        assert guest.read(5) == b"early"


def test_a_guest_that_refuses(daemon: Daemon, guest: Guest) -> None:
    with dial(daemon.uds(), b"CONNECT 7000\n") as host:
        request = guest.expect(Op.REQUEST)
        guest.send(Op.RST, 7000, request.src_port)
        assert ended(host)


def test_more_than_the_credit(guest: Guest, listener: socket.socket) -> None:
    """The connection is reset: bytes that are lost in silence would be worse."""
    guest.send(Op.REQUEST, 1000, 5000)
    window = guest.expect(Op.RESPONSE).buf_alloc
    with accept(listener):
        for number in range(2, 4 * window // (64 * KIB)):  # more than window and socket hold together
            guest.send(Op.RW, 1000, 5000, bytes(64 * KIB))
            guest.wait_transmitted(number)
        guest.expect(Op.RST)


@pytest.mark.parametrize("fault", ["outside of memory", "huge", "loop", "no such next"])
def test_bad_descriptors_are_returned(guest: Guest, fault: str) -> None:
    driver = guest.transmit_driver
    for number in range(2 * QUEUE_SIZE):
        address, length, flags, following = {
            "outside of memory": (1 << 40, 44, 0, 0),
            "huge": (0, 0xFFFF_FFFF, 0, 0),
            "loop": (0, 44, 1, 0),
            "no such next": (0, 44, 1, QUEUE_SIZE),
        }[fault]
        driver.write_descriptor(0, address, length, flags, following)
        driver.make_available(0)
        guest.kick_transmit()
        guest.wait_transmitted(number + 1)
    guest.send(Op.REQUEST, 1000, 5999)
    guest.expect(Op.RST)


def test_siblings_exchange_packets_larger_than_a_receive_buffer(daemon: Daemon, guest: Guest) -> None:
    data = os.urandom(64 * KIB)
    with Guest(daemon.socket(OTHER), cid=OTHER) as other:
        guest.send(Op.REQUEST, 1000, 7000, dst_cid=OTHER)
        request = other.expect(Op.REQUEST)
        assert (request.src_cid, request.dst_port) == (CID, 7000)
        other.send(Op.RESPONSE, 7000, request.src_port, dst_cid=CID)
        guest.expect(Op.RESPONSE)
        for _ in range(8):
            guest.send(Op.RW, 1000, 7000, data, dst_cid=OTHER)
            assert other.read(len(data)) == data
        other.send(Op.RW, 7000, request.src_port, b"thanks", dst_cid=CID)
        assert guest.read(6) == b"thanks"


def test_a_listener_whose_backlog_is_full_refuses(daemon: Daemon, guest: Guest) -> None:
    """The device must not wait for it: all others would wait as well."""
    path = Path(f"{daemon.uds()}_5001")
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(os.fspath(path))
        full.listen(1)
        guest.connect(1000, 5001)
        guest.connect(1001, 5001)
        guest.send(Op.REQUEST, 1002, 5001)
        guest.expect(Op.RST)
    path.unlink()


def test_one_descriptor_per_connection(daemon: Daemon, guest: Guest, listener: socket.socket) -> None:
    guest.synchronize()
    before = daemon.descriptors()
    with contextlib.ExitStack() as stack:
        for port in range(50):
            guest.connect(1000 + port, 5000)
            stack.enter_context(accept(listener))
        assert daemon.descriptors() == before + 50
        for port in range(50):
            guest.send(Op.RST, 1000 + port, 5000)
        daemon.assert_descriptors(before)


def test_sixty_front_ends_leave_no_descriptor(daemon: Daemon) -> None:
    counts = set()
    for _ in range(60):
        with Guest(daemon.socket()) as guest:  # is served when the one before is gone
            guest.synchronize()
            counts.add(daemon.descriptors())
    assert len(counts) == 1


def test_the_parent_s_address_of_nitro(guest: Guest, listener: socket.socket) -> None:
    guest.send(Op.REQUEST, 1000, 5000, dst_cid=3)
    assert guest.expect(Op.RESPONSE).src_cid == 3
    with accept(listener) as host:
        guest.send(Op.RW, 1000, 5000, b"\xb7", dst_cid=3)
        assert host.recv(1) == b"\xb7"
        host.sendall(b"\xb7")
        header, payload = guest.receive()
        assert (header.src_cid, payload) == (3, b"\xb7")


def test_connections_end_with_the_front_end_and_the_next_one_is_served(
    daemon: Daemon, listener: socket.socket
) -> None:
    with Guest(daemon.socket()) as guest:
        guest.connect(1000, 5000)
        host = accept(listener)
    with host:
        assert ended(host)
    with Guest(daemon.socket()) as guest:
        guest.connect(1000, 5000)
        with accept(listener) as host:
            guest.send(Op.RW, 1000, 5000, b"again")
            assert host.recv(5) == b"again"


def test_a_paused_guest_keeps_its_connections(daemon: Daemon, guest: Guest, listener: socket.socket) -> None:
    """Also what was said meanwhile arrives."""
    guest.connect(1000, 5000)
    with accept(listener) as host:
        guest.pause()
        host.sendall(b"while you slept")
        guest.resume()
        assert guest.read(15) == b"while you slept"
        guest.send(Op.RW, 1000, 5000, b"awake")
        assert host.recv(5, socket.MSG_WAITALL) == b"awake"


def test_a_guest_that_was_reset_has_no_connections(
    daemon: Daemon, guest: Guest, listener: socket.socket
) -> None:
    guest.connect(1000, 5000)
    with accept(listener) as host:
        guest.pause()
        guest.frontend.reset()
        assert ended(host)


def test_without_a_guest_hosts_are_turned_away(daemon: Daemon) -> None:
    with dial(daemon.uds(OTHER), b"") as host:
        with contextlib.suppress(BrokenPipeError):
            host.sendall(b"CONNECT 7000\n")
        assert ended(host)


def test_a_slow_host_does_not_stop_the_others(guest: Guest, listener: socket.socket) -> None:
    guest.connect(1000, 5000)
    with accept(listener), contextlib.ExitStack() as stack:
        for _ in range(4):
            guest.send(Op.RW, 1000, 5000, bytes(60 * KIB))
        guest.connect(1001, 5000)
        quick = stack.enter_context(accept(listener))
        guest.send(Op.RW, 1001, 5000, b"quick")
        assert quick.recv(5) == b"quick"


def test_a_guest_without_receive_buffers_can_still_send(daemon: Daemon, listener: socket.socket) -> None:
    with Guest(daemon.socket()) as guest:
        guest.connect(1000, 5000)
        with accept(listener) as host:
            host.sendall(bytes(4096 * (RX_BUFFERS + 8)))  # more than there are buffers for
            for _ in range(10):
                guest.send(Op.RW, 1000, 5000, b"0123456789")
            assert host.recv(100, socket.MSG_WAITALL).decode() == "0123456789" * 10
            assert len(guest.read(4096 * (RX_BUFFERS + 8))) == 4096 * (RX_BUFFERS + 8)


def test_a_front_end_that_talks_nonsense_is_dropped_and_the_next_one_served(daemon: Daemon) -> None:
    with dial(daemon.socket(), b"GET / HTTP/1.1\r\n\r\n") as nonsense:
        assert ended(nonsense)
    with Guest(daemon.socket()) as guest:
        guest.send(Op.REQUEST, 1000, 5999)
        guest.expect(Op.RST)


def test_idle_costs_nothing(daemon: Daemon, guest: Guest, listener: socket.socket) -> None:
    guest.connect(1000, 5000)
    with accept(listener):
        daemon.assert_idle()


def test_a_second_daemon_does_not_take_the_sockets(daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "nitro_vsock.cli", f"--socket={daemon.socket()}"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert second.returncode == 4
    assert "in use" in second.stderr
    with FrontendSocket.connect(daemon.socket()) as frontend:
        assert frontend.read_config(0, 8) == CID.to_bytes(8, "little")


def test_a_guest_survives_the_restart_of_its_daemon(tmp_path: Path) -> None:
    """Its connections do not: they end on both sides, and the guest is told with an event."""
    with start(tmp_path) as first, Guest(first.socket()) as guest:
        with listen(Path(f"{first.uds()}_5000")) as listener:
            guest.connect(1000, 5000)
            host = accept(listener)
            first.process.send_signal(signal.SIGTERM)
            first.process.wait(PATIENCE_S)
            with host:
                assert ended(host)
        with start(tmp_path) as second:
            event = guest.reconnect(second.socket())
            assert event == bytes(4), "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
            guest.send(Op.REQUEST, 1000, 5999)
            guest.expect(Op.RST)


def test_a_daemon_that_ends_is_noticed_by_the_front_end(tmp_path: Path) -> None:
    with start(tmp_path) as running, Guest(running.socket()) as guest:
        running.process.send_signal(signal.SIGTERM)
        readable, _, _ = select.select([guest.frontend.fileno()], [], [], PATIENCE_S)
        assert readable
        running.process.wait(PATIENCE_S)
    with pytest.raises(HostError, match="no vhost-user back-end"):
        FrontendSocket.connect(running.socket())


def test_a_connected_socket_as_fd(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "nitro_vsock.cli", "--guest-cid=20", f"--fd={theirs.fileno()}"],
            pass_fds=[theirs.fileno()],
        )
    try:
        with FrontendSocket.negotiate(ours) as frontend:
            assert frontend.read_config(0, 8) == (20).to_bytes(8, "little")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_published_ports_and_proxies(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as endpoint, socket.socket() as reserved:
        endpoint.settimeout(PATIENCE_S)
        reserved.bind(("127.0.0.1", 0))
        place = reserved.getsockname()[1]
        reserved.close()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nitro_vsock.cli", f"--socket={tmp_path}/vhost", "--guest-cid=16"),
                f"--publish=tcp:127.0.0.1:{place}=80",
                f"--publish=unix:{tmp_path}/web=80",
                f"--proxy=8000=127.0.0.1:{endpoint.getsockname()[1]}",
                f"--stats={tmp_path}/stats",
            ],
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stderr
            assert b"serving" in process.stderr.readline()
            with Guest(tmp_path / "vhost") as guest:
                guest.connect(1000, 8000)
                with accept(endpoint) as remote:
                    guest.send(Op.RW, 1000, 8000, b"GET")
                    assert remote.recv(3) == b"GET"
                    remote.shutdown(socket.SHUT_WR)
                    assert guest.expect(Op.SHUTDOWN).flags == Shutdown.SEND

                for address in (("127.0.0.1", place), f"{tmp_path}/web"):
                    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
                    with socket.socket(family) as visitor:
                        patient(visitor).connect(address)
                        visitor.sendall(b"hello")
                        request = guest.accept(port=80)
                        assert guest.read(5) == b"hello"
                        guest.send(Op.RW, 80, request.src_port, b"welcome")
                        assert visitor.recv(7, socket.MSG_WAITALL) == b"welcome"
                        guest.send(Op.RST, 80, request.src_port)
                        assert ended(visitor)
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
            process.stderr.close()  # type: ignore[union-attr]
