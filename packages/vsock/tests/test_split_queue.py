"""The device's side of the virtqueue against the driver's side, with every rule a chain can break."""

import mmap
import struct
from typing import get_type_hints

import pytest

from nitro_vsock import (
    ChainError,
    GuestMemory,
    GuestMemoryError,
    QueueError,
    QueueLayout,
    SplitQueue,
    SplitQueueState,
    UsageError,
    VsockState,
)
from nitro_vsock.testing import FakeDriver, guest_ram
from nitro_vsock.virtio.split_queue import DESCRIPTOR_F_INDIRECT, DESCRIPTOR_F_NEXT, DESCRIPTOR_F_WRITE

BUFFER = 0x40000


def read(segments: list[memoryview]) -> bytes:
    return b"".join(segments)


@pytest.fixture(params=["legacy", "modern", "event_idx", "indirect"])
def driver(request: pytest.FixtureRequest) -> FakeDriver:
    kind = request.param
    return FakeDriver(
        guest_ram(), legacy=kind == "legacy", event_idx=kind == "event_idx", indirect=kind == "indirect"
    )


def test_what_the_driver_offers_is_read_and_what_is_written_comes_back(driver: FakeDriver) -> None:
    for round_ in range(20):  # goes around the ring
        driver.offer(readable=[b"re", b"quest"], writable=[3, 100], indirect=driver.indirect)
        chain = driver.queue.pop()
        assert chain is not None
        assert read(chain.readable) == b"request"
        assert [len(segment) for segment in chain.writable] == [3, 100]
        chain.writable[0][:], chain.writable[1][:2] = b"ans", b"wr"
        driver.queue.push(chain.head, 5)
        assert driver.used() == [], f"visible before publish in round {round_}"
        driver.queue.publish()
        assert driver.used() == [b"answr"]
        assert driver.queue.pop() is None


def test_pop_many_takes_what_is_there_up_to_the_limit() -> None:
    driver = FakeDriver(guest_ram())
    for number in range(5):
        driver.offer(readable=[bytes([number])])
    assert [read(chain.readable) for chain in driver.queue.pop_many(3)] == [b"\0", b"\1", b"\2"]
    assert [read(chain.readable) for chain in driver.queue.pop_many(3)] == [b"\3", b"\4"]
    assert driver.queue.pop_many(3) == []


def test_unpopped_chains_are_popped_again() -> None:
    driver = FakeDriver(guest_ram())
    for number in range(3):
        driver.offer(readable=[bytes([number])])
    driver.queue.pop_many(3)
    driver.queue.unpop(2)
    assert driver.queue.next_available == 1
    assert [read(chain.readable) for chain in driver.queue.pop_many(3)] == [b"\1", b"\2"]


def test_a_queue_goes_on_where_the_one_before_stopped() -> None:
    driver = FakeDriver(guest_ram())
    for number in range(3):
        driver.offer(readable=[bytes([number])])
    first = driver.queue
    taken = first.pop()
    assert taken is not None
    first.push(taken.head, 0)
    first.publish()

    second = SplitQueue(driver.memory, driver.layout, next_available=first.next_available)
    for chain in second.pop_many(8):
        second.push(chain.head, 0)
    second.publish()

    assert [chain.head for chain in driver.used_chains()] == [0, 1, 2]


def test_zero_length_descriptors_are_allowed_wherever_they_point() -> None:
    driver = FakeDriver(guest_ram())
    driver.write_descriptor(0, 2**64 - 1, 0, DESCRIPTOR_F_NEXT, 1)
    driver.write_descriptor(1, BUFFER, 4, 0)
    driver.write_descriptor(2, 2**63, 0, DESCRIPTOR_F_WRITE)
    driver.make_available(0)
    driver.make_available(2)
    first, second = driver.queue.pop_many(2)
    assert [len(segment) for segment in first.readable] == [4]
    assert second.readable == second.writable == []


