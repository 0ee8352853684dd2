"""The guest's receive buffers: where a packet's header goes, and how much data they hold."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from nitro_vsock.device.packet import HEADER_BYTES
from nitro_vsock.errors import ChainError
from nitro_vsock.virtio.split_queue import Chain, SplitQueue

NOTHING: Final = memoryview(b"")
TAKEN_AT_ONCE: Final = 16
"""How many buffers are taken from the ring at once, if there are so many: it costs less than one at a
time."""


def trim(views: list[memoryview], length: int) -> list[memoryview]:
    """The first ``length`` bytes of these views, as views."""
    trimmed = []
    for view in views:
        if not length:
            break
        trimmed.append(view[:length])
        length -= len(trimmed[-1])
    return trimmed


class ReceiveBuffer:
    """A chain for one packet to the guest: 44 bytes for the header, the rest for data."""

    __slots__ = ("capacity", "first", "head", "segments")

    def __init__(self, chain: Chain) -> None:
        self.head = chain.head
        self.segments = chain.writable
        self.first = self.segments[0] if self.segments else NOTHING
        """The first segment. In all chains that real drivers make, it holds the whole header."""
        room = len(self.first)
        if len(self.segments) > 1:  # which no buffer of Linux has
            room = sum(map(len, self.segments))
        self.capacity = max(0, room - HEADER_BYTES)

    def add_data(self, views: list[memoryview]) -> None:
        """Append to ``views`` the segments, or parts of segments, that come after the header."""
        if len(self.segments) == 1:
            views.append(self.first[HEADER_BYTES:])
            return
        skip = HEADER_BYTES
        for segment in self.segments:
            if len(segment) > skip:
                views.append(segment[skip:] if skip else segment)
                skip = 0
            else:
                skip -= len(segment)

    def write_header(self, header: bytes) -> None:
        """Put the header into the first 44 bytes of the buffer, in however many segments they are."""
        if len(self.first) >= HEADER_BYTES:
            self.first[:HEADER_BYTES] = header
            return
        for segment in self.segments:
            part = header[: len(segment)]
            segment[: len(part)] = part
            header = header[len(part) :]


class ReceiveRing:
    """The receive queue, with the buffers that were taken from it and not used yet.

    Args:
        queue: The guest's receive queue.
        on_bad_chain: Called for every chain that breaks the rules or is of no use here.
    """

    def __init__(self, queue: SplitQueue, on_bad_chain: Callable[[], None]) -> None:
        self.queue = queue
        self._on_bad_chain = on_bad_chain
        self._held: deque[ReceiveBuffer] = deque()

    @property
    def held(self) -> int:
        """How many buffers were taken from the queue and not used yet."""
        return len(self._held)

    def peek(self, count: int) -> list[ReceiveBuffer]:
        """Up to ``count`` buffers, in the order in which they are to be used; see `consume`.

        Raises:
            QueueError: The ring is broken.
        """
        if len(self._held) < count:
            self._take(count)
        return list(islice(self._held, count))

    def _take(self, count: int) -> None:
        """Hold ``count`` buffers or some more, if the guest has offered so many.

        Raises:
            QueueError: The ring is broken.
        """
        held, queue = self._held, self.queue
        while len(held) < count:
            try:
                chains = queue.pop_many(max(count - len(held), TAKEN_AT_ONCE))
            except ChainError:
                self._on_bad_chain()
                continue
            if not chains:
                break
            for chain in chains:
                buffer = ReceiveBuffer(chain)
                # A buffer without room for data would do for control packets only, and those may not be
                # sorted from data any more when they come to it.
                if buffer.capacity and not chain.readable:
                    held.append(buffer)
                else:
                    queue.push(chain.head, 0)
                    self._on_bad_chain()

    def consume(self, lengths: list[int]) -> None:
        """Return the first buffers to the guest, which hold so many bytes after the header, each."""
        held, queue = self._held, self.queue
        for length in lengths:
            queue.push(held.popleft().head, HEADER_BYTES + length)

    def ready(self) -> bool:
        """Whether there is a buffer for `put`."""
        if not self._held:
            self._take(1)
        return bool(self._held)

    def put(self, header: bytes, data: memoryview = NOTHING) -> bool:
        """Send one packet, whose ``data`` fits the buffer; false if there is no buffer."""
        if not self.ready():
            return False
        buffer = self._held.popleft()
        buffer.write_header(header)
        start = 0
        if data:
            views: list[memoryview] = []
            buffer.add_data(views)
            for segment in views:
                part = data[start : start + len(segment)]
                segment[: len(part)] = part
                start += len(part)
        self.queue.push(buffer.head, HEADER_BYTES + start)
        return True

    def release(self) -> None:
        """Give the unused buffers back to the queue, as if they had never been taken."""
        self.queue.unpop(len(self._held))
        self._held.clear()
