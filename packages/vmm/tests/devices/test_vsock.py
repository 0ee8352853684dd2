"""vsock through its virtio registers, with the engine in the process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nitro_vmm.devices.virtio import RunningState
from nitro_vmm.devices.virtio_mmio_registers import (
    CONFIGURATION,
    INTERRUPT_CONFIGURATION,
    INTERRUPT_USED_BUFFER,
    QueueSetup,
    Register,
    Status,
)
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.errors import StateError
from nitro_vsock import GuestMemory, VsockConfig, VsockEngine
from nitro_vsock.testing import guest_ram
from saved_states import changed
from vsock_guest import CID, RAM_BYTES, REQUEST, RESPONSE, RST, RUNNING, RW, Guest

if TYPE_CHECKING:
    import socket

PORT = 9000


class Bench:
    """A guest, and a host program at `PORT`."""

    def __init__(self, memory: GuestMemory, *, fresh: bool = False) -> None:
        self.locked = 0
        self.accepted: list[socket.socket] = []
        engine = VsockEngine(VsockConfig(guest_cid=CID), services={PORT: self.accepted.append})
        self.device = VsockDevice(engine, memory, locked=self._locked, fresh=fresh)
        self.guest = Guest(self.device, memory)

    def _locked(self, action: Callable[[], None]) -> None:
        self.locked += 1
        action()

    def turn(self) -> None:
        while self.device.turn() == 0:
            pass

    def close(self) -> None:
        self.device.close()
        for connection in self.accepted:
            connection.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(guest_ram(RAM_BYTES))
    yield bench
    bench.close()


def test_the_configuration_space_is_the_cid(bench: Bench) -> None:
    assert bench.guest.get(Register.DEVICE_ID) == 19
    assert bench.guest.transport.read(CONFIGURATION, 4) == CID
    assert bench.guest.transport.read(CONFIGURATION, 8) == CID


def test_a_guest_talks_to_a_service_of_the_host(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.send(REQUEST, PORT)
    bench.turn()

    assert [packet.op for packet in guest.received()] == [RESPONSE]
    assert guest.acknowledge() == INTERRUPT_USED_BUFFER
    assert bench.locked

    guest.send(RW, PORT, b"\xb7")
    bench.turn()
    assert bench.accepted[0].recv(16) == b"\xb7"
    bench.accepted[0].sendall(b"\xb7")
    bench.turn()
    packet = guest.received()[-1]
    assert (packet.op, packet.src_cid, packet.src_port, packet.payload) == (RW, 3, PORT, b"\xb7")
    assert guest.acknowledge() == INTERRUPT_USED_BUFFER


def test_a_port_of_nobody_is_refused(bench: Bench) -> None:
    bench.guest.start()
    bench.guest.send(REQUEST, PORT + 1)
    bench.turn()

    assert [packet.op for packet in bench.guest.received()] == [RST]


def test_a_reset_ends_connections_and_a_new_driver_can_start(bench: Bench) -> None:
    guest = bench.guest
    for attempt in range(2):
        guest.start()
        guest.send(REQUEST, PORT)
        bench.turn()
        assert [packet.op for packet in guest.received()] == [RESPONSE]
        guest.put(Register.STATUS, 0)
        bench.turn()
        assert bench.accepted[attempt].recv(16) == b""


def test_a_driver_may_do_without_the_event_queue_but_not_without_the_others(bench: Bench) -> None:
    bench.guest.start(queues=(0, 1))
    assert bench.guest.get(Register.STATUS) == RUNNING

    bench.guest.start(queues=(0, 2))
    assert bench.guest.get(Register.STATUS) == RUNNING | Status.DEVICE_NEEDS_RESET


def test_a_ring_that_the_guest_breaks_needs_a_reset(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.transmit.set_available_index(1000)
    guest.put(Register.QUEUE_NOTIFY, 1)
    bench.turn()

    assert guest.get(Register.STATUS) == RUNNING | Status.DEVICE_NEEDS_RESET
    assert guest.acknowledge() == INTERRUPT_CONFIGURATION
    guest.start()
    assert guest.get(Register.STATUS) == RUNNING


def test_a_pause_keeps_connections_and_leaves_the_guests_memory_alone(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.send(REQUEST, PORT)
    bench.turn()
    guest.received()

    guest.transport.pause()
    bench.accepted[0].sendall(b"meanwhile")
    before = bytes(guest.memory.slice(0, RAM_BYTES))
    bench.turn()

    assert guest.memory.slice(0, RAM_BYTES) == before
    guest.transport.resume()
    bench.turn()
    assert [packet.payload for packet in guest.received()] == [b"meanwhile"]


def test_a_pause_without_a_driver_changes_nothing(bench: Bench) -> None:
    bench.guest.transport.pause()
    bench.turn()
    bench.guest.transport.resume()

    test_a_guest_talks_to_a_service_of_the_host(bench)


def test_a_restored_guest_hears_that_its_connections_are_gone_and_goes_on(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.send(REQUEST, PORT)
    bench.turn()
    guest.received()
    guest.transport.pause()
    state = guest.transport.state()
    other = Bench(guest.memory)
    try:
        other.guest.transport.restore(state)
        guest.transport = other.guest.transport
        other.turn()

        assert guest.events.used() == [bytes(4)], "TRANSPORT_RESET"
        guest.send(REQUEST, PORT, src_port=1025)
        other.turn()
        assert [(packet.op, packet.src_port) for packet in guest.received()] == [(RESPONSE, PORT)]
        assert len(other.accepted) == 1
    finally:
        other.close()


def test_a_restored_guest_that_has_no_connections_hears_nothing_and_goes_on(bench: Bench) -> None:
    guest = bench.guest
    guest.start()
    guest.transport.pause()
    state = guest.transport.state()
    other = Bench(guest.memory, fresh=True)
    try:
        other.guest.transport.restore(state)
        guest.transport = other.guest.transport
        guest.send(REQUEST, PORT)
        other.turn()

        assert guest.events.used() == []
        assert [packet.op for packet in guest.received()] == [RESPONSE]
        assert len(other.accepted) == 1
    finally:
        other.close()


def test_a_state_without_a_queue_that_must_be_there_is_refused(bench: Bench) -> None:
    bench.guest.start()
    state = bench.guest.transport.state()
    assert state.running is not None
    _, *queues = state.queues
    _, *served = state.running.queues
    damaged = changed(
        state,
        queues=(QueueSetup(1, False, 0, 0, 0), *queues),
        running=RunningState((None, *served)),
    )

    with pytest.raises(StateError, match="without receive and transmit queue"):
        bench.guest.transport.restore(damaged)

    assert bench.guest.get(Register.STATUS) == 0


def test_nothing_stays_open() -> None:
    before = set(Path("/proc/self/fd").iterdir())

    Bench(guest_ram(RAM_BYTES)).close()

    assert set(Path("/proc/self/fd").iterdir()) == before
