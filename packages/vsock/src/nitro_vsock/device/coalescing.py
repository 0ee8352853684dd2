"""When to look for events instead of sleeping, and how long the guest's interrupt may wait meanwhile.

Going to sleep and waking up costs more than a small packet does. So where answers come quickly, the engine
looks for events for a while before it sleeps. And while it does not sleep, the interrupt "your packets were
taken" is held back: the guest has to be interrupted for the answer in a moment, and one interrupt is as good
as two.

Nothing here reads a clock or a descriptor: both are handed in.
"""

from collections.abc import Callable
from typing import Final

Events = list[tuple[int, int]]
"""What epoll reports: descriptors and what happened to them."""

EVENTS_MAX: Final = 256
"""How many descriptors one look at epoll reports. If more have something, the next look finds them."""

SHORT_SLEEPS: Final = 3
"""A sleep shorter than this many `spin_s`, wake-up included, would have been better spent looking for
events."""

HELD_ROUNDS_MAX: Final = 16
"""Interrupts of the transmit ring are held back for at most so many rounds, and then raised regardless.

The guest may need the descriptors that it would hear of, even if no answer comes.
"""


class Coalescing:
    """Waits for the events of one engine, and holds back its transmit ring's interrupt.

    Args:
        spin_s: How long to look for events before a sleep, in seconds; 0: not at all.
        poll: Waits for events for so many seconds at most, or for ever, and returns so many at most.
        clock: Seconds, monotonic.
        before_sleep: Called before each sleep that begins while an interrupt may be held back.
    """

    def __init__(
        self,
        spin_s: float,
        poll: Callable[[float | None, int], Events],
        clock: Callable[[], float],
        before_sleep: Callable[[], None],
    ) -> None:
        self._spin_s = spin_s
        self._poll = poll
        self._clock = clock
        self._before_sleep = before_sleep
        self.spin_pays = False
        """Whether the last sleep was a short one, so that looking for events is worth its time."""
        self._held: Callable[[], None] | None = None
        self._rounds = 0

    def wait(self, wait_s: float | None) -> Events:
        """The next events, after at most ``wait_s`` seconds; `None` waits for ever.

        Looking for events goes on paying until one look finds nothing, and pays again once a sleep turns out
        to have been a short one.

        Raises:
            OSError: From ``poll``.
            ValueError: From ``poll``.
        """
        if wait_s == 0.0 or not self._spin_s:
            return self._poll(wait_s, EVENTS_MAX)
        begin = self._clock()
        if self.spin_pays:
            end = begin + self._spin_s
            while begin < end:
                events = self._poll(0.0, EVENTS_MAX)
                if events:
                    return events
                begin = self._clock()
        self._before_sleep()
        events = self._poll(wait_s, EVENTS_MAX)
        self.spin_pays = self._clock() - begin < SHORT_SLEEPS * self._spin_s
        return events

    def hold(self, interrupt: Callable[[], None]) -> None:
        """Hold back an interrupt, in place of the one that is held already."""
        self._held = interrupt

    @property
    def holds(self) -> bool:
        """Whether an interrupt is held back."""
        return self._held is not None

    def take_due(self, *, busy: bool, patient: bool = False) -> Callable[[], None] | None:
        """The interrupt that is held back, if it must be raised after this round; else `None`.

        Args:
            busy: Whether the engine goes on without waiting for the guest. Then no answer of the guest is
                near.
            patient: Whether somebody else sees to it that the interrupt is not held for long.
        """
        if self._held is None:
            return None
        self._rounds += 1
        if busy or not (self.spin_pays or patient) or self._rounds > HELD_ROUNDS_MAX:
            return self.take()
        return None

    def take(self) -> Callable[[], None] | None:
        """The interrupt that is held back, which the caller raises now; `None` if there is none."""
        held, self._held = self._held, None
        self._rounds = 0
        return held