# name, the descriptors of the table, part of what the error says
BROKEN_CHAINS = [
    ("outside", [(0x10_0000, 1, 0, 0)], "holds 0x1 bytes at 0x100000"),
    ("over the end", [(0xF_FFFF, 2, 0, 0)], "holds 0x2 bytes at 0xfffff"),
    ("wraps around", [(2**64 - 1, 2, 0, 0)], "no region"),
    ("huge", [(BUFFER, 0xFFFF_FFFF, DESCRIPTOR_F_WRITE, 0)], "0xffffffff"),
    ("outside, second", [(BUFFER, 1, DESCRIPTOR_F_NEXT, 1), (2**40, 1, 0, 0)], "no region"),
    ("over the end, first", [(0xF_FFFF, 2, DESCRIPTOR_F_NEXT, 1), (BUFFER, 1, 0, 0)], "0x2 bytes at 0xfffff"),
    (
        "over the end, second",
        [(BUFFER, 1, DESCRIPTOR_F_NEXT, 1), (0xF_FFFF, 2, 0, 0)],
        "0x2 bytes at 0xfffff",
    ),
    (
        "over the end, third",
        [(BUFFER, 1, DESCRIPTOR_F_NEXT, 1), (BUFFER, 1, DESCRIPTOR_F_NEXT, 2), (0xF_FFFF, 2, 0, 0)],
        "0x2 bytes at 0xfffff",
    ),
    ("next is out of range", [(BUFFER, 1, DESCRIPTOR_F_NEXT, 8)], "descriptor 8 of 8"),
    ("loop of one", [(BUFFER, 1, DESCRIPTOR_F_NEXT, 0)], "loop"),
    (
        "loop of two",
        [(BUFFER, 1, DESCRIPTOR_F_NEXT, 1), (BUFFER, 0, DESCRIPTOR_F_NEXT, 0)],
        "loop",
    ),
    (
        "readable after writable",
        [(BUFFER, 1, DESCRIPTOR_F_NEXT | DESCRIPTOR_F_WRITE, 1), (BUFFER, 1, 0, 0)],
        "readable descriptor follows",
    ),
]
BROKEN_INDIRECT = [
    ("empty table", [(BUFFER, 0, DESCRIPTOR_F_INDIRECT, 0)], "0 bytes long"),
    ("odd table", [(BUFFER, 17, DESCRIPTOR_F_INDIRECT, 0)], "17 bytes long"),
    ("table larger than the queue", [(BUFFER, 16 * 9, DESCRIPTOR_F_INDIRECT, 0)], "144 bytes long"),
    ("table outside", [(0xF_FFF8, 16, DESCRIPTOR_F_INDIRECT, 0)], "no region"),
    ("table with a next", [(BUFFER, 16, DESCRIPTOR_F_INDIRECT | DESCRIPTOR_F_NEXT, 1)], "has a next one"),
    ("table in a table", [(0, 16, DESCRIPTOR_F_INDIRECT, 0)], "refers to another"),
]


@pytest.mark.parametrize(
    ("descriptors", "message"), [row[1:] for row in BROKEN_CHAINS], ids=[row[0] for row in BROKEN_CHAINS]
)
@pytest.mark.parametrize("indirect", [False, True])
def test_a_broken_chain_goes_back_unused_and_the_queue_goes_on(
    descriptors: list[tuple[int, int, int, int]], message: str, *, indirect: bool
) -> None:
    refuse_and_go_on(FakeDriver(guest_ram(), indirect=indirect), descriptors, message)


@pytest.mark.parametrize(
    ("descriptors", "message"), [row[1:] for row in BROKEN_INDIRECT], ids=[row[0] for row in BROKEN_INDIRECT]
)
def test_a_broken_indirect_chain_goes_back_unused(
    descriptors: list[tuple[int, int, int, int]], message: str
) -> None:
    refuse_and_go_on(FakeDriver(guest_ram(), indirect=True), descriptors, message)
    refuse_and_go_on(FakeDriver(guest_ram()), descriptors, "not negotiated")


def refuse_and_go_on(driver: FakeDriver, descriptors: list[tuple[int, int, int, int]], message: str) -> None:
    for index, descriptor in enumerate(descriptors):
        driver.write_descriptor(index, *descriptor)
    driver.write_descriptor(6, BUFFER, 2, 0)
    driver.make_available(6)
    driver.make_available(0)
    driver.make_available(6)

    assert [chain.head for chain in driver.queue.pop_many(8)] == [6], "the good one before it"
    with pytest.raises(ChainError, match=message) as caught:
        driver.queue.pop_many(8)
    assert caught.value.head == 0
    assert [chain.head for chain in driver.queue.pop_many(8)] == [6], "the good one after it"
    assert driver.queue.next_available == 3

    driver.queue.publish()
    assert [(chain.head, chain.length) for chain in driver.used_chains()] == [(0, 0)]


