"""vsock through a real daemon process: it serves, dies, comes back; the guest lives on."""

import gc
import mmap
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nitro_vmm.devices.vhost_user_vsock import RETRY_S, VhostUserVsockDevice
from nitro_vmm.devices.virtio import RunningState
from nitro_vmm.devices.virtio_mmio_registers import (
    CONFIGURATION,
    INTERRUPT_USED_BUFFER,
    QueueSetup,
    Register,
    Status,
)
from nitro_vmm.errors import StateError
from nitro_vsock import GuestMemory, HostError
from nitro_vsock.vhost_user import SharedRegion
from saved_states import changed
from vsock_guest import CID, RAM_BYTES, REQUEST, RESPONSE, RUNNING, RW, Guest, Packet

PORT = 9000
PATIENCE_S = 30.0
"""How long a process may take before a test gives up; nothing waits for it when all is well."""


def listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def call(action: Callable[[], None]) -> None:
    action()


class Bench:
    """A guest, its device, the daemon behind it, and a host program that listens at `PORT`."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.uds = directory / "vsock"
        self.host = stack.enter_context(listening(f"{self.uds}_{PORT}"))
        # The test listens for the daemon, so that a front-end can connect before the daemon runs.
        self.path = directory / "vhost"
        self.listener = stack.enter_context(listening(str(self.path)))
        self.daemon = self.start_daemon()
        stack.callback(self.kill_daemon)
        self.now_s = 0.0
        file = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, file)
        os.ftruncate(file, RAM_BYTES)
        self.memory = GuestMemory([(0, memoryview(mmap.mmap(file, RAM_BYTES)))])
        self.region = SharedRegion(0, RAM_BYTES, file)
        self.device = VhostUserVsockDevice(
            self.path,
            self.memory,
            [self.region],
            locked=call,
            clock=lambda: self.now_s,
            answer_timeout_s=PATIENCE_S,
        )
        stack.callback(self.device.close)
        self.guest = Guest(self.device, self.memory)

    def start_daemon(self) -> subprocess.Popen[bytes]:
        descriptor = str(self.listener.fileno())
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "nitro_vsock.cli", "--fd", descriptor, "--log-level", "error"),
                *("--guest-cid", str(CID), "--uds-path", str(self.uds)),
            ],
            pass_fds=[self.listener.fileno()],
        )

    def kill_daemon(self) -> None:
        self.daemon.kill()
        self.daemon.wait()

    def wait(self) -> None:
        """Until the device has something to do, and let it."""
        poll = select.poll()
        poll.register(self.device.fileno(), select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000), "nothing happens"
        self.device.turn()

    def receive(self) -> list[Packet]:
        while not (packets := self.guest.received()):
            self.wait()
        return packets

    def connect(self, src_port: int) -> socket.socket:
        self.guest.send(REQUEST, PORT, src_port=src_port)
        assert [packet.op for packet in self.receive()] == [RESPONSE]
        return self.host.accept()[0]

    def reconnect(self) -> None:
        delay_s = self.device.turn()
        while delay_s is not None:
            assert delay_s <= RETRY_S
            self.now_s += delay_s
            delay_s = self.device.turn()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def test_data_flows_through_the_daemon_and_the_device_can_be_reset(bench: Bench) -> None:
    assert bench.guest.transport.read(CONFIGURATION, 8) == CID
    for src_port in (1024, 1025):
        bench.guest.start()
        with bench.connect(src_port) as connection:
            while not (interrupts := bench.guest.acknowledge()):
                bench.wait()
            assert interrupts == INTERRUPT_USED_BUFFER
            bench.guest.send(RW, PORT, b"ping", src_port=src_port)
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            assert [packet.payload for packet in bench.receive() if packet.op == RW] == [b"pong"]
            bench.guest.put(Register.STATUS, 0)
            assert connection.recv(1) == b""


def descriptors() -> set[int]:
    return {number for number in range(256) if Path(f"/proc/self/fd/{number}").is_symlink()}


def test_no_descriptor_goes_to_programs_that_are_started(tmp_path: Path) -> None:
    before = descriptors()
    with ExitStack() as stack:
        Bench(tmp_path, stack).guest.start()

        ours = descriptors() - before
        assert len(ours) > 6
        assert [number for number in ours if os.get_inheritable(number)] == []


def test_a_guest_survives_its_daemon(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    with bench.connect(1024):
        bench.kill_daemon()
        bench.wait()
        assert guest.events.used() == [bytes(4)], "TRANSPORT_RESET"
        assert guest.get(Register.STATUS) == RUNNING

        guest.send(REQUEST, PORT, src_port=1025)  # waits in the ring for the next daemon
        bench.daemon = bench.start_daemon()
        bench.reconnect()
        assert [packet.op for packet in bench.receive()] == [RESPONSE]
        with bench.host.accept()[0], bench.connect(1026):
            pass


def test_a_guest_without_event_buffers_hears_of_it_later(bench: Bench) -> None:
    guest = bench.guest
    guest.start(queues=(0, 1))
    bench.kill_daemon()
    bench.wait()
    assert guest.get(Register.STATUS) == RUNNING

    guest.start()  # while nobody is there
    assert guest.get(Register.STATUS) == RUNNING
    bench.daemon = bench.start_daemon()
    bench.reconnect()
    bench.connect(1024).close()


def test_an_unusable_queue_needs_a_reset(bench: Bench) -> None:
    bench.guest.start(queues=(1, 2))

    assert bench.guest.get(Register.STATUS) == RUNNING | Status.DEVICE_NEEDS_RESET


def test_a_pause_leaves_the_guests_memory_alone_and_keeps_connections(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    with bench.connect(1024) as connection:
        guest.transport.pause()
        assert guest.transport.state() == guest.transport.state()
        before = bytes(guest.memory.slice(0, RAM_BYTES))
        connection.sendall(b"meanwhile")
        assert bench.device.turn() is None
        assert guest.memory.slice(0, RAM_BYTES) == before

        guest.transport.resume()

        assert [packet.payload for packet in bench.receive() if packet.op == RW] == [b"meanwhile"]


def test_a_daemon_that_dies_in_a_pause_is_missed_after_it(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.transport.pause()
    bench.kill_daemon()
    assert bench.device.turn() is None
    assert guest.events.used() == []

    guest.transport.resume()
    bench.wait()

    assert guest.events.used() == [bytes(4)], "TRANSPORT_RESET"


def test_a_pause_without_a_daemon_or_a_driver_changes_nothing(bench: Bench) -> None:
    guest = bench.guest
    guest.transport.pause()
    guest.transport.resume()
    bench.kill_daemon()
    bench.wait()
    guest.start()
    guest.transport.pause()
    guest.transport.resume()
    assert guest.get(Register.STATUS) == RUNNING

    bench.daemon = bench.start_daemon()
    bench.reconnect()

    bench.connect(1024).close()


def test_a_restored_guest_hears_that_its_connections_are_gone_and_goes_on(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    with bench.connect(1024) as connection:
        guest.transport.pause()
        state = guest.transport.state()
        guest.transport.resume()

        guest.transport.restore(state)

        assert guest.events.used() == [bytes(4)], "TRANSPORT_RESET"
        assert connection.recv(1) == b""
        bench.connect(1025).close()

    guest.transport.pause()
    state = guest.transport.state()
    guest.transport.resume()
    guest.transport.restore(state)
    assert guest.events.used() == [bytes(4)], "the next buffer"


def test_a_state_without_a_queue_that_must_be_there_is_refused(bench: Bench) -> None:
    bench.guest.start()
    state = bench.guest.transport.state()
    assert state.running is not None
    _, *queues = state.queues
    _, *served = state.running.queues
    unused = QueueSetup(1, False, 0, 0, 0)
    damaged = changed(state, queues=(unused, *queues), running=RunningState((None, *served)))

    with pytest.raises(StateError, match="without receive and transmit queue"):
        bench.guest.transport.restore(damaged)

    assert bench.guest.get(Register.STATUS) == 0


def test_a_guest_that_breaks_its_event_queue_harms_only_itself(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.events.set_available_index(1000)

    bench.kill_daemon()
    bench.wait()

    assert guest.get(Register.STATUS) == RUNNING | Status.DEVICE_NEEDS_RESET
    guest.start()
    assert guest.get(Register.STATUS) == RUNNING


def test_nobody_at_the_path(tmp_path: Path) -> None:
    gc.collect()  # what other tests left to it
    before = set(Path("/proc/self/fd").iterdir())
    memory = GuestMemory([(0, memoryview(bytearray(4096)))])

    with pytest.raises(HostError, match=str(tmp_path)):
        VhostUserVsockDevice(tmp_path / "none", memory, [], locked=call, clock=float)

    assert set(Path("/proc/self/fd").iterdir()) == before
