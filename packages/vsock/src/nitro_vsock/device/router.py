"""The guests of one process, which may connect to each other."""

import socket
import threading
from collections.abc import Callable
from typing import Protocol

from nitro_vsock.addresses import SocketType
from nitro_vsock.device.lane import Lanes
from nitro_vsock.errors import UsageError


class Sibling(Protocol):
    """A guest of this process, as the others see it: its engine."""

    @property
    def guest_cid(self) -> int:
        """Its address."""

    @property
    def groups(self) -> frozenset[str]:
        """Guests that have a group in common reach each other."""

    def adopt(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType,
        *,
        source: tuple[int, int],
        lanes: Lanes,
        on_result: Callable[[bool], None],
    ) -> None:
        """Join a socket with this guest's port; see `VsockEngine.adopt`."""


class VsockRouter:
    """The engines of one process, by guest CID. Two guests reach each other if they share a group.

    Engines register themselves when they are made with a router, and leave it when they are closed. They may
    run in different threads.
    """

    def __init__(self) -> None:
        self._engines: dict[int, Sibling] = {}
        self._lock = threading.Lock()

    def add(self, engine: Sibling) -> None:
        """Register a guest.

        Raises:
            UsageError: Its CID is taken.
        """
        with self._lock:
            if engine.guest_cid in self._engines:
                raise UsageError(
                    f"two guests have the CID {engine.guest_cid}", hint="give one of them another CID"
                )
            self._engines[engine.guest_cid] = engine

    def remove(self, engine: Sibling) -> None:
        """Forget a guest. One that is not registered is ignored."""
        with self._lock:
            if self._engines.get(engine.guest_cid) is engine:
                del self._engines[engine.guest_cid]

    def find(self, cid: int, *, seen_from: Sibling) -> Sibling | None:
        """The guest with this CID; `None` if there is none or ``seen_from`` may not talk to it."""
        with self._lock:
            engine = self._engines.get(cid)
        if engine is None or engine is seen_from or not engine.groups & seen_from.groups:
            return None
        return engine
