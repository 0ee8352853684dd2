"""Guests of one process that may talk to each other."""

import threading
from typing import TYPE_CHECKING

from nitro_vsock.errors import UsageError

if TYPE_CHECKING:
    from nitro_vsock.engine import VsockEngine


class VsockRouter:
    """The engines of one process, by guest CID. Two guests reach each other if they share a group.

    Engines register themselves when they are made with a router, and leave it when they are closed. They
    may run in different threads.
    """

    def __init__(self) -> None:
        self._engines: dict[int, VsockEngine] = {}
        self._lock = threading.Lock()

    def add(self, engine: "VsockEngine") -> None:
        """Register a guest.

        Raises:
            UsageError: Its CID is taken.
        """
        with self._lock:
            if engine.config.guest_cid in self._engines:
                raise UsageError(f"two guests have the CID {engine.config.guest_cid}; give one another")
            self._engines[engine.config.guest_cid] = engine

    def remove(self, engine: "VsockEngine") -> None:
        """Forget a guest."""
        with self._lock:
            if self._engines.get(engine.config.guest_cid) is engine:
                del self._engines[engine.config.guest_cid]

    def find(self, cid: int, *, seen_from: "VsockEngine") -> "VsockEngine | None":
        """The guest with this CID, if ``seen_from`` may talk to it."""
        with self._lock:
            engine = self._engines.get(cid)
        if engine is None or engine is seen_from or not engine.config.groups & seen_from.config.groups:
            return None
        return engine
