"""The virtio-mmio transport, version 2: a device's registers (virtio 1.3 §4.2.2).

The transport owns the registers, the status ladder and the interrupt line; the device behind it owns what its
queues mean. A driver that does things out of order is ignored, as hardware would, and the log says so. Only
an unusable queue is worse: the device then needs a reset (DEVICE_NEEDS_RESET, virtio 1.3 §2.1.2).
"""

import logging
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import Final, Protocol

from nitro_vsock import QueueError, QueueLayout

logger = logging.getLogger(__name__)

MAGIC: Final = 0x74726976
TRANSPORT_VERSION: Final = 2
VENDOR_ID: Final = 0x4F52_544E
"""The letters NTRO; drivers may not depend on it."""

F_VERSION_1: Final = 1 << 32
FEATURE_WORDS: Final = 4
"""Feature bits are numbered up to 127 (virtio 1.3 §2.2)."""

INTERRUPT_USED_BUFFER: Final = 1
INTERRUPT_CONFIGURATION: Final = 2

CONFIGURATION: Final = 0x100
CONFIGURATION_SIZES: Final = (1, 2, 4, 8)

COMPLAINTS_MAX: Final = 16
"""A guest must not fill the log of its host."""


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
"""All ones: there is no shared memory (virtio 1.3 §4.2.2.1)."""


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


class Driver(Protocol):
    """What a running device can tell its driver; for the thread that holds the machine's bus lock."""

    def raise_interrupt(self) -> None:
        """Buffers were used."""

    def need_reset(self, reason: str) -> None:
        """The device cannot go on before the driver resets it."""


class VirtioDevice(Protocol):
    """What the transport needs of a device (virtio 1.3 §2). All calls come under the machine's bus lock."""

    @property
    def device_id(self) -> int:
        """Which kind of device it is (virtio 1.3 §5)."""

    @property
    def features(self) -> int:
        """The feature bits that it offers; the transport adds VERSION_1."""

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The greatest size of each queue, a power of two."""

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of its configuration space; fewer, or none, where it ends."""

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:
        """Start: the driver is ready, has set up these queues, and may have put buffers there already.

        Kicks that came too early are not repeated: the device looks for itself.

        Args:
            features: What driver and device have agreed on.
            queues: Where each queue is; None for one that the driver does not use.
            driver: Whom to tell about used buffers.

        Raises:
            QueueError: A queue cannot be used.
        """

    def notify(self, index: int) -> None:
        """The driver has made buffers of a queue available. Only while active.

        Raises:
            QueueError: The queue cannot be used any more.
        """

    def reset(self) -> None:
        """Stop, and forget the driver. Also called while not active."""


class _Queue:
    """What the driver has said about one queue."""

    def __init__(self, size_max: int) -> None:
        self.size_max = self.size = size_max
        self.ready = False
        self.addresses = dict.fromkeys(QUEUE_ADDRESSES, 0)

    def layout(self) -> QueueLayout | None:
        if not self.ready:
            return None
        low = [self.addresses[register] for register in QUEUE_ADDRESSES[::2]]
        high = [self.addresses[register] for register in QUEUE_ADDRESSES[1::2]]
        return QueueLayout(self.size, *(a | b << 32 for a, b in zip(low, high, strict=True)))


class VirtioMmio:
    """One device's register window.

    Args:
        device: What is behind it.
        line: The interrupt line; up while an interrupt is not acknowledged.
        name: What the log calls the device.
    """

    def __init__(self, device: VirtioDevice, line: Callable[[bool], None], *, name: str) -> None:
        self._device = device
        self._line = line
        self._name = name
        self._complaints = 0
        self._offered = device.features | F_VERSION_1
        self._interrupt_status = 0
        self._forget_driver()

    def _forget_driver(self) -> None:
        self._status = Status(0)
        self._active = False
        self._device_features_word = self._driver_features_word = 0
        self._driver_features = 0
        self._queues = [_Queue(size_max) for size_max in self._device.queue_sizes]
        self._queue_index = 0

    # What the bus calls.

    def read(self, offset: int, size: int) -> int:
        """A register, which must be read whole, or a field of the configuration space."""
        if offset == Register.INTERRUPT_STATUS and size == 4:
            return self._interrupt_status
        if offset >= CONFIGURATION:
            if size not in CONFIGURATION_SIZES:
                return 0
            return int.from_bytes(self._device.read_config(offset - CONFIGURATION, size)[:size], "little")
        return self._read_register(offset) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register whole. No device here has a configuration that the driver may change."""
        if size != 4 or offset >= CONFIGURATION:
            self._complain(f"a write of {size} bytes at {offset:#x} has no meaning")
        elif offset == Register.QUEUE_NOTIFY:
            self._notify(value)
        elif offset == Register.INTERRUPT_ACK:
            self._set_interrupts(self._interrupt_status & ~value)
        else:
            self._write_register(offset, value & 0xFFFF_FFFF)

    # What the device and the machine call, under the bus lock as well.

    def raise_interrupt(self) -> None:
        """Tell the driver that buffers were used; nothing happens while there is no driver."""
        if self._active:
            self._set_interrupts(self._interrupt_status | INTERRUPT_USED_BUFFER)

    def need_reset(self, reason: str) -> None:
        """Give up until the driver resets the device, and tell it so."""
        if not self._active:
            return
        self._complain(f"needs a reset: {reason}")
        self._active = False
        self._device.reset()
        self._status |= Status.DEVICE_NEEDS_RESET
        self._set_interrupts(self._interrupt_status | INTERRUPT_CONFIGURATION)

    # Interrupts and notifications.

    def _set_interrupts(self, status: int) -> None:
        before, self._interrupt_status = self._interrupt_status, status
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
        layouts = [queue.layout() for queue in self._queues]
        try:
            self._device.activate(self._driver_features, layouts, self)
        except QueueError as error:
            self.need_reset(str(error))

    def _complain(self, what: str) -> None:
        self._complaints += 1
        if self._complaints <= COMPLAINTS_MAX:
            logger.warning("virtio %s: %s", self._name, what)
