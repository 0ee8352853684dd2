"""What a hostile guest may do, made out of bytes: bodies of property tests and of fuzz targets alike."""

import contextlib
import ctypes
import os
import select
import socket
import struct

from nitro_vsock import (
    ChainError,
    GuestMemory,
    QueueError,
    QueueLayout,
    SplitQueue,
    Vring,
    VsockConfig,
    VsockEngine,
    VsockRouter,
)
from nitro_vsock.device.packet import HEADER, Header, Op
from nitro_vsock.testing import FakeGuest
from nitro_vsock.virtio.split_queue import DESCRIPTOR

DESCRIPTOR_BYTES = 16
SIZE = 8
MEMORY = 0x2000
TABLE, AVAILABLE, USED, BUFFERS = 0, 0x100, 0x200, 0x400
HIGH = 0x1_0000_0000
"""Where a second, smaller region of memory is."""
HIGH_BYTES = 0x100
REGIONS = ((0, MEMORY), (HIGH, HIGH + HIGH_BYTES))
ADDRESSES = (0, BUFFERS, BUFFERS + 64, TABLE + 64, MEMORY - 1, MEMORY, HIGH, HIGH + 0x80, HIGH - 1, 2**64 - 1)
LENGTHS = (0, 1, 16, 32, 44, 100, 128, 129, 144, 4096, 2**31, 2**32 - 1)


