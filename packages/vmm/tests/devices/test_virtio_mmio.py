"""The virtio-mmio registers, driven as Linux does it, out of order, and at random."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.devices.virtio_mmio import COMPLAINTS_MAX, VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import (
    CONFIGURATION,
    INTERRUPT_CONFIGURATION,
    INTERRUPT_USED_BUFFER,
    LADDER,
    QueueSetup,
    Register,
    Status,
)
from nitro_vmm.errors import StateError
from nitro_vsock import F_VERSION_1, QueueError, QueueLayout, SplitQueueState
from saved_states import changed

F_ONE = 1 << 0
F_EVENT_IDX = 1 << 29
FEATURES_READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
RUNNING = FEATURES_READY | Status.DRIVER_OK


class FakeDevice:
    """Remembers what it is told; refuses queues when asked to."""

    device_id = 19
    features = F_ONE | F_EVENT_IDX
    queue_sizes = (256, 128)

    def __init__(self) -> None:
        self.active: tuple[int, list[QueueLayout | None]] | None = None
        self.notified: list[int] = []
        self.broken = False
        self.paused = False
        self.restored: RunningState | None = None
        self.driver: Driver | None = None

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(range(1, 13))[offset : offset + length]

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:
        if self.broken:
            raise QueueError("it is nowhere", queue="queue 0")
        self.active = (features, list(queues))
        self.driver = driver

    def kick_descriptor(self, index: int) -> None:
        pass

    def notify(self, index: int) -> None:
        if self.broken:
            raise QueueError("it is broken", queue=f"queue {index}")
        self.notified.append(index)

    def reset(self) -> None:
        self.active = None

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def state(self) -> RunningState:
        return RunningState((SplitQueueState(5, 4, 3), None))

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None:
        self.activate(features, queues, driver)
        self.restored = state


class Bench:
    """The driver's side."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.levels: list[bool] = []
        self.transport = VirtioMmio(self.device, self.levels.append, name="fake")

    def get(self, register: int) -> int:
        value = self.transport.read(register, 4)
        if register == Register.INTERRUPT_STATUS:
            assert self.transport.interrupt_word[0] == value, "an accelerator may read it there"
        return value

    def put(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def climb(self, *statuses: Status) -> None:
        for status in statuses:
            self.put(Register.STATUS, self.get(Register.STATUS) | status)

    def choose(self, features: int) -> None:
        for word in range(2):
            self.put(Register.DRIVER_FEATURES_SEL, word)
            self.put(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)

    def set_up(self, index: int, layout: QueueLayout) -> None:
        self.put(Register.QUEUE_SEL, index)
        self.put(Register.QUEUE_SIZE, layout.size)
        areas = (
            (Register.QUEUE_DESC_LOW, layout.descriptor_table),
            (Register.QUEUE_DRIVER_LOW, layout.available_ring),
            (Register.QUEUE_DEVICE_LOW, layout.used_ring),
        )
        for register, address in areas:
            self.put(register, address & 0xFFFF_FFFF)
            self.put(register + 4, address >> 32)
        self.put(Register.QUEUE_READY, 1)

    def interrupt(self) -> None:
        assert self.device.driver is not None
        self.device.driver.raise_interrupt()

    def status(self) -> Status:
        return Status(self.get(Register.STATUS))


LAYOUT = QueueLayout(64, 0x1_2345_6000, 0x2_0000_1000, 0x3_0000_2000)


def negotiated() -> Bench:
    bench = Bench()
    bench.climb(Status.ACKNOWLEDGE, Status.DRIVER)
    bench.choose(F_VERSION_1 | F_EVENT_IDX)
    bench.climb(Status.FEATURES_OK)
    return bench


def running() -> Bench:
    bench = negotiated()
    bench.set_up(0, LAYOUT)
    bench.climb(Status.DRIVER_OK)
    return bench


def test_it_introduces_itself() -> None:
    bench = Bench()

    assert bench.get(Register.MAGIC_VALUE).to_bytes(4, "little") == b"virt"
    assert bench.get(Register.VERSION) == 2
    assert bench.get(Register.DEVICE_ID) == 19
    assert bench.get(Register.STATUS) == 0


def test_features_come_in_words_and_version_1_is_among_them() -> None:
    bench = Bench()
    words = []
    for word in (0, 1, 2, 3, 4, 0xFFFF_FFFF):
        bench.put(Register.DEVICE_FEATURES_SEL, word)
        words.append(bench.get(Register.DEVICE_FEATURES))

    assert words == [F_ONE | F_EVENT_IDX, 1, 0, 0, 0, 0]


def test_a_driver_that_does_it_right_starts_the_device() -> None:
    bench = running()

    assert bench.status() == RUNNING
    assert bench.device.active == (F_VERSION_1 | F_EVENT_IDX, [LAYOUT, None])
    assert bench.get(Register.QUEUE_READY) == 1


@pytest.mark.parametrize("features", [0, F_EVENT_IDX, F_VERSION_1 | 2, F_VERSION_1 | 1 << 33])
def test_features_that_were_not_offered_or_lack_version_1_are_refused(features: int) -> None:
    bench = Bench()
    bench.climb(Status.ACKNOWLEDGE, Status.DRIVER)
    bench.choose(features)
    bench.climb(Status.FEATURES_OK)

    assert bench.status() == Status.ACKNOWLEDGE | Status.DRIVER
    bench.choose(F_VERSION_1)
    bench.climb(Status.FEATURES_OK)
    assert bench.status() == FEATURES_READY


def test_features_cannot_change_after_the_agreement() -> None:
    bench = negotiated()
    bench.choose(F_VERSION_1 | F_ONE)
    bench.climb(Status.DRIVER_OK)

    assert bench.device.active == (F_VERSION_1 | F_EVENT_IDX, [None, None])


def test_rungs_cannot_be_skipped_nor_descended() -> None:
    bench = Bench()
    bench.put(Register.STATUS, Status.DRIVER)
    assert bench.status() == 0
    bench.put(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER_OK)
    assert bench.status() == Status.ACKNOWLEDGE
    bench.climb(Status.DRIVER)
    bench.put(Register.STATUS, Status.ACKNOWLEDGE)
    assert bench.status() == Status.ACKNOWLEDGE | Status.DRIVER


def test_writing_zero_resets() -> None:
    bench = running()
    bench.transport.raise_interrupt()

    bench.put(Register.STATUS, 0)

    assert bench.device.active is None
    assert bench.status() == 0
    assert bench.levels == [True, False]
    bench.put(Register.QUEUE_SEL, 0)
    assert bench.get(Register.QUEUE_READY) == 0
    bench.climb(Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK)
    assert bench.status() == Status.ACKNOWLEDGE | Status.DRIVER


def test_a_driver_may_give_up() -> None:
    bench = negotiated()

    bench.climb(Status.FAILED)
    bench.set_up(0, LAYOUT)

    assert bench.status() == FEATURES_READY | Status.FAILED
    assert bench.get(Register.QUEUE_READY) == 0


def test_queues_say_their_greatest_size_and_others_do_not_exist() -> None:
    bench = Bench()
    sizes = []
    for index in (0, 1, 2, 0xFFFF_FFFF):
        bench.put(Register.QUEUE_SEL, index)
        sizes.append(bench.get(Register.QUEUE_SIZE_MAX))
        bench.put(Register.QUEUE_READY, 1)

    assert sizes == [256, 128, 0, 0]
    assert bench.get(Register.QUEUE_READY) == 0


@pytest.mark.parametrize("size", [0, 3, 512, 0xFFFF_FFFF])
def test_an_impossible_queue_size_is_ignored(size: int) -> None:
    bench = negotiated()
    bench.set_up(0, QueueLayout(size, 0, 0, 0))
    bench.climb(Status.DRIVER_OK)

    assert bench.device.active is not None
    assert bench.device.active[1] == [QueueLayout(256, 0, 0, 0), None]


def test_a_ready_queue_is_fixed_until_it_is_taken_back() -> None:
    bench = negotiated()
    bench.set_up(0, LAYOUT)
    bench.put(Register.QUEUE_SIZE, 32)
    bench.put(Register.QUEUE_DESC_LOW, 0)
    bench.put(Register.QUEUE_READY, 0)
    bench.put(Register.QUEUE_SIZE, 128)
    bench.put(Register.QUEUE_READY, 1)
    bench.climb(Status.DRIVER_OK)
    bench.put(Register.QUEUE_READY, 0)

    assert bench.device.active is not None
    assert bench.device.active[1][0] == QueueLayout(128, 0x1_2345_6000, 0x2_0000_1000, 0x3_0000_2000)
    assert bench.get(Register.QUEUE_READY) == 1


def test_queues_are_not_set_up_before_the_features() -> None:
    bench = Bench()
    bench.climb(Status.ACKNOWLEDGE, Status.DRIVER)

    bench.set_up(0, LAYOUT)

    assert bench.get(Register.QUEUE_READY) == 0


def test_kicks_reach_the_device_only_for_queues_that_run() -> None:
    bench = negotiated()
    bench.put(Register.QUEUE_NOTIFY, 0)
    bench.set_up(0, LAYOUT)
    bench.climb(Status.DRIVER_OK)

    for index in (0, 1, 2, 0xFFFF_FFFF):
        bench.put(Register.QUEUE_NOTIFY, index)

    assert bench.device.notified == [0]


def test_the_line_is_up_until_the_interrupt_is_acknowledged() -> None:
    bench = running()

    bench.interrupt()
    bench.interrupt()
    assert bench.levels == [True]
    assert bench.get(Register.INTERRUPT_STATUS) == INTERRUPT_USED_BUFFER

    bench.put(Register.INTERRUPT_ACK, INTERRUPT_CONFIGURATION)
    assert bench.levels == [True]
    bench.put(Register.INTERRUPT_ACK, INTERRUPT_USED_BUFFER)
    assert bench.levels == [True, False]


def test_an_interrupt_after_the_reset_is_dropped() -> None:
    bench = running()
    bench.put(Register.STATUS, 0)

    bench.interrupt()

    assert bench.levels == []
    assert bench.get(Register.INTERRUPT_STATUS) == 0


@pytest.mark.parametrize("moment", ["activate", "notify"])
def test_an_unusable_queue_costs_the_device_until_the_next_reset(moment: str) -> None:
    bench = negotiated() if moment == "activate" else running()
    bench.device.broken = True
    if moment == "activate":
        bench.climb(Status.DRIVER_OK)
    else:
        bench.put(Register.QUEUE_NOTIFY, 0)

    assert bench.status() == RUNNING | Status.DEVICE_NEEDS_RESET
    assert bench.get(Register.INTERRUPT_STATUS) == INTERRUPT_CONFIGURATION
    assert bench.levels == [True]
    assert bench.device.active is None

    bench.device.broken = False
    bench.put(Register.QUEUE_NOTIFY, 0)
    bench.climb(Status.DRIVER_OK)
    assert bench.device.active is None
    bench.put(Register.STATUS, 0)
    assert bench.status() == 0
    assert bench.levels == [True, False]


def test_the_configuration_is_read_in_natural_sizes_and_ends_in_zeros() -> None:
    transport = Bench().transport

    assert transport.read(CONFIGURATION, 1) == 0x01
    assert transport.read(CONFIGURATION + 2, 2) == 0x0403
    assert transport.read(CONFIGURATION + 4, 4) == 0x08070605
    assert transport.read(CONFIGURATION, 8) == 0x0807060504030201
    assert transport.read(CONFIGURATION + 8, 8) == 0x0C0B0A09
    assert transport.read(CONFIGURATION + 12, 4) == 0
    assert transport.read(CONFIGURATION, 3) == 0


def test_there_is_no_shared_memory_and_no_queue_reset() -> None:
    bench = Bench()
    bench.put(Register.SHM_SEL, 0)

    assert [bench.get(register) for register in range(0xB0, 0xC0, 4)] == [0xFFFF_FFFF] * 4
    assert bench.get(Register.QUEUE_RESET) == 0
    assert bench.get(Register.CONFIG_GENERATION) == 0


def test_registers_are_accessed_whole() -> None:
    bench = Bench()
    bench.transport.write(Register.STATUS, 1, Status.ACKNOWLEDGE)

    assert bench.status() == 0
    assert bench.transport.read(Register.MAGIC_VALUE, 1) == 0


def test_complaints_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            bench.put(Register.MAGIC_VALUE, 0)

    assert len(caplog.records) == COMPLAINTS_MAX
    assert "virtio fake: a write at 0x0" in caplog.text


def test_a_driver_in_order_gives_no_cause_to_complain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bench = running()
        bench.put(Register.QUEUE_NOTIFY, 0)
        bench.put(Register.STATUS, 0)
        bench.put(Register.QUEUE_SEL, 0)
        bench.put(Register.QUEUE_READY, 0)

    assert caplog.records == []


registers = st.sampled_from(list(Register)) | st.integers(0, 0x1FF)
values = st.integers(0, 2**64 - 1) | st.integers(0, 255)
accesses = st.lists(st.tuples(registers, st.sampled_from([1, 2, 4, 8, 4]), values), max_size=60)


@given(accesses, st.booleans())
def test_no_sequence_of_accesses_raises(sequence: list[tuple[int, int, int]], broken: bool) -> None:  # noqa: FBT001
    bench = Bench()
    bench.device.broken = broken
    for offset, size, value in sequence:
        bench.transport.write(offset, size, value)
        assert 0 <= bench.transport.read(offset, size) < 1 << 8 * size


def test_a_saved_driver_finds_everything_as_it_was() -> None:
    bench = running()
    bench.interrupt()
    bench.put(Register.QUEUE_SEL, 1)
    bench.transport.pause()
    state = bench.transport.state()
    other = Bench()

    other.transport.restore(state)

    assert bench.device.paused
    assert other.device.active == (F_VERSION_1 | F_EVENT_IDX, [LAYOUT, None])
    assert other.device.restored == RunningState((SplitQueueState(5, 4, 3), None))
    assert other.levels == [True]
    assert other.status() == bench.status()
    assert other.get(Register.QUEUE_SIZE_MAX) == 128
    other.interrupt()
    other.put(Register.INTERRUPT_ACK, INTERRUPT_USED_BUFFER)
    assert other.levels == [True, False]


def test_a_driver_in_the_middle_of_its_set_up_is_saved_as_well() -> None:
    bench = negotiated()
    bench.set_up(0, LAYOUT)
    state = bench.transport.state()
    other = Bench()

    other.transport.restore(state)
    other.climb(Status.DRIVER_OK)

    assert state.running is None
    assert other.levels == [False]
    assert other.device.active == (F_VERSION_1 | F_EVENT_IDX, [LAYOUT, None])


READY = QueueSetup(64, True, 0x1000, 0x2000, 0x3000)
UNUSED = QueueSetup(128, False, 0, 0, 0)
QUEUE = SplitQueueState(0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"queues": (READY, UNUSED, UNUSED), "running": RunningState((QUEUE, None, None))}, "3 queues"),
        ({"queues": (changed(READY, size=512), UNUSED)}, "size 512, at most 256"),
        ({"driver_features": F_EVENT_IDX}, "legacy driver"),
        ({"driver_features": F_VERSION_1 | 1 << 40}, "lacks: 0x10000000000"),
    ],
)
def test_a_state_of_another_device_is_refused(changes: dict[str, Any], why: str) -> None:
    state = changed(running().transport.state(), **changes)
    bench = Bench()

    with pytest.raises(StateError, match=why):
        bench.transport.restore(state)

    assert bench.transport.state() == Bench().transport.state()


