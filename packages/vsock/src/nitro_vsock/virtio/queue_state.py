"""What a saved machine keeps of a split virtqueue.

This module is not compiled, because compiled classes do not tell the types of all their fields when the
program runs, and whoever loads a saved state checks it by them.
"""

from typing import Final, NamedTuple

from nitro_vsock.errors import UsageError

INDEX_MAX: Final = 0xFFFF
"""The indices of both rings are free-running 16-bit counters (virtio 1.3 §2.7.6, §2.7.8)."""


class SplitQueueState(NamedTuple):
    """How far a queue was served: what a saved machine keeps of it beside the guest's memory.

    Indices are free-running and 16 bits wide, as in the rings (virtio 1.3 §2.7.6, §2.7.8).
    """

    next_available: int
    """Index of the entry of the available ring that is taken next."""
    used: int
    """Index behind the last entry of the used ring that was written."""
    published: int
    """The used index that the driver was shown last; after a `SplitQueue.push` it is behind ``used``."""
    broken: str | None = None
    """Why the queue is not served any more; `None` while it is."""

    def check(self) -> None:
        """Refuse indices that cannot be.

        Raises:
            UsageError: One does not fit 16 bits.
        """
        for name in ("next_available", "used", "published"):
            if not 0 <= getattr(self, name) <= INDEX_MAX:
                raise UsageError(f"a saved queue's {name} is {getattr(self, name)}, indices have 16 bits")
