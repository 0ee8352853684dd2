"""The virtio binding: what goes where, in which order, for drivers that behave and those that do not."""

import itertools
from collections import deque
from dataclasses import dataclass, field

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm import Nsm, NsmConfig, VirtioNsm

DESCRIBE = cbor2.dumps("DescribeNSM")
RESPONSE_BYTES = 0x3000


@dataclass
class OfferedChain:
    head: int
    readable: list[memoryview]
    writable: list[memoryview]


@dataclass
class FakeQueue:
    """The device's side of a queue whose driver's side are plain lists."""

    available: deque[OfferedChain | Exception] = field(default_factory=deque)
    pushed: list[tuple[int, int]] = field(default_factory=list)
    used: list[tuple[int, int]] = field(default_factory=list)

    def pop(self) -> OfferedChain | None:
        chain = self.available.popleft() if self.available else None
        if isinstance(chain, Exception):
            raise chain
        return chain

    def push(self, head: int, written: int) -> None:
        self.pushed.append((head, written))

    def publish(self) -> bool:
        self.used += self.pushed
        news = bool(self.pushed)
        self.pushed = []
        return news

    def offer(self, head: int, readable: list[bytes], writable: list[bytearray]) -> None:
        self.available.append(
            OfferedChain(
                head, [memoryview(part) for part in readable], [memoryview(part) for part in writable]
            )
        )


@pytest.fixture
def nsm() -> Nsm:
    return Nsm(NsmConfig(instance_id="i-0123456789abcdef0", enclave_id="019fc8255f07a185"))


def test_request_and_reply_come_back_in_order_with_one_interrupt(nsm: Nsm) -> None:
    queue, reply = FakeQueue(), bytearray(RESPONSE_BYTES)
    queue.offer(1, [DESCRIBE], [])
    queue.offer(0, [], [reply])

    assert VirtioNsm(nsm).process(queue)

    expected = nsm.handle(DESCRIBE)
    assert queue.used == [(1, 0), (0, len(expected))]
    assert reply == expected.ljust(RESPONSE_BYTES, b"\0")


def test_the_device_is_as_the_driver_wants_it(nsm: Nsm) -> None:
    device = VirtioNsm(nsm)

    assert (device.device_id, device.features, device.queue_sizes) == (33, 0, (2,))


def test_nothing_available_is_no_interrupt(nsm: Nsm) -> None:
    assert not VirtioNsm(nsm).process(FakeQueue())


def test_a_request_waits_for_room_for_its_reply(nsm: Nsm) -> None:
    queue, device, reply = FakeQueue(), VirtioNsm(nsm), bytearray(RESPONSE_BYTES)
    queue.offer(1, [DESCRIBE], [])

    assert not device.process(queue)
    queue.offer(0, [], [reply])

    assert device.process(queue)
    assert [head for head, _ in queue.used] == [1, 0]


@given(
    cuts=st.lists(st.integers(0, len(DESCRIBE))),
    room=st.lists(st.integers(0, 300), max_size=20),
    together=st.booleans(),
)
def test_buffers_may_be_split_anywhere(cuts: list[int], room: list[int], together: bool) -> None:  # noqa: FBT001
    nsm = Nsm(NsmConfig())
    edges = [0, *sorted(cuts), len(DESCRIBE)]
    request = [DESCRIBE[start:end] for start, end in itertools.pairwise(edges)]
    reply = [bytearray(size) for size in [*room, RESPONSE_BYTES]]
    queue = FakeQueue()
    if together:
        queue.offer(0, request, reply)
    else:
        queue.offer(1, request, [])
        queue.offer(0, [], reply)

    assert VirtioNsm(nsm).process(queue)

    expected = nsm.handle(DESCRIBE)
    assert queue.used == ([] if together else [(1, 0)]) + [(0, len(expected))]
    assert b"".join(reply).startswith(expected)


@pytest.mark.parametrize(
    ("request_", "error"),
    [([], b"InvalidOperation"), ([b""], b"InvalidOperation"), ([bytes(0x1001)], b"TooLarge")],
)
def test_an_empty_or_long_request_gets_an_error_and_the_device_lives(
    nsm: Nsm, request_: list[bytes], error: bytes
) -> None:
    queue, device = FakeQueue(), VirtioNsm(nsm)
    replies = [bytearray(RESPONSE_BYTES), bytearray(RESPONSE_BYTES)]
    queue.offer(1, request_, [])
    queue.offer(0, [], [replies[0]])
    queue.offer(1, [DESCRIBE], [])
    queue.offer(0, [], [replies[1]])

    assert device.process(queue)
    assert error in replies[0]
    assert replies[1].startswith(nsm.handle(DESCRIBE))


def test_too_little_room_is_refused_before_anything_is_done(nsm: Nsm) -> None:
    queue, reply, before = FakeQueue(), bytearray(64), nsm.state()
    queue.offer(1, [cbor2.dumps({"ExtendPCR": {"index": 16, "data": b"x"}})], [])
    queue.offer(0, [], [reply])

    VirtioNsm(nsm).process(queue)

    assert reply.rstrip(b"\0") == cbor2.dumps({"Error": "BufferTooSmall"})
    assert nsm.state() == before


def test_room_without_a_request_comes_back_empty(nsm: Nsm) -> None:
    queue = FakeQueue()
    queue.offer(0, [], [bytearray(RESPONSE_BYTES)])

    assert VirtioNsm(nsm).process(queue)
    assert queue.used == [(0, 0)]


def test_a_bad_chain_passes_through_and_the_rest_is_served(nsm: Nsm) -> None:
    queue, device, reply = FakeQueue(), VirtioNsm(nsm), bytearray(RESPONSE_BYTES)
    queue.offer(1, [DESCRIBE], [])
    queue.available.append(ValueError("bad chain"))
    queue.offer(0, [], [reply])

    with pytest.raises(ValueError, match="bad chain"):
        device.process(queue)

    assert device.process(queue)
    assert [head for head, _ in queue.used] == [1, 0]


def test_a_reset_forgets_the_request_but_not_the_registers(nsm: Nsm) -> None:
    queue, device, reply = FakeQueue(), VirtioNsm(nsm), bytearray(RESPONSE_BYTES)
    nsm.handle(cbor2.dumps({"LockPCR": {"index": 16}}))
    queue.offer(1, [DESCRIBE], [])
    device.process(queue)
    device.reset()
    queue.offer(0, [], [reply])
    device.process(queue)

    assert queue.used == [(0, 0)]
    assert 16 in nsm.state().locked