def test_more_available_than_the_queue_holds_breaks_it_for_good() -> None:
    driver = FakeDriver(guest_ram())
    driver.set_available_index(9)
    with pytest.raises(QueueError, match="9 chains are available, the queue holds 8"):
        driver.queue.pop()
    driver.set_available_index(0)
    with pytest.raises(QueueError):
        driver.queue.pop()


def test_a_head_out_of_range_breaks_the_queue_after_the_chains_before_it() -> None:
    driver = FakeDriver(guest_ram())
    driver.offer(readable=[b"good"])
    driver.make_available(8)
    assert len(driver.queue.pop_many(8)) == 1
    with pytest.raises(QueueError, match="descriptor 8 of 8"):
        driver.queue.pop_many(8)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (QueueLayout(0, 0, 0x1000, 0x2000), "size 0"),
        (QueueLayout(3, 0, 0x1000, 0x2000), "size 3"),
        (QueueLayout(65536, 0, 0x1000, 0x2000), "size 65536"),
        (QueueLayout(8, 8, 0x1000, 0x2000), "descriptor table at 0x8 is not aligned to 16"),
        (QueueLayout(8, 0, 0x1001, 0x2000), "available ring at 0x1001 is not aligned to 2"),
        (QueueLayout(8, 0, 0x1000, 0x2002), "used ring at 0x2002 is not aligned to 4"),
        (QueueLayout(8, 0x1000_0000, 0x1000, 0x2000), "descriptor table is outside"),
        (QueueLayout(8, 0, 0xF_FFF0, 0x2000), "available ring is outside"),
        (QueueLayout(8, 0, 0x1000, 2**64 - 4), "used ring is outside"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: QueueLayout, message: str) -> None:
    with pytest.raises(QueueError, match=message):
        SplitQueue(guest_ram(), layout)


class Rings:
    """Rings of four descriptors, with every place as the specification has it (virtio 1.3 §2.7)."""

    def __init__(self) -> None:
        self.ram = bytearray(0x2000)
        self.memory = GuestMemory([(0x1_0000, memoryview(self.ram))])
        self.layout = QueueLayout(4, 0x1_0000, 0x1_0100, 0x1_0200)

    def queue(self, *, event_idx: bool = False) -> SplitQueue:
        return SplitQueue(self.memory, self.layout, event_idx=event_idx)

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.ram, 16 * index, address, length, flags, following)

    def offer(self, *heads: int) -> None:
        (index,) = struct.unpack_from("<H", self.ram, 0x102)
        for position, head in enumerate(heads, index):
            struct.pack_into("<H", self.ram, 0x104 + 2 * (position % 4), head)
        struct.pack_into("<H", self.ram, 0x102, index + len(heads))

    def used(self) -> tuple[int, list[tuple[int, int]]]:
        """The used ring's index, and its elements: heads and lengths."""
        (index,) = struct.unpack_from("<H", self.ram, 0x202)
        return index, list(struct.iter_unpack("<II", self.ram[0x204:0x224]))


def test_descriptors_and_rings_are_where_the_specification_has_them() -> None:
    rings = Rings()
    rings.ram[0x800:0x80B] = b"hello world"
    rings.descriptor(0, 0x1_0900, 1, 0)
    rings.descriptor(1, 0x1_0A00, 8, 2)  # to write
    rings.descriptor(2, 0x1_0800, 6, 1, 3)  # more follows
    rings.descriptor(3, 0x1_0806, 5, 0)
    rings.offer(1, 2)
    queue = rings.queue()

    answer, request = queue.pop_many(9)
    assert [len(part) for part in answer.writable] == [8]
    answer.writable[0][:4] = b"pong"
    queue.push(answer.head, 4)
    queue.push(request.head, 0)
    queue.publish()

    assert read(request.readable) == b"hello world"
    assert rings.ram[0xA00:0xA08] == b"pong\0\0\0\0"
    assert rings.used() == (2, [(1, 4), (2, 0), (0, 0), (0, 0)])


