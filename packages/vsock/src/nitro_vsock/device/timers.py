"""Deadlines of connections and handshakes, in one heap.

No clock is read but the one that is handed in. Whatever waits has one deadline at a time, in its own
attribute. Setting that attribute to `None`, or scheduling it anew, cancels what was scheduled before: the old
entry stays in the heap, because taking it out of the middle is slow, and is recognised by its time.
"""

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final, Protocol

NEVER: Final = math.inf
"""The deadline of nothing."""


class Timed(Protocol):
    """Something that has a deadline, or none."""

    deadline: float | None
    """When it is due, in seconds of the engine's clock."""


class Timers:
    """What is due when.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.soonest: float = NEVER
        """Nothing is due before this, in seconds of the clock; perhaps nothing is due then, either."""
        self._entries: list[tuple[float, int, Timed, Callable[[], None]]] = []
        # Entries of the same time are told apart by their number, so that the heap never compares two
        # objects.
        self._numbers = itertools.count()

    def schedule(self, what: Timed, delay_s: float, expire: Callable[[], None]) -> None:
        """Have ``expire`` called in ``delay_s`` seconds, unless the deadline of ``what`` changes before."""
        deadline = self._clock() + delay_s
        what.deadline = deadline
        self.soonest = min(self.soonest, deadline)
        heapq.heappush(self._entries, (deadline, next(self._numbers), what, expire))

    def run_due(self) -> None:
        """Call what is due now."""
        if not self._entries:
            return  # the usual case for an idle guest, which then costs no look at the clock
        now = self._clock()
        while self._entries and self._entries[0][0] <= now:
            deadline, _, what, expire = heapq.heappop(self._entries)
            if what.deadline == deadline:
                what.deadline = None
                expire()

    def next_deadline(self) -> float:
        """The next deadline, in seconds of the engine's clock; `NEVER` if there is none."""
        entries = self._entries
        while entries:
            deadline, _, what, _ = entries[0]
            if what.deadline == deadline:
                break
            heapq.heappop(entries)  # cancelled, and nobody should wake up for it
        self.soonest = entries[0][0] if entries else NEVER
        return self.soonest

    def seconds_left(self) -> float | None:
        """Seconds until the next deadline, 0 if it has passed; `None` if there is none."""
        deadline = self.next_deadline()
        return None if deadline == NEVER else max(0.0, deadline - self._clock())
