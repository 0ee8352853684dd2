"""The virtio-mmio transport, version 2: a device's registers (virtio 1.3 §4.2.2).

The transport owns the registers, the status and the interrupt line. The device behind it owns what the queues
mean. What a driver does out of order is ignored, as hardware ignores it, and the log says so. Only a queue
that cannot be used is worse, because the device then needs a reset (DEVICE_NEEDS_RESET, virtio 1.3 §2.1.2).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from nitro_vmm.devices.state import is_tuple_of, require, require_flags, require_whole
from nitro_vmm.devices.virtio import QUEUES_MAX, RunningState, VirtioDevice
from nitro_vmm.errors import StateError
from nitro_vsock import F_VERSION_1, QueueError, QueueLayout

logger = logging.getLogger(__name__)

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

COMPLAINTS_MAX: Final = 16
"""How many complaints about a driver are logged, because a guest must not fill the log of its host."""


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
QUEUE_NOTIFY: Final = int(Register.QUEUE_NOTIFY)
INTERRUPT_STATUS: Final = int(Register.INTERRUPT_STATUS)
INTERRUPT_ACK: Final = int(Register.INTERRUPT_ACK)

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


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """What the driver has said about one queue; guest-physical addresses."""

    size: int
    """In descriptors, a power of two."""
    ready: bool
    """Whether the driver has finished setting it up."""
    descriptor_table: int
    available_ring: int
    used_ring: int

    def __post_init__(self) -> None:
        addresses = dict.fromkeys(("descriptor_table", "available_ring", "used_ring"), ADDRESS_MAX)
        require_whole(self, size=QUEUE_SIZE_MAX, **addresses)
        require(self, "size", self.size.bit_count() == 1, "a power of two")
        require_flags(self, "ready")


def _is_setup(queue: object) -> bool:
    return isinstance(queue, QueueSetup)


@dataclass(frozen=True, slots=True)
class VirtioMmioState:
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

    def __post_init__(self) -> None:
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


class _Queue:
    """What the driver has said about one queue."""

    def __init__(self, size_max: int) -> None:
        self.size_max = self.size = size_max
        self.ready = False
        self.addresses = dict.fromkeys(QUEUE_ADDRESSES, 0)

    def layout(self) -> QueueLayout | None:
        setup = self.setup()
        areas = (setup.descriptor_table, setup.available_ring, setup.used_ring)
        return QueueLayout(self.size, *areas) if self.ready else None

    def setup(self) -> QueueSetup:
        low = [self.addresses[register] for register in QUEUE_ADDRESSES[::2]]
        high = [self.addresses[register] for register in QUEUE_ADDRESSES[1::2]]
        return QueueSetup(self.size, self.ready, *(a | b << 32 for a, b in zip(low, high, strict=True)))

    def restore(self, setup: QueueSetup) -> None:
        self.size, self.ready = setup.size, setup.ready
        areas = (setup.descriptor_table, setup.available_ring, setup.used_ring)
        words = [word for area in areas for word in (area & 0xFFFF_FFFF, area >> 32)]
        self.addresses = dict(zip(QUEUE_ADDRESSES, words, strict=True))


class VirtioMmio:
    """One device's register window.

    Args:
        device: What is behind it.
        line: The interrupt line; up while an interrupt is not acknowledged.
        name: What the log calls the device.
        on_driver: Called each time that a driver begins to drive it.
    """

    def __init__(
        self,
        device: VirtioDevice,
        line: Callable[[bool], None],
        *,
        name: str,
        on_driver: Callable[[], None] = lambda: None,
    ) -> None:
        self._device = device
        self._on_driver = on_driver
        self._line = line
        self._name = name
        self._complaints = 0
        self._offered = device.features | F_VERSION_1
        self.interrupt_word: memoryview = memoryview(bytearray(4)).cast("I")
        """INTERRUPT_STATUS, one number. Drivers read it in every interrupt, see `Vm.share_word`."""
        self.configuration_reads: int = 0
        """How often the guest has looked at the device's configuration."""
        self._forget_driver()

    def _forget_driver(self) -> None:
        self._status = Status(0)
        self._active = False
        self._device_features_word = self._driver_features_word = 0
        self._driver_features = 0
        self._queues = [_Queue(size_max) for size_max in self._device.queue_sizes]
        self._queue_index = 0

    # What the bus calls.

    @property
    def driver_runs(self) -> bool:
        """Whether the guest has a driver that drives the device."""
        return bool(self._status & Status.DRIVER_OK)

    def read(self, offset: int, size: int) -> int:
        """A register, which must be read whole, or a field of the configuration space."""
        if offset == INTERRUPT_STATUS and size == 4:
            return self.interrupt_word[0]
        if offset >= CONFIGURATION:
            if size not in CONFIGURATION_SIZES:
                return 0
            self.configuration_reads += 1
            return int.from_bytes(self._device.read_config(offset - CONFIGURATION, size)[:size], "little")
        return self._read_register(offset) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register whole. No device here has a configuration that the driver may change."""
        if size != 4 or offset >= CONFIGURATION:
            self._complain(f"a write of {size} bytes at {offset:#x} has no meaning")
        elif offset == QUEUE_NOTIFY:
            self._notify(value)
        elif offset == INTERRUPT_ACK:
            self._set_interrupts(self.interrupt_word[0] & ~value)
        else:
            self._write_register(offset, value & 0xFFFF_FFFF)

    # What the machine calls when it is saved, and after; under the bus lock, while the guest stands still.

    def pause(self) -> None:
        """Let the device leave the guest's memory alone until `resume`."""
        self._device.pause()

    def resume(self) -> None:
        """Let the device go on after `pause`."""
        self._device.resume()

    def state(self) -> VirtioMmioState:
        """What to save so that `restore` goes on from here; only between `pause` and `resume`."""
        return VirtioMmioState(
            status=int(self._status),
            device_features_word=self._device_features_word,
            driver_features_word=self._driver_features_word,
            driver_features=self._driver_features,
            queue_index=self._queue_index,
            interrupt_status=self.interrupt_word[0],
            queues=tuple(queue.setup() for queue in self._queues),
            running=self._device.state() if self._active else None,
        )

    def restore(self, state: VirtioMmioState) -> None:
        """Go on from a saved state, after the guest's memory is restored; drives the interrupt line.

        Raises:
            StateError: The saved device is of another kind, or its queues are not in this guest's memory. The
                device is as after a reset.
        """
        self._device.reset()
        self._forget_driver()
        self.interrupt_word[0] = 0
        self._check_fits(state)
        self._device_features_word = state.device_features_word
        self._driver_features_word = state.driver_features_word
        self._driver_features = state.driver_features
        self._queue_index = state.queue_index
        for queue, setup in zip(self._queues, state.queues, strict=True):
            queue.restore(setup)
        self._status = Status(state.status)
        self.interrupt_word[0] = state.interrupt_status
        if state.running is not None:
            self._active = True
            layouts = [queue.layout() for queue in self._queues]
            try:
                self._device.restore(state.running, self._driver_features, layouts, self)
            except (QueueError, StateError) as error:
                self._device.reset()
                self._forget_driver()
                self.interrupt_word[0] = 0
                self._line(False)
                raise StateError(f"the saved virtio device {self._name} cannot go on: {error}") from error
        self._line(bool(self.interrupt_word[0]))

    def _check_fits(self, state: VirtioMmioState) -> None:
        what = f"the saved virtio device {self._name}"
        sizes = self._device.queue_sizes
        if len(state.queues) != len(sizes):
            raise StateError(f"{what} has {len(state.queues)} queues, this one has {len(sizes)}")
        for index, (queue, size_max) in enumerate(zip(state.queues, sizes, strict=True)):
            if queue.size > size_max:
                raise StateError(
                    f"{what} has queue {index} with size {queue.size}, at most {size_max} is possible"
                )
        if state.status & Status.FEATURES_OK and not F_VERSION_1 & state.driver_features & self._offered:
            raise StateError(f"{what} was used by a legacy driver, which this version does not serve")
        lacking = state.driver_features & ~self._offered
        if state.status & Status.FEATURES_OK and lacking:
            raise StateError(f"{what} has features that this one lacks: {lacking:#x}")

    # What the device and the machine call, under the bus lock as well.

    def raise_interrupt(self) -> None:
        """Tell the driver that buffers were used; nothing happens while there is no driver."""
        if self._active:
            self._set_interrupts(self.interrupt_word[0] | INTERRUPT_USED_BUFFER)

    def need_reset(self, reason: str) -> None:
        """Give up until the driver resets the device, and tell it so."""
        if not self._active:
            return
        self._complain(f"needs a reset: {reason}")
        self._active = False
        self._device.reset()
        self._status |= Status.DEVICE_NEEDS_RESET
        self._set_interrupts(self.interrupt_word[0] | INTERRUPT_CONFIGURATION)

    # Interrupts and notifications.

    def _set_interrupts(self, status: int) -> None:
        before = self.interrupt_word[0]
        self.interrupt_word[0] = status
        if bool(before) != bool(status):
            self._line(bool(status))

    def _notify(self, index: int) -> None:
        if not self._active:
            return  # Linux's NSM driver may ask for random numbers before DRIVER_OK
        if index >= len(self._queues) or not self._queues[index].ready:
            self._complain(f"a notification of queue {index}, which is not set up")
        else:
            try:
                self._device.notify(index)
            except QueueError as error:
                self.need_reset(str(error))

    # The other registers.

    def _read_register(self, offset: int) -> int:
        queue = self._selected()
        match offset:
            case Register.MAGIC_VALUE:
                return MAGIC
            case Register.VERSION:
                return TRANSPORT_VERSION
            case Register.DEVICE_ID:
                return self._device.device_id
            case Register.VENDOR_ID:
                return VENDOR_ID
            case Register.DEVICE_FEATURES if self._device_features_word < FEATURE_WORDS:
                return self._offered >> 32 * self._device_features_word & 0xFFFF_FFFF
            case Register.QUEUE_SIZE_MAX if queue:
                return queue.size_max
            case Register.QUEUE_READY if queue:
                return int(queue.ready)
            case Register.STATUS:
                return self._status
            case _ if offset in SHARED_MEMORY:
                return 0xFFFF_FFFF
        return 0

    def _write_register(self, offset: int, value: int) -> None:
        match offset:
            case Register.STATUS:
                self._write_status(value)
            case Register.DEVICE_FEATURES_SEL:
                self._device_features_word = value
            case Register.DRIVER_FEATURES_SEL:
                self._driver_features_word = value
            case Register.DRIVER_FEATURES:
                self._write_driver_features(value)
            case Register.QUEUE_SEL:
                self._queue_index = value
            case Register.QUEUE_SIZE | Register.QUEUE_READY:
                self._write_queue(offset, value)
            case _ if offset in QUEUE_ADDRESSES:
                self._write_queue(offset, value)
            case Register.SHM_SEL:
                pass
            case _:
                self._complain(f"a write at {offset:#x}, where nothing can be written")

    def _write_driver_features(self, value: int) -> None:
        if self._status & Status.FEATURES_OK:
            self._complain("features after FEATURES_OK")
        elif self._driver_features_word < FEATURE_WORDS:
            shift = 32 * self._driver_features_word
            self._driver_features = self._driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def _selected(self) -> _Queue | None:
        return self._queues[self._queue_index] if self._queue_index < len(self._queues) else None

    def _write_queue(self, offset: int, value: int) -> None:
        """Queues are set up between FEATURES_OK and DRIVER_OK, each while it is not ready."""
        queue = self._selected()
        if queue is None:
            self._complain(f"queue {self._queue_index} does not exist")
        elif offset == Register.QUEUE_READY and not value and not self._active:
            queue.ready = False  # Linux takes its queues down after the reset
        elif self._status & (Status.FEATURES_OK | Status.DRIVER_OK | Status.FAILED) != Status.FEATURES_OK:
            self._complain(f"queue {self._queue_index} set up in status {self._status!r}")
        elif offset == Register.QUEUE_READY:
            queue.ready = bool(value & 1)
        elif queue.ready:
            self._complain(f"queue {self._queue_index} changed while ready")
        elif offset != Register.QUEUE_SIZE:
            queue.addresses[Register(offset)] = value
        elif 1 <= value <= queue.size_max and not value & (value - 1):
            queue.size = value
        else:
            self._complain(
                f"queue {self._queue_index} with size {value}, at most {queue.size_max} is possible"
            )

    def _write_status(self, value: int) -> None:
        if not value & 0xFF:
            self._device.reset()
            self._forget_driver()
            self._set_interrupts(0)
            return
        wanted = Status(value & 0xFF) & ~Status.DEVICE_NEEDS_RESET
        if self._status & ~Status.DEVICE_NEEDS_RESET & ~wanted:
            self._complain(f"status {wanted!r} clears a bit of {self._status!r}")
            return
        added = wanted & ~self._status
        if added & Status.FAILED:
            self._status |= Status.FAILED
        for rung, step in enumerate(LADDER):
            if not added & step:
                continue
            if any(not self._status & below for below in LADDER[:rung]):
                self._complain(f"status {step!r} comes too early after {self._status!r}")
            elif step is not Status.FEATURES_OK or self._agrees():
                self._status |= step
        if added & self._status & Status.DRIVER_OK:
            self._activate()

    def _agrees(self) -> bool:
        """Whether the driver's features are a possible choice (virtio 1.3 §2.2, §6.1)."""
        too_many = self._driver_features & ~self._offered
        if too_many:
            self._complain(f"the driver takes features that were not offered: {too_many:#x}")
        elif not self._driver_features & F_VERSION_1:
            self._complain("the driver does not take VERSION_1; legacy drivers are not served")
        else:
            return True
        return False

    def _activate(self) -> None:
        self._active = True
        self._on_driver()
        layouts = [queue.layout() for queue in self._queues]
        try:
            self._device.activate(self._driver_features, layouts, self)
        except QueueError as error:
            self.need_reset(str(error))

    def _complain(self, what: str) -> None:
        self._complaints += 1
        if self._complaints <= COMPLAINTS_MAX:
            logger.warning("virtio %s: %s", self._name, what)
