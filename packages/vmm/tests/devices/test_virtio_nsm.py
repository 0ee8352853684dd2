"""The NSM through its virtio registers and a queue in guest memory, as Linux's driver uses it."""

import struct
from collections.abc import Mapping

import cbor2
import pytest

from nitro_nsm import RESPONSE_BYTES_MAX, Nsm, NsmConfig
from nitro_vmm.devices.virtio_mmio import (
    F_VERSION_1,
    INTERRUPT_CONFIGURATION,
    INTERRUPT_USED_BUFFER,
    Register,
    Status,
    VirtioMmio,
)
from nitro_vmm.devices.virtio_nsm import NsmDevice
from nitro_vsock import GuestMemory

DESCRIPTORS, AVAILABLE, USED, REQUEST, REPLY = 0x0, 0x100, 0x200, 0x1000, 0x4000
WRITABLE = 2


class Bench:
    """A driver with two descriptors: the request and the room for its reply."""

    def __init__(self) -> None:
        self.ram = bytearray(0x10000)
        device = NsmDevice(Nsm(NsmConfig(pcrs={0: b"\x11" * 48})), GuestMemory([(0, memoryview(self.ram))]))
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
        self.offered += 2
        struct.pack_into("<H", self.ram, AVAILABLE + 2, self.offered)

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
