"""Virtio slots that are reserved: a guest may run before its devices are made."""

import threading
from collections.abc import Sequence

import pytest

from nitro_vmm.address_map import virtio_slot
from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.devices.virtio_mmio_registers import CONFIGURATION, MAGIC, Register
from nitro_vmm.errors import StateError
from nitro_vmm.machine.board import Board, BoardState
from nitro_vmm.machine.bus import AddressSpace
from nitro_vsock import GuestMemory, QueueLayout

ALL_ONES = 0xFFFF_FFFF
NAMES = ("first", "second")
DRIVEN = 15
"""The status of a device whose driver runs."""


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
        return RunningState((None,))

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None: ...


class Damaged(Device):
    """One that cannot go on from any state."""

    def restore(self, *_: object) -> None:
        raise StateError("it cannot be")


class Wired:
    """A board on a bus."""

    def __init__(self) -> None:
        self.bus = AddressSpace()
        self.signals: list[tuple[int, int, int]] = []
        self.words: dict[int, memoryview] = {}
        self.board = Board(
            self.bus,
            GuestMemory([]),
            lambda _irq: lambda _level: None,
            signal_on_write=lambda *signal: self.signals.append(signal),
            share_word=self.words.__setitem__,
            wall_clock_ns=lambda: 0,
            console=lambda _data: None,
            console_ready=lambda: None,
            power_off=lambda: None,
            reset=lambda: None,
        )

    def read(self, slot: int, register: Register) -> int:
        return self.bus.read_memory(virtio_slot(slot).address + register, 4)

    def drive(self, slot: int) -> None:
        """Do what a driver does that uses no queue."""
        self.bus.write_memory(virtio_slot(slot).address + Register.DRIVER_FEATURES_SEL, 4, 1)
        self.bus.write_memory(virtio_slot(slot).address + Register.DRIVER_FEATURES, 4, 1)
        for status in (1, 3, 11, DRIVEN):
            self.bus.write_memory(virtio_slot(slot).address + Register.STATUS, 4, status)


@pytest.fixture
def saved() -> BoardState:
    """The state of a board with two devices, which the guest drives."""
    wired = Wired()
    for slot, name in enumerate(NAMES):
        wired.board.add_virtio(name, Device())
        wired.drive(slot)
    return wired.board.state()


@pytest.fixture
def restored(saved: BoardState) -> Wired:
    """A board that goes on from it, whose devices are still to come."""
    wired = Wired()
    for name in NAMES:
        wired.board.reserve_virtio(name)
    wired.board.restore(saved)
    return wired


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


def test_a_device_that_comes_late_is_as_it_was_saved(restored: Wired) -> None:
    for name in reversed(NAMES):
        restored.board.add_virtio(name, Device())
    restored.board.settle()

    assert [restored.read(slot, Register.STATUS) for slot in range(2)] == [DRIVEN] * 2
    assert all(restored.board.driver_runs(name) for name in NAMES)


def test_an_interrupt_status_may_be_read_elsewhere_once_the_device_is_as_it_was_saved(
    restored: Wired,
) -> None:
    for name in NAMES:
        restored.board.add_virtio(name, Device())
    before = dict(restored.words)

    restored.board.settle()

    assert before == {}
    assert sorted(restored.words) == [
        virtio_slot(slot).address + Register.INTERRUPT_STATUS for slot in range(2)
    ]
    assert [word[0] for word in restored.words.values()] == [0, 0]


def test_a_guest_that_is_quicker_finds_the_device_as_it_was_saved(restored: Wired) -> None:
    read: list[int] = []
    guest = threading.Thread(target=lambda: read.append(restored.read(1, Register.STATUS)))
    guest.start()

    restored.board.add_virtio("second", Device())
    guest.join()

    assert read == [DRIVEN]


def test_what_the_guest_has_done_to_a_device_is_not_undone(restored: Wired) -> None:
    for name in NAMES:
        restored.board.add_virtio(name, Device())
    restored.bus.write_memory(virtio_slot(0).address + Register.STATUS, 4, 0)

    restored.board.settle()

    assert restored.read(0, Register.STATUS) == 0


def test_a_board_is_saved_as_it_was_restored(restored: Wired, saved: BoardState) -> None:
    for name in reversed(NAMES):
        restored.board.add_virtio(name, Device())
    restored.board.settle()

    assert restored.board.state() == saved


def test_a_device_that_cannot_go_on_is_told_to_whoever_made_it_and_is_not_there_for_the_guest(
    restored: Wired,
) -> None:
    restored.board.add_virtio("first", Damaged())
    restored.board.add_virtio("second", Device())

    assert restored.read(0, Register.STATUS) == ALL_ONES
    with pytest.raises(StateError, match="it cannot be"):
        restored.board.settle()


def test_other_devices_than_those_that_were_saved_are_refused(saved: BoardState) -> None:
    wired = Wired()
    wired.board.reserve_virtio("second")

    with pytest.raises(StateError, match="first, second, and this one has second"):
        wired.board.restore(saved)


def test_whoever_waits_for_a_guest_to_look_at_a_device_waits_for_the_device(restored: Wired) -> None:
    looks: list[int] = []
    waiting = threading.Thread(target=lambda: looks.append(restored.board.configuration_reads("second")))
    waiting.start()

    for name in NAMES:
        restored.board.add_virtio(name, Device())
    restored.bus.read_memory(virtio_slot(1).address + CONFIGURATION, 4)
    waiting.join()
    restored.board.settle()
    restored.bus.read_memory(virtio_slot(1).address + CONFIGURATION, 4)

    assert looks[0] in {0, 1}
    assert restored.board.configuration_reads("second") == 2


def test_nobody_looks_at_a_device_that_never_comes(restored: Wired) -> None:
    restored.board.give_up_reserved()

    assert restored.board.configuration_reads("second") == 0
