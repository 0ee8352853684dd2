"""Credit between two guests: what the one may send follows what the other has read.

For host programs the socket is the end of the way: what it accepts is the program's affair, and the guest
gets its credit back. A guest at the other end has a buffer of its own. It says how large that is, and how
much of it its program has read. So the sender is told just that: its ``fwd_cnt`` is what the other guest has
taken, and its ``buf_alloc`` is the other guest's. It is told of less only where we would have to hold more
than we are ready to, because the other guest does not take its packets in. Whatever is under way, in our
memory, in a socket or in the other guest, is counted once.

Two engines serve the two guests, perhaps in two threads. Each way of a connection has one `Lane`, which both
read and write. Every number in it has one writer, which writes before it reads the numbers of the other. So
whatever happens at the same time, one of the two sees that the sender has to be told.
"""

from collections.abc import Callable
from typing import NamedTuple


class Bell:
    """Has something called by another engine's next turn, and only once however often it is rung meanwhile.

    Args:
        post: Has something called by that turn, from any thread.
        answer: What is called.
    """

    __slots__ = ("_answer", "_post", "_rung")

    def __init__(self, post: Callable[[Callable[[], None]], None], answer: Callable[[], None]) -> None:
        self._post = post
        self._answer = answer
        self._rung = False

    def ring(self) -> None:
        """Have the answer called."""
        if not self._rung:
            self._rung = True
            self._post(self._call)

    def _call(self) -> None:
        self._rung = False  # first, because what comes from now on may be too late for this answer
        self._answer()


class Lane:
    """One way of a connection between two guests: from its sender to its receiver."""

    __slots__ = (
        "ask_receiver",
        "asked",
        "buf_alloc",
        "deadline",
        "delay_s",
        "eager",
        "enough",
        "seen",
        "taken",
        "tell_sender",
        "told",
        "told_buf_alloc",
    )

    def __init__(self) -> None:
        # Of the receiver's engine
        self.taken: int = 0
        """Bytes that the receiving guest's program has read."""
        self.buf_alloc: int = 0
        """The size of the receiving guest's buffer."""
        self.asked: int = 0
        """Bytes that had gone to the receiving guest when it was asked last."""
        self.ask_receiver: Bell | None = None
        """Asks the receiving guest how much it has read."""

        # Of the sender's engine
        self.told: int = 0
        """The ``taken`` that the sending guest was told last."""
        self.told_buf_alloc: int = -1
        """The ``buf_alloc`` of which it was told last; -1: of none."""
        self.enough: int = 0
        """So many bytes of news are worth a packet to the sending guest."""
        self.eager: bool = False
        """The sending guest waits for any news."""
        self.tell_sender: Bell | None = None
        """Has the sending guest told what is new."""
        self.seen: int = 0
        """The ``taken`` when the receiving guest was to be asked last."""
        self.delay_s: float = 0.0
        """When to ask again."""
        self.deadline: float | None = None
        """See `nitro_vsock.device.timers`."""

    def report(self, taken: int, buf_alloc: int) -> None:
        """The receiving guest says what it has taken, and how large its buffer is."""
        self.taken = taken
        self.buf_alloc = buf_alloc
        news = taken - self.told
        worth_it = news and (self.eager or news >= self.enough)
        if self.tell_sender is not None and (worth_it or buf_alloc != self.told_buf_alloc):
            self.tell_sender.ring()

    def note_told(self, taken: int, buf_alloc: int, enough: int) -> None:
        """The sending guest is told so."""
        self.told = taken
        self.told_buf_alloc = buf_alloc
        self.enough = enough


class Lanes(NamedTuple):
    """Both ways of a connection."""

    out: Lane
    """From the guest that opened it."""
    back: Lane
    """To that guest."""
