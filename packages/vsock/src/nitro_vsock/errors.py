"""The errors that this package raises on purpose.

Their names say who is to blame. `ChainError`, `QueueError` and `GuestMemoryError` are the guest's doing, or
over vhost-user the front-end's. `UsageError` is the fault of the program that called us. `HostError` comes
from the host: its sockets, its files, its limits.
"""


class VsockError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: What the user can do about it, as a sentence without a full stop. Empty if nothing is known.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class GuestMemoryError(VsockError):
    """A range of addresses does not lie wholly inside one region of guest memory."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"no region of guest memory holds {length:#x} bytes at {address:#x}")
        self.address: int = address
        self.length: int = length


class ChainError(VsockError):
    """One chain breaks the rules (virtio 1.3 §2.7.5). It was returned unused, and the queue goes on."""

    def __init__(self, message: str, *, queue: str, head: int) -> None:
        super().__init__(f"{queue}, chain {head}: {message}")
        self.queue: str = queue
        self.head: int = head


class QueueError(VsockError):
    """A virtqueue cannot be used, or not any more: its layout, its available index or a head is wrong.

    The device needs a reset, after which the driver has to set the queue up anew.
    """

    def __init__(self, message: str, *, queue: str) -> None:
        super().__init__(f"{queue}: {message}")
        self.queue = queue


class UsageError(VsockError):
    """This package was called in a way that cannot work. The message says what to change."""


class HostError(VsockError):
    """The host refuses: a socket's path is in use, too long or not writable, or no descriptors are left."""
