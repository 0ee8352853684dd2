"""The driver's side, for tests: what a guest does with a virtqueue, whether it behaves well or not.

memory = guest_ram()
driver = FakeDriver(memory, queue_size=8)
driver.offer(readable=[b"request"], writable=[64])
...                                     # the device under test serves driver.queue
assert driver.used() == [b"response"]
"""

import itertools
import os
import select
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from nitro_vsock.addresses import HOST_CID, SocketType
from nitro_vsock.device.engine import VsockEngine
from nitro_vsock.device.events import EVENT_BYTES
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Header, Op
from nitro_vsock.device.rings import Vring
from nitro_vsock.virtio.guest_memory import GuestMemory
from nitro_vsock.virtio.split_queue import (
    AVAILABLE_F_NO_INTERRUPT,
    DESCRIPTOR,
    DESCRIPTOR_F_INDIRECT,
    DESCRIPTOR_F_NEXT,
    DESCRIPTOR_F_WRITE,
    USED_F_NO_NOTIFY,
    QueueLayout,
    SplitQueue,
)

PAGE = 4096


def guest_ram(size: int = 1 << 20, *, address: int = 0) -> GuestMemory:
    """Guest memory of one region of ``size`` zero bytes at guest-physical ``address``."""
    return GuestMemory([(address, memoryview(bytearray(size)))])


class UsedChain(NamedTuple):
    """A chain that came back: which one, how long the device says its answer is, and the answer."""

    head: int
    length: int
    written: bytes