def test_buffers_may_be_all_of_a_region_of_memory() -> None:
    rings = Rings()
    low, high = bytearray(64), bytearray(64)
    regions = [(0x100, memoryview(low)), (0x1_0000, memoryview(rings.ram)), (0x2_0000, memoryview(high))]
    rings.descriptor(0, 0x100, 64, 0)
    rings.descriptor(1, 0x2_0000, 64, 2)
    rings.descriptor(2, 0x1_0000, 0x2000, 1, 3)
    rings.descriptor(3, 0x1_0000, 0x2000, 0)
    rings.offer(0, 1, 2)

    chains = SplitQueue(GuestMemory(regions), rings.layout).pop_many(9)

    assert [(read(chain.readable), read(chain.writable)) for chain in chains] == [
        (bytes(low), b""),
        (b"", bytes(high)),
        (bytes(rings.ram) * 2, b""),
    ]


def test_an_indirect_table_is_taken_where_it_was_negotiated() -> None:
    for features, taken in ((0, False), (1 << 29, False), (1 << 28, True)):
        rings = Rings()
        rings.descriptor(1, 0x1_0400, 64, 4)
        for number in range(4):  # as many as the queue has
            struct.pack_into("<QIHH", rings.ram, 0x400 + 16 * number, 0x1_0800, 1, number < 3, number + 1)
        rings.offer(1)
        queue = SplitQueue.negotiated(rings.memory, rings.layout, features)

        if taken:
            (chain,) = queue.pop_many(9)
            assert (chain.head, len(chain.readable)) == (1, 4)
        else:
            with pytest.raises(ChainError, match="not negotiated"):
                queue.pop_many(9)


def test_a_queue_that_was_not_set_up_is_refused() -> None:
    with pytest.raises(QueueError, match="did not set it up"):
        SplitQueue.negotiated(Rings().memory, None, 0)


def test_flags_say_whether_interrupts_and_kicks_are_wanted() -> None:
    rings = Rings()
    queue = SplitQueue.negotiated(rings.memory, rings.layout, 1 << 28)
    wanted = []
    for flags in (0, 1, 2):  # 2 has no meaning yet
        struct.pack_into("<H", rings.ram, 0x100, flags)
        queue.push(0, 0)
        wanted.append(queue.publish())

    queue.disable_notifications()
    disabled = rings.ram[0x200:0x202]
    queue.enable_notifications()

    assert wanted == [True, False, True]
    assert disabled == b"\1\0"
    assert rings.ram[0x200:0x202] == b"\0\0"


@pytest.mark.parametrize(("event", "wanted"), [(1, False), (2, True), (3, True), (4, False), (0xFFFF, False)])
def test_an_event_index_says_from_which_chain_on_interrupts_are_wanted(event: int, *, wanted: bool) -> None:
    rings = Rings()
    queue = SplitQueue.negotiated(rings.memory, rings.layout, 1 << 29)
    for _ in range(2):
        queue.push(0, 0)
    queue.publish()
    struct.pack_into("<H", rings.ram, 0x10C, event)

    for _ in range(2):
        queue.push(0, 0)

    assert queue.publish() is wanted


def test_an_event_index_says_from_which_chain_on_kicks_are_wanted() -> None:
    rings = Rings()
    rings.offer(0, 1, 2)
    queue = rings.queue(event_idx=True)
    for index in range(3):
        rings.descriptor(index, 0x1_0800, 1, 0)
    queue.pop_many(9)

    assert not queue.enable_notifications(silent=4)

    assert struct.unpack_from("<H", rings.ram, 0x224) == (7,)
    assert rings.ram[0x200:0x202] == b"\0\0"


def test_chains_in_which_nothing_was_written_go_back_all_around_the_ring() -> None:
    rings = Rings()
    for index in range(4):
        rings.descriptor(index, 0x1_0800, 1, 0)
    queue = rings.queue()
    for heads in ((3, 2, 1), (0, 1, 2)):
        rings.offer(*heads)
        queue.push_unwritten(queue.pop_many(9))
        queue.publish()

    assert rings.used() == (6, [(1, 0), (2, 0), (1, 0), (0, 0)])


@pytest.mark.parametrize("size", [1, 2, 32768])
def test_any_power_of_two_up_to_32768_is_a_size(size: int) -> None:
    ram = bytearray(16 << 20)
    struct.pack_into("<QIHH", ram, 0, 0x100_0000 - 8, 8, 0, 0)
    struct.pack_into("<HHH", ram, 0x20_0000, 0, 1, 0)
    queue = SplitQueue(GuestMemory([(0, memoryview(ram))]), QueueLayout(size, 0, 0x20_0000, 0x40_0000))

    (chain,) = queue.pop_many(9)

    assert [len(part) for part in chain.readable] == [8]


