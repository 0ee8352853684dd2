"""The virtio-mmio transport, version 2: a device's registers (virtio 1.3 §4.2.2).

The transport owns the registers, the status and the interrupt line. The device behind it owns what the queues
mean. What a driver does out of order is ignored, as hardware ignores it, and the log says so. Only a queue
that cannot be used is worse, because the device then needs a reset (DEVICE_NEEDS_RESET, virtio 1.3 §2.1.2).
"""

import logging
from collections.abc import Callable
from typing import Final

from nitro_vmm.devices.virtio import VirtioDevice
from nitro_vmm.devices.virtio_mmio_registers import (
    CONFIGURATION,
    CONFIGURATION_SIZES,
    FEATURE_WORDS,
    INTERRUPT_ACK,
    INTERRUPT_CONFIGURATION,
    INTERRUPT_STATUS,
    INTERRUPT_USED_BUFFER,
    LADDER,
    MAGIC,
    QUEUE_ADDRESSES,
    QUEUE_NOTIFY,
    SHARED_MEMORY,
    TRANSPORT_VERSION,
    VENDOR_ID,
    QueueSetup,
    Register,
    Status,
    VirtioMmioState,
)
from nitro_vmm.errors import StateError
from nitro_vsock import F_VERSION_1, QueueError, QueueLayout

logger = logging.getLogger(__name__)

COMPLAINTS_MAX: Final = 16
"""How many complaints about a driver are logged, because a guest must not fill the log of its host."""


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
