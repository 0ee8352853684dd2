"""The device's side of a split virtqueue (virtio 1.3 §2.7), legacy and modern alike.

The driver offers descriptor chains in the available ring; the device takes them with `pop`, fills or reads
their buffers, and hands them back with `push` and `publish`. All three areas lie in guest memory, which the
guest may rewrite at any time. So every number is read from there once, checked, and only the checked copy
is used; a chain comes out as views of ranges that are inside guest memory whatever the guest does next.

A chain that breaks the rules costs the guest that chain (`ChainError`: it went back with length 0). A ring
that cannot be trusted costs it the queue (`QueueError`, for ever): there is no telling which chains are the
driver's.

The legacy interface differs only in where the driver puts the areas, which is the transport's business.
"""

import platform
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nitro_vsock.errors import ChainError, GuestMemoryError, QueueError, UsageError
from nitro_vsock.guest_memory import GuestMemory

# virtq_desc (virtio 1.3 §2.7.5): addr len flags next
DESCRIPTOR: Final = struct.Struct("<QIHH")
Descriptor = tuple[int, int, int, int]
"""What `DESCRIPTOR` unpacks; named as a type, for compiled code is fast only where it knows them."""
assert DESCRIPTOR.size == 16  # noqa: S101 (a fact of the format, checked at import)
DESCRIPTOR_F_NEXT: Final = 1
DESCRIPTOR_F_WRITE: Final = 2
DESCRIPTOR_F_INDIRECT: Final = 4

# Bytes of the two rings besides their elements: flags, idx and the event word (virtio 1.3 §2.7.6, §2.7.8).
AVAILABLE_ELEMENT_BYTES: Final = 2
USED_ELEMENT_BYTES: Final = 8
RING_HEADER_BYTES: Final = 4
EVENT_BYTES: Final = 2

AVAILABLE_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

QUEUE_SIZE_MAX: Final = 32768
"""What virtio allows (virtio 1.3 §2.7); a transport may offer less."""

INDEX_MAX: Final = 0xFFFF

CHAIN_BYTES_MAX: Final = 1 << 32
"""A longer chain is against the rules (virtio 1.3 §2.7.5), and its length would not fit a used element."""

STRONGLY_ORDERED: Final = platform.machine() in {"x86_64", "AMD64", "i386", "i686"}
"""Whether only a load after a store may pass it, as on x86, so that most barriers are free."""


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """How many descriptors a queue has, and the guest-physical addresses of its three areas."""

    size: int
    descriptor_table: int
    available_ring: int
    used_ring: int


@dataclass(frozen=True, slots=True)
class SplitQueueState:
    """How far a queue was served: what a saved machine keeps of it beside the guest's memory.

    Indices are free-running and 16 bits wide, as in the rings (virtio 1.3 §2.7.6, §2.7.8).

    Raises:
        UsageError: An index does not fit 16 bits.
    """

    next_available: int
    """Index of the entry of the available ring that is taken next."""
    used: int
    """Index behind the last entry of the used ring that was written."""
    published: int
    """The used index that the driver was shown last; after a `SplitQueue.push` it is behind ``used``."""
    broken: str | None = None
    """Why the queue is not served any more; `None` while it is."""

    def __post_init__(self) -> None:
        for name in ("next_available", "used", "published"):
            if not 0 <= getattr(self, name) <= INDEX_MAX:
                raise UsageError(f"a saved queue's {name} is {getattr(self, name)}, indices have 16 bits")


