"""What a saved machine keeps of a vsock device. Not compiled, for the reason in `virtio.queue_state`."""

from typing import NamedTuple

from nitro_vsock.virtio.queue_state import SplitQueueState


class VsockState(NamedTuple):
    """How far the rings of a vsock device were served: what a saved machine keeps of the device.

    Connections are not a part of it, because their other ends are sockets of programs that go on without the
    saved machine.
    """

    receive: SplitQueueState
    transmit: SplitQueueState
    event: SplitQueueState | None = None
    """`None` for a driver that set up no event queue."""
