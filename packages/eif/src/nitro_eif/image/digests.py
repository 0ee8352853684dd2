"""Hash a mapped image on all processors, reading each byte from memory once.

Several digests run over the same bytes: PCR0 over everything measured, PCR2 over most of it again, the
checksum over the whole file. Words used here:

- A *lane* is one digest and what it takes of the file. Each has a thread, because hashlib and zlib let go
  of the GIL while they work.
- A *stretch* is a piece of the file that a lane takes without interruption: one section's data, say.
- The *window* is how far one lane may be ahead of the slowest. A lane that reaches its end waits, so that the
  others find in the processor's cache what it has just read from memory.
"""

import threading
from collections.abc import Iterable
from typing import Final, Protocol

from nitro_eif.files import CHUNK_BYTES, Progress

WINDOW_BYTES: Final = 8 << 20
PARALLEL_BYTES_MIN: Final = 4 << 20
"""Below this, starting threads costs more than it saves."""


class Digest(Protocol):
    """What is fed: a hash, or the running checksum."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""


class Lane:
    """One digest and the stretches of the file that it takes, in ascending order."""

    def __init__(self, digest: Digest, stretches: Iterable[tuple[int, memoryview]]) -> None:
        self.digest = digest
        self.stretches = list(stretches)
        """Offset in the file and view of each."""

    @property
    def total_bytes(self) -> int:
        """How many bytes it takes in all."""
        return sum(len(view) for _, view in self.stretches)


def run(lanes: list[Lane], progress: Progress | None = None) -> None:
    """Feed every lane, in threads where that pays; returns when all are done."""
    total = sum(lane.total_bytes for lane in lanes)
    pace = _Pace([lane.stretches[0][0] if lane.stretches else 0 for lane in lanes], total, progress)
    threads: list[threading.Thread] = []
    if total >= PARALLEL_BYTES_MIN:
        threads = [
            threading.Thread(target=_feed, args=(lane, index, pace), daemon=True)
            for index, lane in enumerate(lanes)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # noqa: BLE001 - raised again below
            # Ctrl-C arrives here. No thread may go on with views that the caller is about to close.
            pace.stop(error)
            for thread in threads:
                thread.join()
        if pace.error is not None:
            raise pace.error
    else:
        for lane in lanes:
            for _, view in lane.stretches:
                lane.digest.update(view)


class _Pace:
    """Keeps lanes within a window of each other, by their offset in the file, and counts what is done."""

    def __init__(self, starts: list[int], total: int, progress: Progress | None) -> None:
        self._at = dict(enumerate(starts))
        self._condition = threading.Condition()
        self._total = total
        self._done = 0
        self._progress = progress
        self.error: BaseException | None = None
        """Why the work was called off."""

    def enter(self, lane: int, offset: int) -> bool:
        """Wait until ``offset`` is within the window; false if the work is called off."""
        with self._condition:
            # This lane is now further on, which may let the others go on.
            self._at[lane] = offset
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: self.error is not None or offset - min(self._at.values()) <= WINDOW_BYTES
            )
            return self.error is None

    def done(self, size: int) -> None:
        with self._condition:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)

    def leave(self, lane: int) -> None:
        with self._condition:
            # A lane that is done must not hold the others back.
            del self._at[lane]
            self._condition.notify_all()

    def stop(self, error: BaseException) -> None:
        with self._condition:
            self.error = self.error or error
            self._condition.notify_all()


def _feed(lane: Lane, index: int, pace: _Pace) -> None:
    try:
        for start, view in lane.stretches:
            for offset in range(0, len(view), CHUNK_BYTES):
                if not pace.enter(index, start + offset):
                    return
                chunk = view[offset : offset + CHUNK_BYTES]
                lane.digest.update(chunk)
                pace.done(len(chunk))
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        pace.stop(error)
    finally:
        pace.leave(index)
