"""virtio-vsock: the virtqueue, the device's core, and a vhost-user daemon around it."""

from nitro_vsock.errors import (
    ChainError,
    GuestMemoryError,
    HostError,
    QueueError,
    UsageError,
    VsockError,
)
from nitro_vsock.guest_memory import GuestMemory
from nitro_vsock.split_queue import Chain, QueueLayout, SplitQueue

__all__ = [
    "Chain",
    "ChainError",
    "GuestMemory",
    "GuestMemoryError",
    "HostError",
    "QueueError",
    "QueueLayout",
    "SplitQueue",
    "UsageError",
    "VsockError",
]
