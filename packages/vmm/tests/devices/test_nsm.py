"""The NSM through its virtio registers and a queue in guest memory, as Linux's driver uses it."""

import struct
from collections.abc import Mapping

import cbor2
import pytest

from nitro_nsm import RESPONSE_BYTES_MAX, Nsm, NsmConfig
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.virtio import RunningState
from nitro_vmm.devices.virtio_mmio import VirtioMmio
from nitro_vmm.devices.virtio_mmio_registers import (
    INTERRUPT_CONFIGURATION,
    INTERRUPT_USED_BUFFER,
    Register,
    Status,
    VirtioMmioState,
)
from nitro_vmm.errors import StateError
from nitro_vsock import F_VERSION_1, GuestMemory, SplitQueueState
from saved_states import changed

DESCRIPTORS, AVAILABLE, USED, REQUEST, REPLY = 0x0, 0x100, 0x200, 0x1000, 0x4000
WRITABLE = 2


class Bench:
    """A driver with two descriptors: the request and the room for its reply."""

    def __init__(self, nsm: Nsm | None = None) -> None:
        self.ram = bytearray(0x10000)
        self.nsm = nsm or Nsm(NsmConfig(pcrs={0: b"\x11" * 48}))
        device = NsmDevice(self.nsm, GuestMemory([(0, memoryview(self.ram))]))
        self.levels: list[bool] = []
        self.transport = VirtioMmio(device, self.levels.append, name="nsm")
        self.offered = 0

    def put(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def get(self, register: int) -> int:
        return self.transport.read(register, 4)

    def start(self, *, queue: bool = True, descriptors: int = DESCRIPTORS) -> None:
        status = 0
        for step in (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK):
            self.put(Register.DRIVER_FEATURES_SEL, 1)
            self.put(Register.DRIVER_FEATURES, F_VERSION_1 >> 32)
            status |= step
            self.put(Register.STATUS, status)
        if queue:
            self.put(Register.QUEUE_DESC_LOW, descriptors)
            self.put(Register.QUEUE_DRIVER_LOW, AVAILABLE)
            self.put(Register.QUEUE_DEVICE_LOW, USED)
            self.put(Register.QUEUE_READY, 1)
        self.put(Register.STATUS, status | Status.DRIVER_OK)

    def offer(self, request: bytes, *, address: int = REQUEST, room: int = RESPONSE_BYTES_MAX) -> None:
        self.ram[REQUEST : REQUEST + len(request)] = request
        struct.pack_into("<QIHH", self.ram, DESCRIPTORS, address, len(request), 0, 0)
        struct.pack_into("<QIHH", self.ram, DESCRIPTORS + 16, REPLY, room, WRITABLE, 0)
        struct.pack_into("<HH", self.ram, AVAILABLE + 4, 0, 1)
        self.make_available(self.offered + 2)

    def make_available(self, count: int) -> None:
        self.offered = count
        struct.pack_into("<H", self.ram, AVAILABLE + 2, count)

    def used(self) -> list[tuple[int, int]]:
        (index,) = struct.unpack_from("<H", self.ram, USED + 2)
        slots = range(max(index - 2, 0), index)
        return [struct.unpack_from("<II", self.ram, USED + 4 + 8 * (slot % 2)) for slot in slots]

    def ask(self, request: object) -> object:
        self.offer(cbor2.dumps(request))
        self.put(Register.QUEUE_NOTIFY, 0)
        assert self.get(Register.INTERRUPT_STATUS) == INTERRUPT_USED_BUFFER
        self.put(Register.INTERRUPT_ACK, INTERRUPT_USED_BUFFER)
        (first, nothing), (second, written) = self.used()
        assert (first, nothing, second) == (0, 0, 1)
        return cbor2.loads(self.ram[REPLY : REPLY + written])


def test_it_is_the_nsm_with_a_queue_of_two() -> None:
    bench = Bench()

    assert bench.get(Register.DEVICE_ID) == 33
    assert bench.get(Register.DEVICE_FEATURES) == 0
    assert bench.get(Register.QUEUE_SIZE_MAX) == 2


def test_a_request_is_answered_within_the_kick_with_one_interrupt() -> None:
    bench = Bench()
    bench.start()

    assert bench.ask({"DescribePCR": {"index": 0}}) == {"DescribePCR": {"data": b"\x11" * 48, "lock": True}}
    assert bench.levels == [True, False]
    assert bench.ask({"LockPCR": {"index": 16}}) == "LockPCR"
    assert bench.levels == [True, False, True, False]


def test_the_modules_state_outlives_a_reset_of_the_device() -> None:
    bench = Bench()
    bench.start()
    bench.ask({"LockPCR": {"index": 16}})

    bench.put(Register.STATUS, 0)
    bench.ram[:] = bytes(len(bench.ram))
    bench.offered = 0
    bench.start()

    reply = bench.ask({"DescribePCR": {"index": 16}})
    assert isinstance(reply, Mapping)
    assert reply["DescribePCR"]["lock"] is True


def test_what_was_asked_before_the_driver_was_ready_is_answered() -> None:
    bench = Bench()
    bench.offer(cbor2.dumps("GetRandom"))
    bench.put(Register.QUEUE_NOTIFY, 0)

    bench.start()

    assert bench.levels == [True]
    assert len(bench.used()) == 2


def test_a_bad_chain_is_returned_and_the_next_request_is_served() -> None:
    bench = Bench()
    bench.start()
    bench.offer(b"\x00", address=0xFFFF_0000)
    bench.put(Register.QUEUE_NOTIFY, 0)
    bench.put(Register.INTERRUPT_ACK, INTERRUPT_USED_BUFFER)
    assert bench.used() == [(0, 0), (1, 0)]

    assert bench.ask({"LockPCR": {"index": 16}}) == "LockPCR"


@pytest.mark.parametrize("fault", ["no queue", "queue outside of memory", "index runs away"])
def test_an_unusable_queue_needs_a_reset(fault: str) -> None:
    bench = Bench()
    bench.start(queue=fault != "no queue", descriptors=0xFFFF_0000 if "outside" in fault else DESCRIPTORS)
    bench.offered = 7
    bench.offer(b"")
    bench.put(Register.QUEUE_NOTIFY, 0)

    assert bench.get(Register.STATUS) & Status.DEVICE_NEEDS_RESET
    assert bench.get(Register.INTERRUPT_STATUS) == INTERRUPT_CONFIGURATION


def restored(bench: Bench, state: VirtioMmioState) -> Bench:
    """The same driver and module before another device."""
    other = Bench(bench.nsm)
    other.ram[:] = bench.ram
    other.offered = bench.offered
    other.transport.restore(state)
    return other


def test_a_restored_device_goes_on_where_it_was() -> None:
    bench = Bench()
    bench.start()
    for _ in range(3):
        bench.ask("GetRandom")
    bench.transport.pause()

    other = restored(bench, bench.transport.state())

    assert other.levels == [False]
    assert other.ask({"LockPCR": {"index": 16}}) == "LockPCR"


def test_a_request_that_waits_for_room_is_saved_with_its_bytes() -> None:
    bench = Bench()
    bench.start()
    bench.offer(cbor2.dumps("GetRandom"))
    bench.make_available(bench.offered - 1)
    bench.put(Register.QUEUE_NOTIFY, 0)
    bench.ram[REQUEST : REQUEST + 64] = bytes(64)

    other = restored(bench, bench.transport.state())
    other.make_available(bench.offered + 1)
    other.put(Register.QUEUE_NOTIFY, 0)

    (_, _), (_, written) = other.used()
    assert "GetRandom" in cbor2.loads(other.ram[REPLY : REPLY + written])


def test_a_request_that_is_offered_again_and_again_fills_nothing() -> None:
    bench = Bench()
    bench.start()
    bench.offer(bytes(0x1000))
    struct.pack_into("<HH", bench.ram, AVAILABLE + 4, 0, 0)

    for count in range(1, 100):
        bench.make_available(count)
        bench.put(Register.QUEUE_NOTIFY, 0)

    running = bench.transport.state().running
    assert running is not None
    assert len(running.taken) == 2


@pytest.mark.parametrize(
    ("running", "why"),
    [
        (RunningState((SplitQueueState(0, 0, 0),), ((0, b""),) * 3), "3 requests wait in a queue for 2"),
        (RunningState((SplitQueueState(0, 0, 0),), ((0, bytes(0x1002)),)), "longer than 4096 bytes"),
    ],
)
def test_a_state_that_no_driver_can_cause_is_refused(running: RunningState, why: str) -> None:
    bench = Bench()
    bench.start()
    state = changed(bench.transport.state(), running=running)

    with pytest.raises(StateError, match=why):
        bench.transport.restore(state)

    assert bench.get(Register.STATUS) == 0
