"""What a virtio device is to its transport, whatever the device does (virtio 1.3 §2)."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from nitro_vmm.devices.state import is_tuple_of, is_whole, require
from nitro_vsock import QueueLayout, SplitQueueState

# Bounds of saved states, far above what any device here has.
QUEUES_MAX: Final = 64
TAKEN_MAX: Final = 64
BROKEN_LENGTH_MAX: Final = 1000
TAKEN_BYTES_MAX: Final = 1 << 16
INDEX_MAX: Final = 0xFFFF


class RunningState(NamedTuple):
    """How far a running device had come with its queues; what is in them is in the guest's memory."""

    queues: tuple[SplitQueueState | None, ...]
    """Each queue of the device; `None` for one that the driver does not use."""
    taken: tuple[tuple[int, bytes], ...] = ()
    """Chains that the device keeps for now, oldest first: the head of each, and what it has read from it."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        queues, taken = self.queues, self.taken
        good = is_tuple_of(_is_queue, queues, QUEUES_MAX)
        require(self, "queues", good, f"up to {QUEUES_MAX} states of queues")
        good = is_tuple_of(_is_taken, taken, TAKEN_MAX)
        require(self, "taken", good, f"up to {TAKEN_MAX} chains with their bytes")


def _is_queue(queue: object) -> bool:
    if not isinstance(queue, SplitQueueState):
        return queue is None
    indices = (queue.next_available, queue.used, queue.published)
    broken: object = queue.broken
    good = broken is None or (isinstance(broken, str) and len(broken) <= BROKEN_LENGTH_MAX)
    return good and all(is_whole(index, INDEX_MAX) for index in indices)


def _is_taken(chain: object) -> bool:
    if not isinstance(chain, tuple) or len(chain) != 2:
        return False
    head, content = chain
    return is_whole(head, INDEX_MAX) and isinstance(content, bytes) and len(content) <= TAKEN_BYTES_MAX


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

        A driver may have kicked before this, and does not repeat that, so the device looks for buffers by
        itself.

        Args:
            features: What driver and device have agreed on.
            queues: Where each queue is; `None` for one that the driver does not use.
            driver: Whom to tell about used buffers.

        Raises:
            QueueError: A queue cannot be used.
        """

    def kick_descriptor(self, index: int) -> int | None:
        """The eventfd of a queue for which `notify` does nothing but signal that; `None` where it does more.

        An accelerator may then have the host's kernel signal it, so that a kick takes no time of the guest's.
        """

    def notify(self, index: int) -> None:
        """The driver has made buffers of a queue available. Only while active.

        Raises:
            QueueError: The queue cannot be used any more.
        """

    def reset(self) -> None:
        """Stop, and forget the driver. Also called while not active, and not while paused."""

    def pause(self) -> None:
        """Leave the guest's memory alone until `resume`, and let the host's programs wait.

        The guest stands still then. Also called while not active.
        """

    def resume(self) -> None:
        """Go on after `pause`."""

    def state(self) -> RunningState:
        """What to save so that `restore` goes on from here. Only while active and paused."""

    def restore(
        self, state: RunningState, features: int, queues: Sequence[QueueLayout | None], driver: Driver
    ) -> None:
        """Start where a saved device was. Only while not active; the device is not paused then.

        What the host had to do with the saved device is over: the guest is told where it has to know.

        Args:
            state: A saved device; the guest's memory has been restored.
            features: What driver and device have agreed on.
            queues: Where each queue is; `None` for one that the driver does not use.
            driver: Whom to tell about used buffers.

        Raises:
            QueueError: A queue cannot be used.
            StateError: The state does not fit this kind of device.
        """