def test_a_chain_may_have_as_many_descriptors_as_the_queue() -> None:
    rings = Rings()
    for index in range(4):
        rings.descriptor(index, 0x1_0800 + index, 1, index < 3, index + 1)
    rings.offer(0)

    (chain,) = rings.queue().pop_many(9)

    assert len(chain.readable) == 4


def test_interrupts_as_flags_say() -> None:
    driver = FakeDriver(guest_ram())
    assert not driver.queue.publish(), "nothing to tell"
    for wanted in (True, False, True):
        driver.want_interrupts(wanted=wanted)
        driver.queue.push(driver.offer(writable=[1]), 0)
        assert driver.queue.publish() is wanted


def test_interrupts_as_used_event_says() -> None:
    driver = FakeDriver(guest_ram(), event_idx=True)
    heads = [driver.offer(writable=[1]) for _ in range(5)]
    driver.want_interrupts()  # at the first
    driver.queue.push(heads[0], 0)
    driver.queue.push(heads[1], 0)
    assert driver.queue.publish()
    driver.queue.push(heads[2], 0)
    assert not driver.queue.publish(), "the driver has not asked again"
    driver.used()
    driver.want_interrupts()
    driver.queue.push(heads[3], 0)
    assert driver.queue.publish()


def test_some_chains_may_come_without_a_kick() -> None:
    driver = FakeDriver(guest_ram(), event_idx=True)
    assert not driver.queue.enable_notifications(silent=1)

    driver.offer(readable=[b"a"])
    first = driver.wants_kick()
    driver.offer(readable=[b"b"])
    second = driver.wants_kick()

    assert (first, second) == (False, True)
    assert driver.queue.has_chains
    driver.queue.pop_many(2)
    assert not driver.queue.has_chains


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_only_when_asked_for(*, event_idx: bool) -> None:
    driver = FakeDriver(guest_ram(), event_idx=event_idx)
    assert not driver.queue.enable_notifications()
    driver.offer(readable=[b"a"])
    assert driver.wants_kick()
    driver.queue.disable_notifications()
    driver.offer(readable=[b"b"])
    assert not driver.wants_kick()
    assert driver.queue.enable_notifications(), "two chains came that brought no kick"
    driver.queue.pop_many(2)
    assert not driver.queue.enable_notifications()
    driver.offer(readable=[b"c"])
    assert driver.wants_kick()


def test_indices_wrap_at_16_bits() -> None:
    driver = FakeDriver(guest_ram(), queue_size=4, event_idx=True)
    for number in range(0x10000 + 8):
        driver.want_interrupts()
        driver.offer(readable=[b"x"])
        chain = driver.queue.pop()
        assert chain is not None
        driver.queue.push(chain.head, 0)
        assert driver.queue.publish(), number
        assert len(driver.used_chains()) == 1


def test_a_driver_uses_its_space_to_the_last_byte_and_says_when_there_is_none() -> None:
    rings = 8 * 16 + (6 + 2 * 8) + 2 + (6 + 8 * 8)  # two bytes align the used ring
    fits = 0x1000 - rings
    driver = FakeDriver(guest_ram(), space=0x1000)

    with pytest.raises(MemoryError, match=f"no {fits + 1} bytes in one piece"):
        driver.offer(readable=[bytes(fits + 1)])
    head = driver.offer(readable=[bytes(fits)])
    with pytest.raises(MemoryError, match="no 1 bytes"):
        driver.offer(readable=[b"x"])
    driver.queue.push(head, 0)
    driver.queue.publish()

    assert len(driver.used_chains()) == 1
    driver.offer(readable=[bytes(fits)])


def test_memory_has_holes_and_no_range_crosses_one() -> None:
    low, high = bytearray(0x1000), bytearray(0x2000)
    memory = GuestMemory([(0, memoryview(low)), (0x1_0000_0000, memoryview(high))])
    memory.slice(0x1_0000_1000, 4)[:] = b"high"
    memory.slice(0xFFC, 4)[:] = b"low!"
    assert high[0x1000:0x1004] == b"high"
    assert low[0xFFC:] == b"low!"
    assert len(memory.slice(0x1000, 0)) == 0
    for address, length in [(0xFFD, 4), (0x1000, 1), (0xFFFF_FFFF, 2), (0, 0x1001), (0, -1)]:
        with pytest.raises(GuestMemoryError) as caught:
            memory.slice(address, length)
        assert (caught.value.address, caught.value.length) == (address, length)


