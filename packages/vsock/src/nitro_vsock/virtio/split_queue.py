"""The device's side of a split virtqueue (virtio 1.3 §2.7), legacy and modern alike.

The driver offers descriptor chains in the available ring. The device takes them with `pop`, fills or reads
their buffers, and hands them back with `push` and `publish`. All three areas lie in guest memory, which the
guest may rewrite at any time. So every number is read from there once and checked, and only the checked copy
is used. A chain comes out as views of ranges that are inside guest memory whatever the guest does next.

A chain that breaks the rules costs the guest that chain: it goes back with length 0, and `ChainError` tells
the device. A ring that cannot be trusted costs the guest the queue: `QueueError` is raised then and on every
later use, because nobody can tell which chains the driver means.

The legacy interface differs only in where the driver puts the areas, which is the transport's business.
"""

import struct
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from nitro_vsock.errors import ChainError, GuestMemoryError, QueueError
from nitro_vsock.virtio.barrier import STRONGLY_ORDERED, Barrier
from nitro_vsock.virtio.features import F_EVENT_IDX, F_INDIRECT_DESC
from nitro_vsock.virtio.guest_memory import GuestMemory
from nitro_vsock.virtio.queue_state import SplitQueueState

# virtq_desc (virtio 1.3 §2.7.5): addr len flags next
DESCRIPTOR: Final = struct.Struct("<QIHH")
Descriptor = tuple[int, int, int, int]
"""What `DESCRIPTOR` unpacks. The name is a type, because compiled code is fast only where it knows the
types."""
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

CHAIN_BYTES_MAX: Final = 1 << 32
"""A longer chain is against the rules (virtio 1.3 §2.7.5), and its length would not fit a used element."""