class FakeDriver:
    """The driver's side of one split virtqueue.

    Args:
        memory: Guest memory, at least ``space`` bytes of it at ``address``; others may use the rest.
        queue_size: Number of descriptors.
        address: Where the rings begin (a multiple of 4096); the buffers follow them.
        space: How many bytes, rings and buffers together, this driver uses.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        indirect: Whether VIRTIO_F_INDIRECT_DESC is negotiated.
        legacy: Put the used ring where legacy devices expect it (virtio 1.3 §2.7.2): on the next page.
    """

    def __init__(
        self,
        memory: GuestMemory,
        *,
        queue_size: int = 8,
        address: int = 0,
        space: int = 256 * 1024,
        event_idx: bool = False,
        indirect: bool = False,
        legacy: bool = False,
    ) -> None:
        available = address + DESCRIPTOR.size * queue_size
        used = available + 6 + 2 * queue_size
        used = _align(used, PAGE if legacy else 4)
        self.memory = memory
        self.layout: QueueLayout = QueueLayout(queue_size, address, available, used)
        self.event_idx: bool = event_idx
        self.indirect: bool = indirect
        self._queue: SplitQueue | None = None
        self._available = memory.slice(available, 6 + 2 * queue_size).cast("H")
        self._used = memory.slice(used, 6 + 8 * queue_size)
        self._free_descriptors = list(range(queue_size))[::-1]
        first_buffer = used + 6 + 8 * queue_size
        self._free_ranges = [(first_buffer, address + space)]
        self._outstanding: dict[int, _Offered] = {}
        self._last_used = self._last_kick = 0

    @property
    def queue(self) -> SplitQueue:
        """The device's side, made when first asked for."""
        if self._queue is None:
            self._queue = SplitQueue(
                self.memory, self.layout, event_idx=self.event_idx, indirect=self.indirect, name="test queue"
            )
        return self._queue

    @property
    def free_descriptors(self) -> int:
        """How many descriptors no chain uses."""
        return len(self._free_descriptors)

    def offer(
        self,
        *,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        indirect: bool = False,
    ) -> int:
        """Make a chain of these bytes to read, then buffers of these sizes to write, available; its head."""
        count = 1 if indirect else len(readable) + len(writable)
        if not 1 <= count <= len(self._free_descriptors):
            raise IndexError(f"{count} descriptors wanted, {len(self._free_descriptors)} free")
        indices = [self._free_descriptors.pop() for _ in range(count)]
        ranges = [self._allocate(len(data)) for data in readable]
        for (start, end), data in zip(ranges, readable, strict=True):
            self.memory.slice(start, end - start)[:] = data
        ranges += [self._allocate(size) for size in writable]
        writable_ranges = ranges[len(readable) :]
        chained = [
            (start, end - start, DESCRIPTOR_F_WRITE if position >= len(readable) else 0)
            for position, (start, end) in enumerate(ranges)
        ]
        if indirect:
            table = self._allocate(DESCRIPTOR.size * len(chained), alignment=16)
            ranges.append(table)
            for position, (start, length, flags) in enumerate(chained):
                last = position == len(chained) - 1
                following = (flags, 0) if last else (flags | DESCRIPTOR_F_NEXT, position + 1)
                self._write(table[0] + DESCRIPTOR.size * position, start, length, *following)
            self.write_descriptor(indices[0], table[0], table[1] - table[0], DESCRIPTOR_F_INDIRECT, 0)
        else:
            for position, (start, length, flags) in enumerate(chained):
                last = position == len(chained) - 1
                following = (flags, 0) if last else (flags | DESCRIPTOR_F_NEXT, indices[position + 1])
                self.write_descriptor(indices[position], start, length, *following)
        self._outstanding[indices[0]] = _Offered(indices, ranges, writable_ranges)
        self.make_available(indices[0])
        return indices[0]

    def make_available(self, head: int) -> None:
        """Put ``head`` into the available ring and advance its index, whatever the descriptor holds."""
        index = self._available[1]
        self._available[2 + index % self.layout.size] = head
        self._available[1] = (index + 1) & 0xFFFF

    def write_descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        """Write one descriptor of the table as it is, for tests of broken chains."""
        self._write(self.layout.descriptor_table + DESCRIPTOR.size * index, address, length, flags, following)

    def _write(self, place: int, address: int, length: int, flags: int, following: int) -> None:
        DESCRIPTOR.pack_into(self.memory.slice(place, DESCRIPTOR.size), 0, address, length, flags, following)

    def set_available_index(self, index: int) -> None:
        """Write the available ring's index as it is."""
        self._available[1] = index & 0xFFFF

    def used_chains(self) -> list[UsedChain]:
        """The chains that came back since the last call, oldest first; their descriptors are free again."""
        chains = []
        index = self._used[2:4].cast("H")[0]
        while self._last_used != index:
            head, length = struct.unpack_from("<II", self._used, 4 + 8 * (self._last_used % self.layout.size))
            self._last_used = (self._last_used + 1) & 0xFFFF
            offered = self._outstanding.pop(head, _Offered([], [], []))
            written = b"".join(
                bytes(self.memory.slice(start, end - start)) for start, end in offered.writable
            )
            chains.append(UsedChain(head, length, written[:length]))
            self._free_descriptors += reversed(offered.indices)
            for freed in offered.ranges:
                self._release(freed)
        return chains

    def used(self) -> list[bytes]:
        """What the device wrote into each chain that came back since the last call, oldest first."""
        return [chain.written for chain in self.used_chains()]

    def wants_kick(self) -> bool:
        """Whether the device asks to be told of what was made available since the last call (§2.7.10)."""
        old, new = self._last_kick, self._available[1]
        self._last_kick = new
        if old == new:
            return False
        if self.event_idx:
            (event,) = struct.unpack_from("<H", self._used, 4 + 8 * self.layout.size)
            return bool((new - event - 1) & 0xFFFF < (new - old) & 0xFFFF)
        (flags,) = struct.unpack_from("<H", self._used, 0)
        return not flags & USED_F_NO_NOTIFY

    def want_interrupts(self, *, wanted: bool = True) -> None:
        """Ask for an interrupt at the next used chain, or for none."""
        if self.event_idx:
            self._available[2 + self.layout.size] = (self._last_used - (0 if wanted else 1)) & 0xFFFF
        else:
            self._available[0] = 0 if wanted else AVAILABLE_F_NO_INTERRUPT

    def _allocate(self, size: int, *, alignment: int = 1) -> tuple[int, int]:
        for position, (start, end) in enumerate(self._free_ranges):
            first = _align(start, alignment)
            if end - first >= size:
                remains = [(start, first), (first + size, end)]
                self._free_ranges[position : position + 1] = [r for r in remains if r[0] < r[1]]
                return first, first + size
        raise MemoryError(f"this driver has no {size} bytes in one piece; give it more space")

    def _release(self, freed: tuple[int, int]) -> None:
        self._free_ranges = _merged([*self._free_ranges, freed])


class _Offered(NamedTuple):
    indices: list[int]
    ranges: list[tuple[int, int]]
    writable: list[tuple[int, int]]


def _align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        elif start < end:
            merged.append((start, end))
    return merged


class Packet(NamedTuple):
    """A packet that the guest got: its header and what followed it."""

    header: Header
    data: bytes

    @property
    def op(self) -> int:
        """What the packet is for: an `Op`."""
        return self.header.op

    @property
    def op_name(self) -> str:
        """The name of `op`."""
        return next(name for name, number in vars(Op).items() if number == self.header.op)


