"""A full memory barrier. Taking a lock is the only operation of Python that is one."""

import os
import threading
from typing import Final

STRONGLY_ORDERED: Final = os.uname().machine in {"x86_64", "i386", "i686"}
"""On x86 a load may pass an earlier store and nothing else may pass anything, so most barriers are free."""


class Barrier:
    """A lock of one queue's own, because a shared one would make queues wait for each other."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._acquire, self._release = lock.acquire, lock.release

    def full(self) -> None:
        """Let no load and no store pass this point, in either direction.

        On x86 one turn of the lock is enough, because its atomic instruction orders everything. Elsewhere
        acquiring and releasing are barriers in one direction each. The second acquisition may not pass the
        first release, so the two turns together leave no gap.
        """
        self._acquire()
        self._release()
        if not STRONGLY_ORDERED:
            self._acquire()
            self._release()