def test_regions_of_memory_may_touch() -> None:
    low, high = bytearray(16), bytearray(16)
    memory = GuestMemory([(16, memoryview(high)), (0, memoryview(low))])

    memory.slice(15, 1)[:] = b"<"
    memory.slice(16, 1)[:] = b">"

    assert low[15:] + high[:1] == b"<>"


def test_memory_refuses_what_it_cannot_be_made_of() -> None:
    with pytest.raises(UsageError, match="overlap"):
        GuestMemory([(0, memoryview(bytearray(16))), (15, memoryview(bytearray(16)))])
    with pytest.raises(UsageError, match="writable"):
        GuestMemory([(0, memoryview(bytes(16)))])
    whole = memoryview(bytearray(16))
    for other in (whole.cast("H"), whole[::2], whole.cast("B", (4, 4))):
        with pytest.raises(UsageError, match="bytes"):
            GuestMemory([(0, other)])


def test_a_queue_goes_on_where_a_saved_one_was_between_push_and_publish() -> None:
    driver = FakeDriver(guest_ram(), event_idx=True)
    driver.want_interrupts()
    for number in range(3):
        driver.offer(readable=[bytes([number])], writable=[4])
    first, second = driver.queue.pop_many(2)
    driver.queue.push(first.head, 0)
    driver.queue.publish()
    driver.queue.push(second.head, 0)

    saved = driver.queue.state()
    again = SplitQueue(driver.memory, driver.layout, event_idx=True)
    again.restore(saved)

    assert saved == SplitQueueState(next_available=2, used=2, published=1)
    assert again.state() == saved
    driver.want_interrupts()
    again.publish()
    assert [chain.head for chain in driver.used_chains()] == [first.head, second.head]
    chain = again.pop()
    assert chain is not None
    assert read(chain.readable) == b"\2"


def test_the_types_of_saved_states_are_known_compiled_or_not() -> None:
    assert get_type_hints(SplitQueueState)["broken"] == (str | None)
    assert get_type_hints(VsockState)["event"] == (SplitQueueState | None)


def test_a_queue_that_was_broken_when_it_was_saved_stays_broken() -> None:
    driver = FakeDriver(guest_ram())
    driver.set_available_index(1000)
    with pytest.raises(QueueError):
        driver.queue.pop()
    again = SplitQueue(driver.memory, driver.layout)

    again.restore(driver.queue.state())

    with pytest.raises(QueueError, match="1000"):
        again.pop()


@pytest.mark.parametrize("name", ["next_available", "used", "published"])
@pytest.mark.parametrize("index", [-1, 0x10000])
def test_a_saved_index_that_no_ring_can_have_is_refused(name: str, index: int) -> None:
    queue = FakeDriver(guest_ram()).queue
    before = queue.state()
    indices = {"next_available": 0, "used": 0xFFFF, "published": 0, name: index}

    with pytest.raises(UsageError, match=f"{name} is {index}"):
        queue.restore(SplitQueueState(**indices))  # type: ignore[arg-type]
    assert queue.state() == before


@pytest.mark.parametrize(("last", "fits"), [((1 << 30) - 1, True), (1 << 30, False)])
def test_a_chain_has_less_than_4_gib(last: int, *, fits: bool) -> None:
    """The length of a longer one would not fit a used element (virtio 1.3 §2.7.8)."""
    low, high = guest_ram(), mmap.mmap(-1, 1 << 30)  # never touched, so it takes no memory
    memory = GuestMemory([(0, low.regions[0][2]), (1 << 32, memoryview(high))])
    driver = FakeDriver(memory)
    for index, length in enumerate((1 << 30, 1 << 30, 1 << 30, last)):
        driver.write_descriptor(index, 1 << 32, length, DESCRIPTOR_F_NEXT if index < 3 else 0, index + 1)
    driver.make_available(0)

    if fits:
        chain = driver.queue.pop()
        assert chain is not None
        assert sum(map(len, chain.readable)) == (1 << 32) - 1
    else:
        with pytest.raises(ChainError, match="0x100000000 bytes long"):
            driver.queue.pop()
