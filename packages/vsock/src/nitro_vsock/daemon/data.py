"""The data path's thread: it waits for engines and lets them take their turns. Nothing else runs in it.

trio would do, but waking a task costs as much as a small packet does; a thread that sleeps in epoll does not.
Guests that talk to each other share it, so that one engine may call another.
"""

import os
import select
from collections.abc import Sequence

from nitro_vsock.engine import VsockEngine


class DataLoop:
    """Turns engines until it is stopped."""

    def __init__(self, engines: Sequence[VsockEngine]) -> None:
        self._engines = {engine.fileno(): engine for engine in engines}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.epoll()
        self._poller.register(self._wake, select.EPOLLIN)
        for descriptor in self._engines:
            self._poller.register(descriptor, select.EPOLLIN)
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop`."""
        engines = tuple(self._engines.values())
        while not self._stopping:
            waits = [wait for engine in engines if (wait := engine.turn()) is not None]
            self._poller.poll(min(waits) if waits else None)

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Release what it holds, not the engines; after `run` has returned."""
        self._poller.close()
        os.close(self._wake)