def test_a_device_whose_saved_queues_are_nowhere_is_as_after_a_reset() -> None:
    state = running().transport.state()
    bench = Bench()
    bench.device.broken = True

    with pytest.raises(StateError, match=r"fake cannot go on: .*it is nowhere"):
        bench.transport.restore(changed(state, interrupt_status=INTERRUPT_USED_BUFFER))

    assert bench.transport.state() == Bench().transport.state()
    assert bench.device.active is None
    assert bench.levels == [False]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"status": 0x100}, "status"),
        ({"status": int(Status.DRIVER_OK)}, "status"),
        ({"status": 0x10}, "status"),
        ({"status": "0"}, "status"),
        ({"queue_index": 1 << 32}, "queue_index"),
        ({"driver_features": 1 << 128}, "driver_features"),
        ({"interrupt_status": 4}, "interrupt_status"),
        ({"queues": (READY, None)}, "queues"),
        ({"queues": [READY, UNUSED]}, "queues"),
        ({"queues": (READY, READY)}, "running"),
        ({"running": None}, "running"),
        ({"running": 7}, "running"),
        ({"status": 0xF | 0x40}, "running"),
        ({"status": 0xB}, "running"),
    ],
)
def test_a_damaged_state_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    state = running().transport.state()

    with pytest.raises(StateError, match=rf"VirtioMmioState\.{name} is "):
        changed(state, **changes)