class Choices:
    """Small numbers out of bytes; 0 when the bytes are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, limit: int) -> int:
        value = int.from_bytes(self._data[self._at : self._at + 1], "little")
        self._at += 1
        return value % limit

    def of(self, values: tuple[int, ...]) -> int:
        return values[self.below(len(values))]

    def number(self, size: int) -> int:
        value = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return value


class RingModel:
    """What the specification says of a split virtqueue's device side, plainly and slowly, over raw memory."""

    def __init__(self, memory: GuestMemory, *, indirect: bool) -> None:
        self.memory, self.indirect = memory, indirect
        self.next = 0
        self.used: list[tuple[int, int]] = []
        self.broken = False

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.slice(address, 2), "little")

    def pop(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]] | str | None:
        """Head, ranges to read and ranges to write; or what is wrong; or None."""
        waiting = (self.word(AVAILABLE + 2) - self.next) & 0xFFFF
        if self.broken or waiting > SIZE:
            self.broken = True
            return "queue"
        if not waiting:
            return None
        head = self.word(AVAILABLE + 4 + 2 * (self.next % SIZE))
        if head >= SIZE:
            self.broken = True
            return "queue"
        self.next = (self.next + 1) & 0xFFFF
        chain = self.chain(head)
        if chain is None:
            self.used.append((head, 0))
            return "chain"
        return head, *chain

    def chain(self, head: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        table, entries, index, inside, total = TABLE, SIZE, head, False, 0
        for _ in range(SIZE + 2):
            address, length, flags, following = DESCRIPTOR.unpack(
                self.memory.slice(table + DESCRIPTOR_BYTES * index, DESCRIPTOR_BYTES)
            )
            if flags & 4:
                fits = length % 16 == 0 and 1 <= length // 16 <= SIZE and self.holds(address, length)
                if not self.indirect or inside or flags & 1 or not fits:
                    return None
                table, entries, index, inside = address, length // 16, 0, True
                continue
            total += 1
            if total > SIZE:
                return None
            if length:
                if not self.holds(address, length) or (writable and not flags & 2):
                    return None
                (writable if flags & 2 else readable).append((address, length))
            if not flags & 1:
                return readable, writable
            if following >= entries:
                return None
            index = following
        return None

    @staticmethod
    def holds(address: int, length: int) -> bool:
        return any(start <= address and address + length <= end for start, end in REGIONS)


class RingDriver:
    """A driver that may write anything anywhere, a device, and the model of it; they must agree."""

    def __init__(self, *, event_idx: bool = False, indirect: bool = False) -> None:
        self.low, self.high = bytearray(MEMORY), bytearray(HIGH_BYTES)
        self.memory = GuestMemory([(0, memoryview(self.low)), (HIGH, memoryview(self.high))])
        layout = QueueLayout(SIZE, TABLE, AVAILABLE, USED)
        self.queue = SplitQueue(self.memory, layout, event_idx=event_idx, indirect=indirect)
        self.model = RingModel(self.memory, indirect=indirect)
        self.event_idx = event_idx

    def write_descriptor(self, place: int, address: int, length: int, flags: int, following: int) -> None:
        table = (TABLE, BUFFERS)[place // SIZE % 2]  # BUFFERS may be used as an indirect table
        DESCRIPTOR.pack_into(self.low, table + 16 * (place % SIZE), address, length, flags, following)

    def make_available(self, head: int) -> None:
        index = int.from_bytes(self.low[AVAILABLE + 2 : AVAILABLE + 4], "little")
        struct.pack_into("<H", self.low, AVAILABLE + 4 + 2 * (index % SIZE), head)
        struct.pack_into("<H", self.low, AVAILABLE + 2, (index + 1) & 0xFFFF)

    def set_index(self, index: int) -> None:
        struct.pack_into("<H", self.low, AVAILABLE + 2, index & 0xFFFF)

    def pop(self, limit: int) -> None:
        """Take chains, and compare each with what the model takes."""
        before = (self.model.next, list(self.model.used), self.model.broken)
        expected = [self.model.pop() for _ in range(limit)]
        good = [chain for chain in expected if isinstance(chain, tuple)]
        stop = next((at for at, chain in enumerate(expected) if not isinstance(chain, tuple)), limit)
        self.model.next, self.model.used, self.model.broken = before
        for _ in range(stop or 1):
            self.model.pop()
        try:
            chains = self.queue.pop_many(limit)
        except ChainError:
            assert expected[0] == "chain"
        except QueueError:
            assert expected[0] == "queue"
        else:
            assert stop or expected[0] is None
            assert len(chains) == stop
            for chain, (head, readable, writable) in zip(chains, good[:stop], strict=True):
                assert chain.head == head
                assert [self.at(segment) for segment in chain.readable] == readable
                assert [self.at(segment) for segment in chain.writable] == writable
                self.queue.push(head, len(writable))
                self.model.used.append((head, len(writable)))
        if not self.model.broken:
            assert self.queue.next_available == self.model.next

    def at(self, segment: memoryview) -> tuple[int, int]:
        """Guest-physical address and length of a view, found by writing to it."""
        for start, ram in ((0, self.low), (HIGH, self.high)):
            if segment.obj is ram:
                # A view knows its object, not its offset; the address of its first byte tells.
                base = memoryview(ram)
                return start + _address(segment) - _address(base), len(segment)
        raise AssertionError("a view of something that is not guest memory")

    def publish(self) -> None:
        """Show what was used; it must be what the model used, in order."""
        self.queue.publish()
        (index,) = struct.unpack_from("<H", self.low, USED + 2)
        assert index == len(self.model.used) & 0xFFFF
        for number, (head, length) in list(enumerate(self.model.used))[-SIZE:]:
            assert struct.unpack_from("<II", self.low, USED + 4 + 8 * (number % SIZE)) == (head, length)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def hostile_ring(data: bytes) -> None:
    """Any driver: chains come out as the specification says, or are refused, and the ring goes on."""
    choices = Choices(data)
    driver = RingDriver(event_idx=bool(choices.below(2)), indirect=bool(choices.below(2)))
    while choices:
        match choices.below(8):
            case 0 | 1 | 2:
                driver.write_descriptor(
                    choices.below(2 * SIZE),
                    choices.of(ADDRESSES),
                    choices.of(LENGTHS),
                    choices.below(8),
                    choices.below(SIZE + 1),
                )
            case 3:
                driver.make_available(choices.below(SIZE))
            case 4:
                driver.pop(1 + choices.below(SIZE))
            case 5:
                driver.publish()
            case 6:
                at = choices.number(2) % (MEMORY - 1)
                if not USED - 1 <= at < BUFFERS - 1:
                    driver.low[at : at + 2] = choices.number(2).to_bytes(2, "little")
            case 7:
                driver.queue.enable_notifications()
                driver.set_index(driver.model.next + choices.below(SIZE + 2))


# The whole device

RING_BYTES = 0x400
CID = 16
PORTS = (1, 2)


class _Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class HostileGuest:
    """A device with a guest that writes what it wants into its rings, and host programs of any behaviour."""

    def __init__(self, *, event_idx: bool) -> None:
        self.ram = bytearray(1 << 17)
        self.memory = GuestMemory([(0, memoryview(self.ram))])
        self.clock = _Time()
        self.hosts: list[socket.socket] = []
        config = VsockConfig(guest_cid=CID, tx_buffer_size=4096, seqpacket=True, connections_max=8)
        self.engine = VsockEngine(config, services=dict.fromkeys(PORTS, self._serve), clock=self.clock)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.event_idx = event_idx
        self.attach()

    def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.hosts.append(sock)

    def attach(self) -> None:
        rings = []
        for index, kick in enumerate(self.kicks):
            place = RING_BYTES * index
            self.ram[place : place + RING_BYTES] = bytes(RING_BYTES)
            layout = QueueLayout(SIZE, place, place + 0x100, place + 0x200)
            queue = SplitQueue(self.memory, layout, event_idx=self.event_idx, indirect=True)
            rings.append(Vring(queue, kick, lambda: None))
        self.engine.attach(receive=rings[0], transmit=rings[1], event=rings[2])

    def offer(self, ring: int, segments: list[tuple[int, int]], flags: int) -> None:
        place = RING_BYTES * ring
        (index,) = struct.unpack_from("<H", self.ram, place + 0x102)
        head = index * len(segments) % SIZE
        for number, (address, length) in enumerate(segments):
            following = (head + number + 1) % SIZE
            more = number < len(segments) - 1
            entry = (address, length, flags | more, following)
            DESCRIPTOR.pack_into(self.ram, place + 16 * ((head + number) % SIZE), *entry)
        struct.pack_into("<H", self.ram, place + 0x104 + 2 * (index % SIZE), head)
        struct.pack_into("<H", self.ram, place + 0x102, (index + 1) & 0xFFFF)
        os.eventfd_write(self.kicks[ring], 1)

    def send(self, header: Header, length: int, cut: int) -> None:
        place = 0x8000
        HEADER.pack_into(self.ram, place, *header)
        self.offer(1, [(place, cut), (place + cut, 44 - cut + length)], 0)

    def settle(self) -> None:
        """Have the device do all there is; it has to come to an end."""
        for _ in range(100):
            busy = self.engine.turn() == 0
            if not busy and not select.select([self.engine], [], [], 0)[0]:
                return
        raise AssertionError("the device does not come to rest")

    def close(self) -> None:
        self.engine.close()
        for sock in self.hosts:
            sock.close()
        for kick in self.kicks:
            os.close(kick)


def hostile_guest(data: bytes) -> None:
    """Any guest, any host programs: nothing raises, nothing spins, nothing is held that should not be."""
    choices = Choices(data)
    guest = HostileGuest(event_idx=bool(choices.below(2)))
    try:
        while choices:
            _act(guest, choices)
        guest.settle()
        counters = guest.engine.counters()
        assert counters.connections <= 8
        assert 0 <= counters.buffered_bytes <= 8 * 4096 * 2
        guest.engine.detach()
        guest.clock.now += 100
        guest.settle()
        counters = guest.engine.counters()
        assert counters.connections == counters.buffered_bytes == 0
    finally:
        guest.close()


def _act(guest: HostileGuest, choices: Choices) -> None:
    match choices.below(12):
        case 0 | 1 | 2 | 3:
            length = choices.of((0, 0, 1, 100, 4096))
            header = Header(
                CID if choices.below(16) else choices.number(8),
                choices.of((2, 3, 2, 3, 4)),
                choices.of((10, 11)),
                choices.of((1, 1, 2, 3)) if choices.below(8) else choices.number(4),
                length if choices.below(8) else choices.number(4),
                choices.of((1, 1, 1, 2, 3)),
                choices.below(9),
                choices.below(4),
                choices.of((0, 1, 4096, 262144, 2**32 - 1)),
                choices.of((0, 1, 100, 4096, 2**31, 2**32 - 1)),
            )
            guest.send(header, length, 44 if choices.below(4) else choices.below(45))
        case 4 | 5:
            guest.offer(0, [(0x10000, choices.of((44, 45, 100, 4140)))], 2)
        case 6:
            at = choices.number(2) % (3 * RING_BYTES)
            guest.ram[at : at + 2] = choices.number(2).to_bytes(2, "little")
            os.eventfd_write(guest.kicks[choices.below(3)], 1)
        case 7 if guest.hosts:
            sock = guest.hosts[choices.below(len(guest.hosts))]
            with contextlib.suppress(OSError):
                sock.send(bytes(choices.of((0, 1, 100, 5000))))
        case 8 if guest.hosts:
            sock = guest.hosts[choices.below(len(guest.hosts))]
            with contextlib.suppress(OSError):
                match choices.below(4):
                    case 0:
                        sock.shutdown(choices.below(3))
                    case 1:
                        sock.close()
                    case _:
                        sock.recv(1 << choices.below(14))
        case 9:
            guest.clock.now += choices.below(40)
        case 10 if not choices.below(8):
            guest.engine.detach(keep_connections=bool(choices.below(2)))
            guest.attach()
        case 11 if not choices.below(8):
            guest.engine.reset_transport()
    if choices.below(4):
        guest.settle()


# Two guests that may connect to each other


class HostileSiblings:
    """Two guests that send what they want to each other, and sometimes accept."""

    def __init__(self) -> None:
        self.clock = _Time()
        router = VsockRouter()
        self.guests: list[FakeGuest] = []
        for cid in (CID, CID + 1):
            config = VsockConfig(guest_cid=cid, tx_buffer_size=4096, seqpacket=True, connections_max=8)
            engine = VsockEngine(config, router=router, clock=self.clock)
            self.guests.append(FakeGuest(engine, queue_size=32, buf_alloc=8192))

    def act(self, choices: Choices) -> None:
        """Let one of them do something."""
        index = choices.below(2)
        guest, other = self.guests[index], self.guests[1 - index]
        match choices.below(10):
            case 0:
                self.clock.now += choices.below(40)
            case 1 if not choices.below(4):
                guest.engine.detach(keep_connections=bool(choices.below(2)))
                guest._attach()
            case 2 | 3 | 4:
                for packet in guest.packets():
                    header = packet.header
                    if packet.op == Op.REQUEST and choices.below(4):
                        ends = (header.dst_port, header.src_port)
                        kind = header.type
                        guest.send(Op.RESPONSE, *ends, host_cid=header.src_cid, type=kind, run=False)
            case _ if guest.transmit.free_descriptors >= 4:
                op = choices.of((Op.REQUEST, Op.RW, Op.RW, Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.RST))
                data = bytes(choices.of((0, 1, 100, 4000))) if op == Op.RW else b""
                # The second guest's ports are the first one's, the other way around: so they hit connections.
                ends = (choices.of(PORTS), 10) if index == 0 else (10, choices.of(PORTS))
                kind, flags, taken = choices.of((1, 2)), choices.below(4), choices.of((0, 0, 100, 5000))
                cid = other.cid
                guest.send(op, *ends, data, host_cid=cid, run=False, type=kind, flags=flags, fwd_cnt=taken)
            case _:
                guest.run()
                guest.transmit.used_chains()

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
            guest.engine.close()


def hostile_siblings(data: bytes) -> None:
    """Any two guests: nothing raises, and nothing is held when they are gone."""
    choices = Choices(data)
    pair = HostileSiblings()
    try:
        while choices:
            pair.act(choices)
        for guest in pair.guests:
            guest.engine.detach()
        pair.clock.now += 100
        for guest in pair.guests:
            guest.run()
        for guest in pair.guests:
            counters = guest.engine.counters()
            assert counters.connections == counters.buffered_bytes == 0
            assert counters.bad_chains == 0
    finally:
        pair.close()