class QueueLayout(NamedTuple):
    """How many descriptors a queue has, and the guest-physical addresses of its three areas."""

    size: int
    descriptor_table: int
    available_ring: int
    used_ring: int


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
        event_idx: Whether `F_EVENT_IDX` was negotiated.
        indirect: Whether `F_INDIRECT_DESC` was negotiated.
        next_available: Index of the first entry of the available ring to take (SET_VRING_BASE of vhost). The
            used index goes on from where the ring in guest memory says it is.
        name: What error messages call this queue.

    Raises:
        QueueError: The size is not a power of two, or an area is misaligned or outside of guest memory.
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
        """Why this queue cannot be used any more; `None` while it can."""
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

        # Casts to words, because an access to an element of such a view is one load or store of its size, so
        # the driver never sees half an index.
        available_words, used_words = available.cast("H"), used.cast("H")
        self._available_flags, self._available_index = available_words, available_words[1:]
        self._heads, self._used_event = available_words[2:], available_words[2 + size :]
        self._used_flags, self._used_index = used_words, used_words[1:]
        self._used_elements = used[RING_HEADER_BYTES:used_bytes].cast("Q")
        self._available_event = used[used_bytes:].cast("H")

        self._next_available = next_available & 0xFFFF
        self._used = self._published = self._used_index[0]
        self._barrier = Barrier()

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

    @classmethod
    def negotiated(
        cls,
        memory: GuestMemory,
        layout: QueueLayout | None,
        features: int,
        *,
        next_available: int = 0,
        name: str = "queue",
    ) -> Self:
        """The queue that a driver has set up, working as driver and device have agreed.

        Args:
            memory: Where the rings and the buffers are.
            layout: Size and place of the rings; `None` if the driver did not say.
            features: The feature bits that were negotiated, as masks (see `nitro_vsock.virtio.features`).
            next_available: Index of the first entry of the available ring to take.
            name: What error messages call this queue.

        Raises:
            QueueError: The driver did not set it up, or it cannot be used.
        """
        if layout is None:
            raise QueueError("the driver did not set it up", queue=name)
        return cls(
            memory,
            layout,
            event_idx=features & F_EVENT_IDX != 0,
            indirect=features & F_INDIRECT_DESC != 0,
            next_available=next_available,
            name=name,
        )

    def state(self) -> SplitQueueState:
        """How far this queue was served; `restore` goes on from there.

        Chains that were popped and not pushed count as taken. `unpop` them first, or the driver never gets
        their descriptors back.
        """
        return SplitQueueState(self._next_available, self._used, self._published, self.broken)

    def restore(self, state: SplitQueueState) -> None:
        """Go on where a queue with this layout, in the same guest memory, was when `state` was asked.

        Raises:
            UsageError: The state cannot be a queue's.
        """
        state.check()
        self._next_available = state.next_available
        self._used = state.used
        self._published = state.published
        self.broken = state.broken

    def pop(self) -> Chain | None:
        """The next chain that the driver made available; `None` when there is none.

        Raises:
            ChainError: The chain is bad. It was pushed with length 0 and counts as taken.
            QueueError: The ring is broken, now and for ever.
        """
        chains = self.pop_many(1)
        return chains[0] if chains else None

    def pop_many(self, limit: int) -> list[Chain]:
        """Up to ``limit`` chains, fewer when there are no more or a bad one follows.

        This is the hottest loop of the package. It takes the two forms of chain that Linux makes for nearly
        every packet without calling `_walk`, which would be half of the time.

        Raises:
            ChainError: The first chain is bad. It was pushed with length 0 and counts as taken.
            QueueError: The ring is broken, now and for ever.
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
            self._barrier.full()  # what follows must not be read before the index that announced it
        heads, mask, table = self._heads, size - 1, self._descriptors
        unpack, regions = DESCRIPTOR.unpack_from, self._memory.regions
        (first_start, first_end, first_view), more = regions[0], DESCRIPTOR_F_NEXT | DESCRIPTOR_F_INDIRECT
        chains: list[Chain] = []
        for position in range(first, first + min(limit, waiting)):
            head = heads[position & mask]
            if head >= size:
                if chains:
                    break  # the good ones first; the next call meets this one at the front
                raise self._break(f"the driver made descriptor {head} of {size} available")
            descriptor: Descriptor = unpack(table, head << 4)
            address, length, flags, following = descriptor
            if length and not flags & more:
                # One descriptor: what most receive buffers of Linux are.
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
                # Two to read, header and data: what most packets of Linux are. Only the largest region is
                # tried here, because `_walk` finds the others and says what is wrong.
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
        """Follow a chain whose first descriptor was read already.

        Raises:
            ChainError: The chain breaks a rule of virtio 1.3 §2.7.5.
            GuestMemoryError: A buffer, or the indirect table, is outside of guest memory.
        """
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
            # A chain is bounded by the queue's size, so that one with a loop comes to an end (virtio 1.3
            # §2.7.5).
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
        """Return the bad chain at the front of the ring unused, and raise a `ChainError` that says so."""
        self._next_available = (self._next_available + 1) & 0xFFFF
        self.push(head, 0)
        if isinstance(cause, ChainError):
            raise cause
        raise self._error(head, why)

    def _break(self, why: str) -> QueueError:
        self.broken = why  # only the text, because an exception's traceback would keep guest memory mapped
        return QueueError(why, queue=self.name)

    def unpop(self, count: int) -> None:
        """Have `pop` return the last ``count`` chains once more. None of them may have been pushed."""
        self._next_available = (self._next_available - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return the chain at ``head`` with ``written`` bytes in it. The driver sees it after `publish`."""
        self._used_elements[self._used & (self.size - 1)] = head | written << 32
        self._used = (self._used + 1) & 0xFFFF

    def push_unwritten(self, chains: Iterable[Chain]) -> None:
        """Return chains in which nothing was written. The driver sees them after `publish`."""
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
            self._barrier.full()  # the elements must be there before the index that announces them
        self._used_index[0] = new
        self._published = new
        # The driver stores its wish and then looks at our index; we store the index and then look at its
        # wish. Without a barrier both could miss the other's store, and the driver would wait for ever.
        self._barrier.full()
        if self._event_idx:
            return (new - self._used_event[0] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._available_flags[0] & AVAILABLE_F_NO_INTERRUPT

    @property
    def has_chains(self) -> bool:
        """Whether `pop` would return something, or raise."""
        return self._available_index[0] != self._next_available

    def enable_notifications(self, *, silent: int = 0) -> bool:
        """Ask the driver for a kick when it makes a chain available (virtio 1.3 §2.7.10).

        Args:
            silent: How many chains may come without a kick, if the driver can count (`F_EVENT_IDX`).

        Returns:
            True if chains are available now. They may have come before the driver saw the wish, and then no
            kick comes for them, so take them before you sleep.
        """
        if self._event_idx:
            self._available_event[0] = (self._next_available + silent) & 0xFFFF
        else:
            self._used_flags[0] = 0
        self._barrier.full()
        return self.has_chains

    def disable_notifications(self) -> None:
        """Ask the driver for no kicks. This is only a hint, and some may come all the same."""
        if not self._event_idx:
            self._used_flags[0] = USED_F_NO_NOTIFY