@pytest.mark.parametrize(
    ("name", "greatest"),
    [
        ("device_features_word", 0xFFFF_FFFF),
        ("driver_features_word", 0xFFFF_FFFF),
        ("driver_features", (1 << 128) - 1),
        ("queue_index", 0xFFFF_FFFF),
        ("interrupt_status", 3),
    ],
)
def test_numbers_have_the_width_of_their_registers(name: str, greatest: int) -> None:
    state: Any = negotiated().transport.state()

    assert getattr(changed(state, **{name: greatest}), name) == greatest
    with pytest.raises(StateError, match=name):
        changed(state, **{name: greatest + 1})


def test_queues_are_as_large_as_the_specification_allows() -> None:
    greatest = changed(
        READY, size=32768, descriptor_table=2**64 - 1, available_ring=2**64 - 1, used_ring=2**64 - 1
    )
    assert greatest.size == 32768
    RunningState((QUEUE,) * 64, ((0xFFFF, bytes(1 << 16)),) * 64)
    RunningState((SplitQueueState(0xFFFF, 0xFFFF, 0xFFFF, "x" * 1000),))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"size": 0}, "size"),
        ({"size": 96}, "size"),
        ({"size": 1 << 16}, "size"),
        ({"ready": 1}, "ready"),
        ({"descriptor_table": 1 << 64}, "descriptor_table"),
        ({"available_ring": -1}, "available_ring"),
        ({"used_ring": None}, "used_ring"),
    ],
)
def test_a_damaged_queue_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(StateError, match=rf"QueueSetup\.{name} is "):
        changed(READY, **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"queues": (7,)}, "queues"),
        ({"queues": [QUEUE]}, "queues"),
        ({"queues": (QUEUE,) * 65}, "queues"),
        ({"queues": (SplitQueueState(True, 0, 0),)}, "queues"),
        ({"queues": (SplitQueueState(0, 0, 0, "x" * 1001),)}, "queues"),
        ({"taken": ((0, b""),) * 65}, "taken"),
        ({"taken": ((1 << 16, b""),)}, "taken"),
        ({"taken": ((0, "text"),)}, "taken"),
        ({"taken": ((0, bytes(1 << 16 | 1)),)}, "taken"),
        ({"taken": ((0,),)}, "taken"),
        ({"taken": ([0, b""],)}, "taken"),
    ],
)
def test_a_damaged_running_device_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(StateError, match=rf"RunningState\.{name} is "):
        changed(RunningState((QUEUE,)), **changes)


