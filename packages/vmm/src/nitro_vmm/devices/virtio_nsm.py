"""The Nitro Secure Module as a virtio device: `nitro_nsm` behind the transport, on a `nitro_vsock` queue."""

import logging
from collections.abc import Sequence

from nitro_nsm import Nsm, VirtioNsm
from nitro_vmm.devices.virtio_mmio import Driver
from nitro_vsock import ChainError, GuestMemory, QueueError, QueueLayout, SplitQueue

logger = logging.getLogger(__name__)


class NsmDevice:
    """Answers requests within the guest's kick: they take microseconds, or milliseconds for a signature.

    Args:
        nsm: The module. Its state outlives resets of the device, as a lock of a PCR must.
        memory: The guest's memory.
    """

    device_id = VirtioNsm.device_id
    features = VirtioNsm.features
    queue_sizes = VirtioNsm.queue_sizes

    def __init__(self, nsm: Nsm, memory: GuestMemory) -> None:
        self._server = VirtioNsm(nsm)
        self._memory = memory
        self._queue: SplitQueue | None = None
        self._driver: Driver | None = None

    def read_config(self, offset: int, length: int) -> bytes:  # noqa: ARG002
        """There is no configuration."""
        return b""

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:  # noqa: ARG002
        """Serve the one queue.

        Raises:
            QueueError: It was not set up, or cannot be used.
        """
        if queues[0] is None:
            raise QueueError("the driver did not set it up", queue="nsm queue")
        self._queue = SplitQueue(self._memory, queues[0], name="nsm queue")
        self._driver = driver
        self.notify(0)

    def notify(self, index: int) -> None:  # noqa: ARG002
        """Answer all requests that wait.

        Raises:
            QueueError: The queue is broken.
        """
        while self._queue is not None:
            try:
                wants_interrupt = self._server.process(self._queue)
            except ChainError as error:
                logger.warning("a request was dropped: %s", error)
            else:
                if wants_interrupt and self._driver is not None:
                    self._driver.raise_interrupt()
                return

    def reset(self) -> None:
        """Leave the queue alone."""
        self._server.reset()
        self._queue = None
