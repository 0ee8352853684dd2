"""What this package raises on purpose.

The names say who is to blame: `ChainError`, `QueueError` and `GuestMemoryError` are the guest's doing (or,
over vhost-user, the front-end's), `UsageError` is our caller's, `HostError` is the host's: sockets, files,
limits.
"""


class VsockError(Exception):
    """Base of everything this package raises on purpose."""


class GuestMemoryError(VsockError):
    """A range that is not wholly inside one region of guest memory."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"no region of guest memory holds {length:#x} bytes at {address:#x}")
        self.address: int = address
        self.length: int = length


class ChainError(VsockError):
    """One chain breaks the rules (virtio 1.3 §2.7.5). It was returned unused; the queue goes on."""

    def __init__(self, message: str, *, queue: str, head: int) -> None:
        super().__init__(f"{queue}, chain {head}: {message}")
        self.queue: str = queue
        self.head: int = head


class QueueError(VsockError):
    """A virtqueue that cannot be used (any more): its layout, its available index or a head is wrong.

    The device needs a reset; the driver has to set the queue up anew.
    """

    def __init__(self, message: str, *, queue: str) -> None:
        super().__init__(f"{queue}: {message}")
        self.queue = queue


class UsageError(VsockError):
    """This package was called in a way that cannot work; the message says what to change."""


class HostError(VsockError):
    """The host refuses: a socket path in use, too long or not writable, no more file descriptors."""
