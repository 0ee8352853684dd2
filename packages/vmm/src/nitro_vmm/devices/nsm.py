"""The Nitro Secure Module as a virtio device: `nitro_nsm` behind the transport, on a `nitro_vsock` queue."""

import logging
from collections.abc import Callable, Sequence

from nitro_nsm import REQUEST_BYTES_MAX, Nsm, VirtioNsm
from nitro_vmm.devices.virtio import Driver, RunningState
from nitro_vmm.errors import StateError
from nitro_vsock import ChainError, GuestMemory, QueueError, QueueLayout, SplitQueue

logger = logging.getLogger(__name__)


class NsmDevice:
    """Answers requests within the guest's kick: that takes microseconds, or milliseconds for a signature.

    Args:
        nsm: The module. Its state outlives resets of the device, as a lock of a PCR must; it is saved by
            itself (`Nsm.state`), and is no part of this device's.
        memory: The guest's memory.
        on_request: Called when the driver says that there are requests.
    """

    device_id = VirtioNsm.device_id
    features = VirtioNsm.features
    queue_sizes = VirtioNsm.queue_sizes

    def __init__(
        self, nsm: Nsm, memory: GuestMemory, *, on_request: Callable[[], None] = lambda: None
    ) -> None:
        self._server = VirtioNsm(nsm)
        self._on_request = on_request
        self._memory = memory
        self._queue: SplitQueue | None = None
        self._driver: Driver | None = None

    def read_config(self, offset: int, length: int) -> bytes:  # noqa: ARG002
        """There is no configuration."""
        return b""

    def activate(self, features: int, queues: Sequence[QueueLayout | None], driver: Driver) -> None:  # noqa: ARG002
        """Serve the one queue from its start.

        Raises:
            QueueError: It was not set up, or cannot be used.
        """
        self._queue = self._make_queue(queues)
        self._driver = driver
        self._serve()

    def _make_queue(self, queues: Sequence[QueueLayout | None]) -> SplitQueue:
        if queues[0] is None:
            raise QueueError("the driver did not set it up", queue="nsm queue")
        return SplitQueue(self._memory, queues[0], name="nsm queue")

    def kick_descriptor(self, index: int) -> None:
        """There is none: to wake another thread takes longer than most answers, and the guest waits."""

    def notify(self, index: int) -> None:  # noqa: ARG002
        """Answer all requests that wait.

        Raises:
            QueueError: The queue is broken.
        """
        self._on_request()
        self._serve()

    def _serve(self) -> None:
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
        """Forget the queue, and requests that have no reply yet."""
        self._server.reset()
        self._queue = None

    def pause(self) -> None:
        """There is nothing to do: this device touches the guest's memory within kicks only."""

    def resume(self) -> None:
        """There is nothing to do."""

    def state(self) -> RunningState:
        """How far the queue was served, and requests that wait for room for their replies."""
        return RunningState((None if self._queue is None else self._queue.state(),), self._server.waiting)

    def restore(
        self,
        state: RunningState,
        features: int,  # noqa: ARG002 - there are none that matter
        queues: Sequence[QueueLayout | None],
        driver: Driver,
    ) -> None:
        """Go on where a saved device was.

        Raises:
            QueueError: The queue cannot be used.
            StateError: More requests wait than the queue has room for, or one is too long.
        """
        queue, saved = self._make_queue(queues), state.queues[0]
        if saved is None or len(state.taken) > self.queue_sizes[0]:
            raise StateError(f"{len(state.taken)} requests wait in a queue for {self.queue_sizes[0]}")
        if any(len(request) > REQUEST_BYTES_MAX + 1 for _, request in state.taken):
            raise StateError(f"a request that waits is longer than {REQUEST_BYTES_MAX} bytes")
        queue.restore(saved)
        self._server.restore(state.taken)
        self._queue = queue
        self._driver = driver
