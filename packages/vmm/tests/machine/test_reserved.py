"""Virtio slots that are reserved: a guest may run before its devices are made."""

import threading
from collections.abc import Sequence

import pytest

from nitro_vmm.address_map import virtio_slot
from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.devices.virtio_mmio import MAGIC, Register
from nitro_vmm.machine.board import Board
from nitro_vmm.machine.bus import AddressSpace
from nitro_vsock import QueueLayout

ALL_ONES = 0xFFFF_FFFF


class Device:
    """A device of a kind that there is not."""

    device_id = 63
    features = 0
    queue_sizes = (8,)

    def read_config(self, offset: int, length: int) -> bytes:  # noqa: ARG002
        return b""

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None: ...

    def kick_descriptor(self, index: int) -> int:
        return 100 + index

    def notify(self, index: int) -> None: ...

    def reset(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def state(self) -> RunningState:
        return RunningState(())

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None: ...


class Wired:
    """A board on a bus."""

    def __init__(self) -> None:
        self.bus = AddressSpace()
        self.signals: list[tuple[int, int, int]] = []
        self.board = Board(
            self.bus,
            lambda _irq: lambda _level: None,
            signal_on_write=lambda *signal: self.signals.append(signal),
            wall_clock_ns=lambda: 0,
            console=lambda _data: None,
            console_ready=lambda: None,
            power_off=lambda: None,
            reset=lambda: None,
        )

    def read(self, slot: int, register: Register) -> int:
        return self.bus.read_memory(virtio_slot(slot).address + register, 4)


@pytest.fixture
def wired() -> Wired:
    return Wired()


def test_an_access_waits_for_the_device(wired: Wired) -> None:
    wired.board.reserve_virtio("first")
    read: list[int] = []
    guest = threading.Thread(target=lambda: read.append(wired.read(0, Register.DEVICE_ID)))
    guest.start()

    assert not read
    wired.board.add_virtio("first", Device())
    guest.join()

    assert read == [Device.device_id]


def test_devices_come_in_any_order_into_the_slots_that_were_theirs(wired: Wired) -> None:
    wired.board.reserve_virtio("first")
    wired.board.reserve_virtio("second")

    wired.board.add_virtio("second", Device())
    wired.board.add_virtio("third", Device())
    wired.board.add_virtio("first", Device())

    assert wired.board.virtio_slots == [virtio_slot(index) for index in range(3)]
    assert [wired.read(index, Register.MAGIC_VALUE) for index in range(3)] == [MAGIC] * 3
    kicks = [virtio_slot(index).address + Register.QUEUE_NOTIFY for index in (1, 2, 0)]
    assert wired.signals == [(address, 0, 100) for address in kicks]


def test_nobody_waits_for_a_device_that_never_comes(wired: Wired) -> None:
    wired.board.reserve_virtio("first")
    read: list[int] = []
    guest = threading.Thread(target=lambda: read.append(wired.read(0, Register.MAGIC_VALUE)))
    guest.start()

    wired.board.give_up_reserved()
    guest.join()
    wired.bus.write_memory(virtio_slot(0).address, 4, 1)

    assert read == [ALL_ONES]
