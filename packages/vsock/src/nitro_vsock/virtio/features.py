"""Feature bits, as masks: the ones that concern every virtqueue, and those of the socket device.

A driver and a device agree on a set of them before queues are used (virtio 1.3 §2.2).
"""

from typing import Final

F_INDIRECT_DESC: Final = 1 << 28
"""A descriptor may point at a table of descriptors (virtio 1.3 §2.7.5.3)."""
F_EVENT_IDX: Final = 1 << 29
"""Both sides say with an index when they want to be notified next (virtio 1.3 §2.7.7, §2.7.10)."""
F_VERSION_1: Final = 1 << 32
"""The driver keeps to virtio 1.0 or later; without it, it uses the legacy interface (virtio 1.3 §6.1)."""

VSOCK_F_STREAM: Final = 1 << 0
"""The socket device carries streams (virtio 1.3 §5.10.3)."""
VSOCK_F_SEQPACKET: Final = 1 << 1
"""The socket device carries messages (virtio 1.3 §5.10.3)."""
VSOCK_F_NO_IMPLIED_STREAM: Final = 1 << 2
"""Messages do not imply streams, which have to be negotiated as well (virtio 1.3 §5.10.3)."""
