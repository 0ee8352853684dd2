"""The registers of the virtio-mmio transport, version 2 (virtio 1.3 §4.2.2), and what is saved of them."""

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from nitro_vmm.devices.state import is_tuple_of, require, require_flags, require_whole
from nitro_vmm.devices.virtio import QUEUES_MAX, RunningState

MAGIC: Final = 0x74726976
TRANSPORT_VERSION: Final = 2
VENDOR_ID: Final = 0x4F52_544E
"""The letters NTRO; drivers may not depend on it."""

FEATURE_WORDS: Final = 4
"""Feature bits are numbered up to 127 (virtio 1.3 §2.2)."""

INTERRUPT_USED_BUFFER: Final = 1
INTERRUPT_CONFIGURATION: Final = 2

CONFIGURATION: Final = 0x100
CONFIGURATION_SIZES: Final = (1, 2, 4, 8)


class Register(IntEnum):
    """Offsets (virtio 1.3 §4.2.2, table 4.1), by their names there."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_SIZE_MAX = 0x034
    QUEUE_SIZE = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    QUEUE_RESET = 0x0C0
    CONFIG_GENERATION = 0x0FC


# What every interrupt and kick comes to. Plain numbers, because an enum's member takes a look-up.
QUEUE_NOTIFY: Final = 0x050
INTERRUPT_STATUS: Final = 0x060
INTERRUPT_ACK: Final = 0x064

QUEUE_ADDRESSES: Final = (
    Register.QUEUE_DESC_LOW,
    Register.QUEUE_DESC_HIGH,
    Register.QUEUE_DRIVER_LOW,
    Register.QUEUE_DRIVER_HIGH,
    Register.QUEUE_DEVICE_LOW,
    Register.QUEUE_DEVICE_HIGH,
)
SHARED_MEMORY: Final = (
    Register.SHM_LEN_LOW,
    Register.SHM_LEN_HIGH,
    Register.SHM_BASE_LOW,
    Register.SHM_BASE_HIGH,
)
"""Registers that read as all ones, because there is no shared memory (virtio 1.3 §4.2.2.1)."""


class Status(IntFlag):
    """The device status field (virtio 1.3 §2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


# A driver climbs one rung after the other and never down, but for writing 0 (virtio 1.3 §3.1.1).
LADDER: Final = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)


STATUS_BITS: Final = sum(LADDER) | Status.DEVICE_NEEDS_RESET | Status.FAILED

QUEUE_SIZE_MAX: Final = 32768
"""What virtio allows (virtio 1.3 §2.7); bounds saved states."""
ADDRESS_MAX: Final = (1 << 64) - 1


class QueueSetup(NamedTuple):
    """What the driver has said about one queue; guest-physical addresses."""

    size: int
    """In descriptors, a power of two."""
    ready: bool
    """Whether the driver has finished setting it up."""
    descriptor_table: int
    available_ring: int
    used_ring: int

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        addresses = dict.fromkeys(("descriptor_table", "available_ring", "used_ring"), ADDRESS_MAX)
        require_whole(self, size=QUEUE_SIZE_MAX, **addresses)
        require(self, "size", self.size.bit_count() == 1, "a power of two")
        require_flags(self, "ready")


def _is_setup(queue: object) -> bool:
    return isinstance(queue, QueueSetup)


class VirtioMmioState(NamedTuple):
    """A device's registers as a driver left them, and how far the device behind them had come."""

    status: int
    """The device status field (`Status`)."""
    device_features_word: int
    """Which 32 of the offered feature bits can be read."""
    driver_features_word: int
    """Which 32 of the accepted feature bits are written."""
    driver_features: int
    """The feature bits that the driver accepts, a number of 128 bits."""
    queue_index: int
    """Which queue's registers can be reached."""
    interrupt_status: int
    """What was not acknowledged; the interrupt line is up unless it is 0."""
    queues: tuple[QueueSetup, ...]
    """Each queue of the device."""
    running: RunningState | None
    """`None` while no driver is ready, or the device needs a reset."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        words = dict.fromkeys(("device_features_word", "driver_features_word", "queue_index"), 0xFFFF_FFFF)
        require_whole(self, status=0xFF, driver_features=(1 << 32 * FEATURE_WORDS) - 1, **words)
        require_whole(self, interrupt_status=INTERRUPT_USED_BUFFER | INTERRUPT_CONFIGURATION)
        rungs = [bool(self.status & rung) for rung in LADDER]
        climbed = rungs == sorted(rungs, reverse=True) and not self.status & ~STATUS_BITS
        require(self, "status", climbed, "a status that a driver can reach")
        good = is_tuple_of(_is_setup, self.queues, QUEUES_MAX)
        require(self, "queues", good, f"up to {QUEUES_MAX} queues")
        require(self, "running", isinstance(self.running, RunningState | None), "a running device or None")
        runs = self.status & (Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET) == Status.DRIVER_OK
        require(self, "running", runs == (self.running is not None), "what the status says")
        if self.running is not None:
            used = [queue is not None for queue in self.running.queues]
            ready = [queue.ready for queue in self.queues]
            require(self, "running", used == ready, "served at the queues that are ready")