class Chain:
    """A checked descriptor chain: what the device may read, and what it may write."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head: int = head
        self.readable: list[memoryview] = readable
        self.writable: list[memoryview] = writable

    def __repr__(self) -> str:
        readable, writable = sum(map(len, self.readable)), sum(map(len, self.writable))
        return f"<Chain {self.head}: {readable} bytes to read, {writable} to write>"


class SplitQueue:
    """The device's side of one split virtqueue.

    Args:
        memory: Where the rings and the buffers are.
        layout: Size and place of the rings.
        event_idx: VIRTIO_F_EVENT_IDX was negotiated: both sides say with an index when they want to be told.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        next_available: Index of the first entry of the available ring to take (SET_VRING_BASE of vhost). The
            used index goes on from where the ring in memory says it is.
        name: What error messages call this queue.

    Raises:
        QueueError: The size is no power of two, or an area is misaligned or outside of guest memory.
    """

    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        next_available: int = 0,
        name: str = "queue",
    ) -> None:
        size = layout.size
        if sys.byteorder != "little":
            raise QueueError("virtqueues are little-endian, and so must this host be", queue=name)
        if not 1 <= size <= QUEUE_SIZE_MAX or size & (size - 1):
            raise QueueError(f"its size {size} is not a power of two up to {QUEUE_SIZE_MAX}", queue=name)
        self.name = name
        self.size = size
        self.broken: str | None = None
        """Why this queue is of no use any more."""
        self._memory = memory
        self._event_idx = event_idx
        self._indirect = indirect
        event_bytes = EVENT_BYTES if event_idx else 0
        available_bytes = RING_HEADER_BYTES + AVAILABLE_ELEMENT_BYTES * size
        used_bytes = RING_HEADER_BYTES + USED_ELEMENT_BYTES * size
        self._descriptors = self._area(
            "descriptor table", layout.descriptor_table, DESCRIPTOR.size * size, 16
        )
        available = self._area("available ring", layout.available_ring, available_bytes + event_bytes, 2)
        used = self._area("used ring", layout.used_ring, used_bytes + event_bytes, 4)

        # Casts to words: one load or store each, never torn.
        available_words, used_words = available.cast("H"), used.cast("H")
        self._available_flags, self._available_index = available_words[:1], available_words[1:2]
        self._heads = available_words[2 : 2 + size]
        self._used_event = available_words[2 + size :]
        self._used_flags, self._used_index = used_words[:1], used_words[1:2]
        self._used_elements = used[RING_HEADER_BYTES:used_bytes].cast("Q")
        self._available_event = used[used_bytes:].cast("H")

        self._next_available = next_available & 0xFFFF
        self._used = self._published = self._used_index[0]
        barrier = threading.Lock()
        self._acquire, self._release = barrier.acquire, barrier.release

    def _area(self, what: str, address: int, length: int, alignment: int) -> memoryview:
        if address % alignment:
            raise QueueError(f"its {what} at {address:#x} is not aligned to {alignment}", queue=self.name)
        try:
            return self._memory.slice(address, length)
        except GuestMemoryError as error:
            raise QueueError(f"its {what} is outside of memory: {error}", queue=self.name) from None

    @property
    def next_available(self) -> int:
        """Index of the entry of the available ring that `pop` takes next (GET_VRING_BASE of vhost)."""
        return self._next_available

    def state(self) -> SplitQueueState:
        """How far this queue was served; `restore` goes on from there.

        Chains that were popped and not pushed count as taken: `unpop` them first, or their descriptors are
        lost to the driver.
        """
        return SplitQueueState(self._next_available, self._used, self._published, self.broken)

    def restore(self, state: SplitQueueState) -> None:
        """Go on where a queue with this layout, in the same guest memory, was when `state` was asked."""
        self._next_available = state.next_available
        self._used = state.used
        self._published = state.published
        self.broken = state.broken

    def pop(self) -> Chain | None:
        """The next chain that the driver made available; None when there is none.

        Raises:
            ChainError: The chain is bad. It was pushed with length 0 and counts as taken.
            QueueError: The ring is broken, and stays so.
        """
        chains = self.pop_many(1)
        return chains[0] if chains else None

    def pop_many(self, limit: int) -> list[Chain]:
        """Up to ``limit`` chains, fewer when there are no more or a bad one follows.

        Raises:
            ChainError: The first chain is bad; see `pop`.
            QueueError: The ring is broken, and stays so.
        """
        if self.broken is not None:
            raise QueueError(self.broken, queue=self.name)
        first = self._next_available
        waiting = (self._available_index[0] - first) & 0xFFFF
        if not waiting:
            return []
        size = self.size
        if waiting > size:
            raise self._break(f"the driver says {waiting} chains are available, the queue holds {size}")
        if not STRONGLY_ORDERED:
            self._fence()
        heads, mask, table = self._heads, size - 1, self._descriptors
        unpack, regions = DESCRIPTOR.unpack_from, self._memory.regions
        (first_start, first_end, first_view), more = regions[0], DESCRIPTOR_F_NEXT | DESCRIPTOR_F_INDIRECT
        chains: list[Chain] = []
        for position in range(first, first + min(limit, waiting)):
            head = heads[position & mask]
            if head >= size:
                if chains:
                    break  # found again by the next call
                raise self._break(f"the driver made descriptor {head} of {size} available")
            descriptor: Descriptor = unpack(table, head << 4)
            address, length, flags, following = descriptor
            if length and not flags & more:
                # One descriptor: what most receive buffers of Linux are, so worth not calling `_walk`.
                for start, end, view in regions:
                    if start <= address and address + length <= end:
                        segments = [view[address - start : address - start + length]]
                        if flags & DESCRIPTOR_F_WRITE:
                            chains.append(Chain(head, [], segments))
                        else:
                            chains.append(Chain(head, segments, []))
                        break
                else:
                    if chains:
                        break
                    self._refuse(head, str(GuestMemoryError(address, length)))
                continue
            if flags == DESCRIPTOR_F_NEXT and following < size:
                # Two to read, header and data: what most packets of Linux are.
                second: Descriptor = unpack(table, following << 4)
                address2, length2, flags2, _ = second
                if (
                    not flags2 & (more | DESCRIPTOR_F_WRITE)
                    and first_start <= address
                    and address + length <= first_end
                    and first_start <= address2
                    and address2 + length2 <= first_end
                    and length
                    and length2
                ):
                    address -= first_start
                    address2 -= first_start
                    segments = [
                        first_view[address : address + length],
                        first_view[address2 : address2 + length2],
                    ]
                    chains.append(Chain(head, segments, []))
                    continue
            try:
                chains.append(self._walk(head, address, length, flags, following))
            except (ChainError, GuestMemoryError) as error:
                if chains:
                    break
                self._refuse(head, str(error), cause=error)
        self._next_available = (first + len(chains)) & 0xFFFF
        return chains

    def _walk(self, head: int, address: int, length: int, flags: int, following: int) -> Chain:
        """Follow a chain of which the first descriptor was read already."""
        table, entries, indirect = self._descriptors, self.size, False
        unpack, regions = DESCRIPTOR.unpack_from, self._memory.regions
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        count = total = 0
        while True:
            if flags & DESCRIPTOR_F_INDIRECT:
                if not self._indirect:
                    raise self._error(head, "it is indirect, which was not negotiated")
                if indirect:
                    raise self._error(head, "its indirect table refers to another one")
                if flags & DESCRIPTOR_F_NEXT:
                    raise self._error(head, "a descriptor is indirect and has a next one")
                entries, odd = divmod(length, DESCRIPTOR.size)
                if odd or not 1 <= entries <= self.size:
                    raise self._error(head, f"its indirect table is {length} bytes long")
                table, indirect = self._memory.slice(address, length), True
                address, length, flags, following = unpack(table, 0)
                continue
            count += 1
            total += length
            if count > self.size:
                raise self._error(head, f"it has a loop, or more than {self.size} descriptors")
            if length:
                for start, end, view in regions:
                    if start <= address and address + length <= end:
                        segment = view[address - start : address - start + length]
                        break
                else:
                    raise GuestMemoryError(address, length)
                if flags & DESCRIPTOR_F_WRITE:
                    writable.append(segment)
                elif writable:
                    raise self._error(head, "a readable descriptor follows a writable one")
                else:
                    readable.append(segment)
            if not flags & DESCRIPTOR_F_NEXT:
                break
            if following >= entries:
                raise self._error(head, f"it goes on at descriptor {following} of {entries}")
            address, length, flags, following = unpack(table, following << 4)
        if total >= CHAIN_BYTES_MAX:
            raise self._error(head, f"it is {total:#x} bytes long")
        return Chain(head, readable, writable)

    def _error(self, head: int, why: str) -> ChainError:
        return ChainError(why, queue=self.name, head=head)

    def _refuse(self, head: int, why: str, *, cause: Exception | None = None) -> None:
        """Return the bad chain at the front of the ring unused, and say so."""
        self._next_available = (self._next_available + 1) & 0xFFFF
        self.push(head, 0)
        if isinstance(cause, ChainError):
            raise cause
        raise self._error(head, why)

    def _break(self, why: str) -> QueueError:
        self.broken = why  # and not the exception: its traceback would keep guest memory mapped
        return QueueError(why, queue=self.name)

    def unpop(self, count: int) -> None:
        """Make the last ``count`` chains that were popped, and not pushed, available to `pop` again."""
        self._next_available = (self._next_available - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return the chain at ``head``, of which ``written`` bytes were written; not yet visible."""
        self._used_elements[self._used & (self.size - 1)] = head | written << 32
        self._used = (self._used + 1) & 0xFFFF

    def push_unwritten(self, chains: Iterable[Chain]) -> None:
        """Return chains in which nothing was written; not yet visible."""
        elements, mask, used = self._used_elements, self.size - 1, self._used
        for chain in chains:
            elements[used & mask] = chain.head
            used += 1
        self._used = used & 0xFFFF

    def publish(self) -> bool:
        """Make what was pushed visible to the driver; true if it wants an interrupt (virtio 1.3 §2.7.7)."""
        old, new = self._published, self._used
        if old == new:
            return False
        if not STRONGLY_ORDERED:
            self._fence()
        self._used_index[0] = new
        self._published = new
        self._fence()
        if self._event_idx:
            return (new - self._used_event[0] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._available_flags[0] & AVAILABLE_F_NO_INTERRUPT

    def enable_notifications(self) -> bool:
        """Ask the driver for a kick when it makes a chain available (virtio 1.3 §2.7.10).

        True if chains are available now: they may have come before the driver saw the wish, so no kick
        will come for them.
        """
        if self._event_idx:
            self._available_event[0] = self._next_available
        else:
            self._used_flags[0] = 0
        self._fence()
        return self._available_index[0] != self._next_available

    def disable_notifications(self) -> None:
        """Ask the driver for no kicks. A hint: some may come all the same."""
        if not self._event_idx:
            self._used_flags[0] = USED_F_NO_NOTIFY

    def _fence(self) -> None:
        """A full memory barrier: the one thing of the kind that Python has is what a lock does.

        Once around a lock orders everything on x86; elsewhere the second acquisition, which may not pass the
        first release, closes the gap that the one-way barriers of a lock leave.
        """
        self._acquire()
        self._release()
        if not STRONGLY_ORDERED:
            self._acquire()
            self._release()