class FakeGuest:
    """The guest's side of a vsock device: sends any packet, and shows those that come back.

    Args:
        engine: The device under test; rings are attached to it at once.
        queue_size: Descriptors of each ring.
        receive_buffers: Sizes of the segments of each receive buffer; one buffer of such a shape per packet.
        buffers: How many receive buffers to offer; `None`: as many as fit.
        event_idx: Whether VIRTIO_F_EVENT_IDX is negotiated.
        buf_alloc: The guest's window, bytes, as its packets say.
    """

    def __init__(
        self,
        engine: VsockEngine,
        *,
        queue_size: int = 64,
        receive_buffers: Sequence[int] = (HEADER_BYTES + 4096,),
        buffers: int | None = None,
        event_idx: bool = True,
        buf_alloc: int = 256 << 10,
    ) -> None:
        self.engine = engine
        self.cid: int = engine.config.guest_cid
        self.buf_alloc = buf_alloc
        self.interrupts: int = 0
        self.on_interrupt: Callable[[], object] = bool
        """Called for each interrupt."""
        self._shape = list(receive_buffers)
        self._buffers = buffers if buffers is not None else queue_size // len(self._shape)
        space = 16 << 20
        memory = guest_ram(3 * space)

        def driver(index: int) -> FakeDriver:
            place = index * space
            return FakeDriver(memory, queue_size=queue_size, address=place, space=space, event_idx=event_idx)

        self.receive: FakeDriver = driver(0)
        self.transmit: FakeDriver = driver(1)
        self.event: FakeDriver = driver(2)
        self.event.offer(writable=[EVENT_BYTES])
        self.kick_fds: list[int] = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)]
        self._offered = 0
        self._attach()

    def _attach(self) -> None:
        vrings = [
            Vring(driver.queue, kick_fd, self._interrupt)
            for driver, kick_fd in zip((self.receive, self.transmit, self.event), self.kick_fds, strict=True)
        ]
        self.engine.attach(receive=vrings[0], transmit=vrings[1], event=vrings[2])
        self.refill()

    def _interrupt(self) -> None:
        self.interrupts += 1
        self.on_interrupt()

    def close(self) -> None:
        """Detach the rings and close the eventfds."""
        self.engine.detach()
        while self.kick_fds:
            os.close(self.kick_fds.pop())

    def run(self) -> None:
        """Have the device do all that it has to do now."""
        while self.engine.turn() == 0 or select.select([self.engine], [], [], 0)[0]:
            pass

    def refill(self) -> None:
        """Offer receive buffers again in place of those that were used."""
        while self._offered < self._buffers:
            self.receive.offer(writable=self._shape)
            self._offered += 1
        self._kick(0, self.receive)

    def _kick(self, index: int, driver: FakeDriver) -> None:
        if driver.wants_kick():
            os.eventfd_write(self.kick_fds[index], 1)

    def send(
        self,
        op: int,
        guest_port: int,
        host_port: int,
        data: bytes = b"",
        *,
        host_cid: int = HOST_CID,
        pieces: Sequence[int] | None = None,
        run: bool = True,
        **fields: int,
    ) -> None:
        """Send a packet, and have the device serve it.

        Args:
            op: What it is for.
            guest_port: Its source port.
            host_port: Its destination port.
            data: What follows the header.
            host_cid: Its destination CID.
            pieces: Sizes of the descriptors; `None`: one for the header, one for the data.
            run: False: only offer it.
            fields: Header fields that differ from the right ones.
        """
        header = Header(
            self.cid, host_cid, guest_port, host_port, len(data), SocketType.STREAM, op, 0, self.buf_alloc, 0
        )
        packet = header._replace(**fields).pack() + data
        sizes = list(pieces) if pieces is not None else [HEADER_BYTES]
        cuts = [0, *itertools.accumulate(sizes)]
        readable = [packet[a:b] for a, b in itertools.pairwise(cuts)] + [packet[cuts[-1] :]]
        self.transmit.offer(readable=[piece for piece in readable if piece])
        self._kick(1, self.transmit)
        if run:
            self.run()
            self.transmit.used_chains()

    def packets(self) -> list[Packet]:
        """Have the device run, and take the packets that came since the last call; buffers are refilled."""
        self.run()
        self.transmit.used_chains()
        packets: list[Packet] = []
        while chains := self.receive.used_chains():
            self._offered -= len(chains)
            for chain in chains:
                header = Header(*HEADER.unpack_from(chain.written))
                packets.append(Packet(header, chain.written[HEADER_BYTES:]))
            self.refill()
            self.run()
        return packets
