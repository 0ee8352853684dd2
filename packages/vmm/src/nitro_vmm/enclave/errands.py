"""What other threads want done in the loop's thread, where the loop may still be to come.

A guest can open connections before its process has an event loop, because that is imported while the guest
runs. What is to be done about them waits here until there is one.
"""

import threading
from collections.abc import Callable
from typing import Final, TypeAlias

Errand: TypeAlias = Callable[[], object]

HELD_MAX: Final = 64
"""How many wait at most, because each may hold a socket, and a guest can open connections all the time."""


class Errands:
    """Keeps errands in order, first for a loop that is to come, then on the way to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Errand] | None = []
        """Those that wait; `None` once there is somebody to take them."""
        self._take: Callable[[Errand], bool] = _refuse

    @property
    def started(self) -> bool:
        """Whether there is somebody to take them, or was."""
        return self._held is None

    def give(self, errand: Errand) -> bool:
        """Have something done; any thread may call this.

        Returns:
            Whether it will be done; false when the loop has ended, or too much waits for it.
        """
        with self._lock:
            if self._held is not None:
                if len(self._held) >= HELD_MAX:
                    return False
                self._held.append(errand)
                return True
        return self._take(errand)

    def start(self, take: Callable[[Errand], bool]) -> None:
        """Do what waits, in this thread, which is the loop's; what is given from now on is taken at once.

        Args:
            take: Has an errand done in the loop's thread; false when it has ended.
        """
        while held := self._next(take):
            for errand in held:
                errand()

    def end(self) -> None:
        """Do what still waits, because it may have to close something; nothing is taken from now on."""
        self.start(_refuse)

    def _next(self, take: Callable[[Errand], bool]) -> list[Errand]:
        with self._lock:
            held = self._held
            # Only when nothing is left, so that what comes meanwhile is not done before it.
            self._held = [] if held else None
            if not held:
                self._take = take
        return held or []


def _refuse(_errand: Errand) -> bool:
    return False