class Ladder(RuleBasedStateMachine):
    """A driver that writes any status in any order, against the rules of virtio 1.3 §3.1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.reached = 0
        self.failed = False
        self.features = 0
        self.agreed = 0

    @rule(
        bits=st.sets(st.sampled_from([*LADDER, Status.FAILED])),
        keep=st.sampled_from([True, True, True, False]),
    )
    def write_status(self, *, bits: set[Status], keep: bool) -> None:
        value = sum(bits) | (self.bench.status() if keep else 0)
        self.bench.put(Register.STATUS, value)
        if not value:
            self.reached, self.failed, self.features, self.agreed = 0, False, 0, 0
            return
        held = set(LADDER[: self.reached]) | ({Status.FAILED} if self.failed else set())
        if any(not value & bit for bit in held):
            return
        self.failed |= bool(value & Status.FAILED)
        while self.reached < len(LADDER) and value & LADDER[self.reached]:
            if LADDER[self.reached] is Status.FEATURES_OK:
                if not self.features & F_VERSION_1 or self.features & ~(F_VERSION_1 | FakeDevice.features):
                    break
                self.agreed = self.features
            self.reached += 1

    @rule(features=st.sampled_from([0, F_VERSION_1, F_VERSION_1 | F_ONE, F_ONE, F_VERSION_1 | 1 << 40]))
    def choose(self, features: int) -> None:
        self.bench.choose(features)
        if self.reached < 3:
            self.features = features

    @rule()
    def interrupt(self) -> None:
        if self.bench.device.driver is not None:
            self.bench.interrupt()

    @invariant()
    def agrees(self) -> None:
        assert self.bench.get(Register.INTERRUPT_STATUS) in {0, INTERRUPT_USED_BUFFER}
        expected = sum(LADDER[: self.reached]) | (Status.FAILED if self.failed else 0)
        assert self.bench.status() == expected
        active = self.bench.device.active
        assert (active is not None) == (self.reached == len(LADDER))
        assert active is None or active[0] == self.agreed


TestLadder = Ladder.TestCase
