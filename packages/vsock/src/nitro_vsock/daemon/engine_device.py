"""An engine as the device behind a vhost-user session."""

from collections.abc import Sequence

from nitro_vsock.device.engine import VsockEngine
from nitro_vsock.device.rings import Vring
from nitro_vsock.vhost_user.backend import Ring
from nitro_vsock.virtio.features import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from nitro_vsock.virtio.guest_memory import GuestMemory
from nitro_vsock.virtio.split_queue import SplitQueue

QUEUE_NAMES = ("receive queue", "transmit queue", "event queue")


class EngineDevice:
    """What a vhost-user session starts and stops: a `nitro_vsock.vhost_user.backend.Device`.

    Args:
        engine: What serves the rings. It outlives the session.
    """

    def __init__(self, engine: VsockEngine) -> None:
        self.features = engine.features | F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1
        self._engine = engine
        self._queues: list[SplitQueue | None] = []

    def read_config(self) -> bytes:
        """The configuration space: the guest's CID."""
        return self._engine.config_space

    def start(self, memory: GuestMemory, rings: Sequence[Ring | None], features: int) -> None:
        """Serve the rings.

        Raises:
            QueueError: One of them lies outside of memory.
        """
        self._queues = [
            SplitQueue.negotiated(
                memory, ring.layout, features, next_available=ring.next_available, name=name
            )
            if ring
            else None
            for ring, name in zip(rings, QUEUE_NAMES, strict=True)
        ]
        receive, transmit, event = (
            Vring(queue, ring.kick, ring.call) if queue and ring else None
            for queue, ring in zip(self._queues, rings, strict=True)
        )
        if receive and transmit:
            self._engine.attach(receive=receive, transmit=transmit, event=event)

    def stop(self) -> list[int]:
        """Leave the rings alone; returns how far each was served."""
        self._engine.detach(keep_connections=True)
        positions = [queue.next_available if queue else 0 for queue in self._queues]
        self._queues = []
        return positions

    def reset(self) -> None:
        """Drop every connection of the guest."""
        self._engine.detach()

    def lost(self) -> None:
        """Send the guest a transport reset, now or with its next rings."""
        self._engine.reset_transport()
