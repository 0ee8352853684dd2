"""The back-end's half of a vhost-user session, driven with the messages that QEMU 10 really sends."""

import gc
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nitro_vsock import F_EVENT_IDX, F_VERSION_1
from nitro_vsock.errors import QueueError
from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.backend import Backend, Ring, _RingState
from nitro_vsock.vhost_user.errors import RefusedError, VhostUserError
from nitro_vsock.vhost_user.messages import HEADER, U64, MemoryRegion, Message, ProtocolFeature, Request
from nitro_vsock.virtio.guest_memory import GuestMemory
from vhost_user_strategies import SIZE, unsent

FEATURES = F_EVENT_IDX | F_VERSION_1
FRONTEND = 0x7000_0000


class FakeDevice:
    """Remembers what it was told to do."""

    def __init__(self) -> None:
        self.features = FEATURES
        self.cid = 16
        self.rings: Sequence[Ring | None] | None = None
        self.memory: GuestMemory | None = None
        self.positions = [0, 0, 0]
        self.log: list[str] = []
        self.refuses = False

    def read_config(self) -> bytes:
        return self.cid.to_bytes(8, "little")

    def start(self, memory: GuestMemory, rings: Sequence[Ring | None], features: int) -> None:  # noqa: ARG002
        assert self.rings is None
        if self.refuses:
            raise QueueError("its size is wrong", queue="receive")
        self.memory, self.rings = memory, rings
        self.positions = [ring.next_available if ring else 0 for ring in rings]
        self.log.append("start")

    def stop(self) -> list[int]:
        assert self.rings is not None
        self.memory = self.rings = None
        self.log.append("stop")
        return self.positions

    def reset(self) -> None:
        assert self.rings is None
        self.log.append("reset")

    def lost(self) -> None:
        assert self.rings is None
        self.log.append("lost")


def memory_file(size: int = SIZE) -> int:
    descriptor = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


def event() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def state(index: int, number: int) -> bytes:
    return messages.VRING_STATE.pack(index, number)


class Session:
    """Sends messages to a back-end; makes its arguments shorter, not its behaviour."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.backend = Backend(self.device)

    def __call__(
        self, request: int, payload: bytes = b"", *descriptors: int, need_reply: bool = False
    ) -> bytes:
        """The reply's payload, or b"" if there is no reply."""
        reply = self.backend.receive(Message(request, payload, descriptors, need_reply))
        if reply:
            number, flags, size = HEADER.unpack_from(reply)
            assert (number, flags, size) == (request, 5, len(reply) - HEADER.size)
        return reply[HEADER.size :]

    def realize(self) -> None:
        """What QEMU does before the guest runs."""
        self(Request.GET_FEATURES)
        self(Request.SET_PROTOCOL_FEATURES, self(Request.GET_PROTOCOL_FEATURES))
        self(Request.GET_QUEUE_NUM)
        self(Request.SET_OWNER)
        for index in (0, 1):
            self(Request.SET_VRING_CALL, U64.pack(index), event())
            self(Request.SET_VRING_ERR, U64.pack(index), event())

    def share(self, *, need_reply: bool = True) -> bytes:
        """Two regions of one file with a hole between."""
        table = messages.memory_table(
            [MemoryRegion(0, 0x1000, FRONTEND, 0), MemoryRegion(0x2000, 0x2000, FRONTEND + 0x2000, 0x2000)]
        )
        descriptor = memory_file()
        return self(Request.SET_MEM_TABLE, table, descriptor, os.dup(descriptor), need_reply=need_reply)

    def rings(self, base: int = 0, count: int = 2) -> None:
        """What QEMU does for each ring at DRIVER_OK."""
        for index in range(count):
            place = FRONTEND + 0x2000 + 0x800 * index
            self(Request.SET_VRING_NUM, state(index, 8))
            self(Request.SET_VRING_BASE, state(index, base))
            address = messages.VRING_ADDRESS.pack(index, 0, place, place + 0x200, place + 0x100, 0)
            self(Request.SET_VRING_ADDR, address)
            self(Request.SET_VRING_KICK, U64.pack(index), event())

    def enable(self, value: int = 1) -> None:
        for index in (0, 1):
            self(Request.SET_VRING_ENABLE, state(index, value), need_reply=True)

    def driver_ok(self, base: int = 0, count: int = 2) -> None:
        self(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
        self.share()
        self.rings(base, count)
        self.enable()

    def stop(self) -> list[int]:
        self.enable(0)
        return [messages.VRING_STATE.unpack(self(Request.GET_VRING_BASE, state(i, 0)))[1] for i in (0, 1)]


@pytest.fixture
def session() -> Iterator[Session]:
    before = open_descriptors()
    session = Session()
    yield session
    session.backend.close()
    assert open_descriptors() == before


def test_what_is_offered(session: Session) -> None:
    assert session(Request.GET_FEATURES) == U64.pack(FEATURES | messages.PROTOCOL_FEATURES)
    protocol = ProtocolFeature(U64.unpack(session(Request.GET_PROTOCOL_FEATURES))[0])
    assert protocol >= ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG
    assert session(Request.GET_QUEUE_NUM) == U64.pack(3)


def test_the_configuration_space_is_the_guest_cid(session: Session) -> None:
    asked = messages.CONFIG.pack(0, 8, 0) + bytes(8)
    assert session(Request.GET_CONFIG, asked) == messages.CONFIG.pack(0, 8, 0) + (16).to_bytes(8, "little")


def test_a_part_beyond_the_configuration_space_is_answered_with_nothing(session: Session) -> None:
    reply = session.backend.receive(Message(Request.GET_CONFIG, messages.CONFIG.pack(4, 8, 0) + bytes(8)))
    assert reply == HEADER.pack(Request.GET_CONFIG, 5, 0)


def test_the_sequence_of_qemu_on_pci_starts_the_device(session: Session) -> None:
    session.realize()
    session(Request.SET_VRING_CALL, U64.pack(1), event())  # masked notifiers, before SET_FEATURES
    session(Request.SET_VRING_CALL, U64.pack(0), event())
    session.driver_ok()

    assert session.device.log == ["start"]
    assert session.device.rings is not None
    receive, transmit, events = session.device.rings
    assert receive is not None
    assert transmit is not None
    assert events is None
    assert (receive.layout.descriptor_table, receive.layout.available_ring) == (0x2000, 0x2100)
    assert (transmit.layout.used_ring, transmit.layout.size) == (0x2A00, 8)


def test_the_legacy_features_of_microvm_are_enough(session: Session) -> None:
    session.realize()
    session(Request.SET_FEATURES, U64.pack(F_EVENT_IDX | messages.PROTOCOL_FEATURES))
    session.share()
    session.rings()
    session.enable()
    assert session.device.log == ["start"]


def test_a_third_ring_is_served_if_it_is_there(session: Session) -> None:
    session.realize()
    session.share(need_reply=False)
    session(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
    session.rings(count=3)
    session(Request.SET_VRING_ENABLE, state(2, 1))
    session.enable()
    assert session.device.rings is not None
    assert session.device.rings[2] is not None


def test_without_protocol_features_rings_start_enabled(session: Session) -> None:
    session(Request.SET_FEATURES, U64.pack(FEATURES))
    session.share(need_reply=False)
    session.rings()
    assert session.device.log == ["start"]


def test_a_new_call_descriptor_is_used_at_once_and_loses_no_interrupt(session: Session) -> None:
    session.realize()
    session.driver_ok()
    assert session.device.rings is not None
    ring = session.device.rings[0]
    assert ring is not None
    fresh = event()
    kept = os.dup(fresh)

    session(Request.SET_VRING_CALL, U64.pack(0), fresh)
    assert os.eventfd_read(kept) == 1, "what was signalled on the old descriptor is signalled again"
    ring.call()
    assert os.eventfd_read(kept) == 1
    assert session.device.log == ["start"]
    os.close(kept)


def test_a_call_descriptor_is_not_closed_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number could be another file's by the time of the write."""
    ring = _RingState()
    first, second = os.eventfd(0), os.eventfd(0)
    ring.replace("called", first)
    swap = threading.Thread(target=ring.replace, args=("called", second))
    write = os.eventfd_write

    def slow_write(descriptor: int, value: int) -> None:
        swap.start()
        swap.join(0.1)
        assert swap.is_alive(), "it waits"
        write(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", slow_write)
    ring.call()
    swap.join()
    assert ring.called == second
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    ring.close()


def test_a_ring_without_a_call_descriptor_interrupts_nobody(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session(Request.SET_VRING_CALL, U64.pack(messages.NO_DESCRIPTOR))
    assert session.device.rings is not None
    assert session.device.rings[0] is not None
    session.device.rings[0].call()


def test_stopping_tells_how_far_the_rings_were(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session.device.positions = [5, 9, 0]
    assert session.stop() == [5, 9]
    assert session.device.log == ["start", "stop"]


def test_a_paused_guest_goes_on_with_its_connections(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session.device.positions = [5, 5]
    session.stop()
    session.driver_ok(base=5)
    assert session.device.log == ["start", "stop", "start"]


def test_a_guest_that_was_reset_starts_anew(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session.device.positions = [5, 5]
    session.stop()
    session.driver_ok(base=0)
    assert session.device.log == ["start", "stop", "reset", "start"]


def test_a_guest_that_had_another_back_end_before_is_told(session: Session) -> None:
    session.realize()
    session.driver_ok(base=7)
    assert session.device.log == ["lost", "start"], "what the guest opens once the rings run is not lost"


def test_new_memory_while_rings_run_is_used_without_losing_the_place(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session.device.positions = [3, 4]
    old = session.device.memory
    assert session.share() == U64.pack(0)
    assert session.device.log == ["start", "stop", "start"]
    assert session.device.memory is not old
    assert session.device.positions == [3, 4, 0]


def test_memory_may_come_region_by_region(session: Session) -> None:
    session.realize()
    session(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
    region = bytes(8) + messages.REGION.pack(0, SIZE, FRONTEND, 0)
    assert session(Request.ADD_MEM_REG, region, memory_file(), need_reply=True) == U64.pack(0)
    session.rings()
    session.enable()
    assert session.device.log == ["start"]

    stray = memory_file()
    assert session(Request.REM_MEM_REG, region, stray, need_reply=True) == U64.pack(0)
    assert session.device.log == ["start", "stop"]
    assert session(Request.REM_MEM_REG, region, need_reply=True) == U64.pack(1)


def test_a_reset_of_the_device_forgets_the_guest(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session(Request.RESET_DEVICE)
    assert session.device.log == ["start", "stop", "reset"]


def test_a_reset_stops_rings_that_need_not_be_enabled_as_well(session: Session) -> None:
    session(Request.SET_FEATURES, U64.pack(FEATURES))
    session.share(need_reply=False)
    session.rings()
    session(Request.RESET_OWNER)
    assert session.device.log == ["start", "stop", "reset"]


def test_an_unknown_request_is_refused_only_if_it_wants_an_answer(session: Session) -> None:
    session.realize()
    assert session(99) == b""
    assert session(99, need_reply=True) == U64.pack(1)
    assert session(Request.SET_CONFIG, bytes(20), need_reply=True) == U64.pack(1)


def test_descriptors_that_nobody_expects_are_closed(session: Session) -> None:
    session(Request.SET_OWNER, b"", event(), event())


@pytest.mark.parametrize(
    ("request_number", "payload", "why"),
    [
        (Request.SET_FEATURES, U64.pack(1 << 40), "was not offered"),
        (Request.SET_VRING_NUM, state(0, 2048), "queue size"),
        (Request.SET_VRING_NUM, state(0, 0), "power of two"),
        (Request.SET_VRING_NUM, state(0, 7), "power of two"),
        (Request.SET_VRING_NUM, state(3, 8), "ring 3, there are 3"),
        (Request.SET_VRING_KICK, U64.pack(0), "0 descriptors, must be 1"),
        (Request.SET_VRING_KICK, U64.pack(0x100), "polled"),
        (
            Request.SET_MEM_TABLE,
            messages.memory_table([MemoryRegion(0, 1, 0, 0)]),
            "1 regions and 0 descriptors",
        ),
        (Request.REM_MEM_REG, bytes(40), "never added"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    session: Session, request_number: int, payload: bytes, why: str
) -> None:
    with pytest.raises(RefusedError, match=why):
        session(request_number, payload)
    session.realize()
    assert session(request_number, payload, need_reply=True) == U64.pack(1)


@pytest.mark.parametrize(
    ("region", "why"),
    [
        (MemoryRegion(0, 0, 0, 0), "empty"),
        (MemoryRegion(0, SIZE + 1, 0, 0), "its file has 0x4000 bytes"),
        (MemoryRegion(0, SIZE, 0, 1), "0x4001 are needed"),
        (MemoryRegion((1 << 64) - 1, SIZE, 0, 0), "64-bit"),
        (MemoryRegion(0, SIZE, (1 << 64) - 1, 0), "64-bit"),
        (MemoryRegion(0, SIZE, 0, (1 << 64) - 1), "its file has"),
    ],
)
def test_a_region_that_does_not_fit_its_file_is_refused(
    session: Session, region: MemoryRegion, why: str
) -> None:
    with pytest.raises(RefusedError, match=why):
        session(Request.SET_MEM_TABLE, messages.memory_table([region]), memory_file())


def test_a_region_may_end_with_the_address_space(session: Session) -> None:
    region = messages.SINGLE_REGION.pack(0) + messages.REGION.pack(
        (1 << 64) - SIZE, SIZE, (1 << 64) - SIZE, 0
    )
    session.realize()

    assert session(Request.ADD_MEM_REG, region, memory_file(), need_reply=True) == U64.pack(0)


def test_regions_may_touch_up_to_the_greatest_number_of_them(session: Session) -> None:
    session.realize()
    (slots,) = U64.unpack(session(Request.GET_MAX_MEM_SLOTS))

    answers = [
        session(
            Request.ADD_MEM_REG,
            messages.SINGLE_REGION.pack(0) + messages.REGION.pack(SIZE * index, SIZE, SIZE * index, 0),
            memory_file(),
            need_reply=True,
        )
        for index in range(slots + 1)
    ]

    assert slots == 32
    assert answers == [U64.pack(0)] * slots + [U64.pack(1)]


def test_an_address_right_behind_a_region_is_in_the_next_one(session: Session) -> None:
    session.realize()
    session(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
    for index, guest_address in ((1, 0x8_0000), (0, 0)):
        region = messages.REGION.pack(guest_address, SIZE, FRONTEND + SIZE * index, 0)
        session(Request.ADD_MEM_REG, messages.SINGLE_REGION.pack(0) + region, memory_file())
    for index in (0, 1):
        place = FRONTEND + SIZE + 0x800 * index
        session(Request.SET_VRING_NUM, state(index, 8))
        address = messages.VRING_ADDRESS.pack(index, 0, place, place + 0x200, place + 0x100, 0)
        session(Request.SET_VRING_ADDR, address)
        session(Request.SET_VRING_KICK, U64.pack(index), event())

    session.enable()

    assert session.device.rings is not None
    assert [
        ring and (ring.layout.descriptor_table, ring.next_available) for ring in session.device.rings
    ] == [
        (0x8_0000, 0),
        (0x8_0800, 0),
        None,
    ]


@pytest.mark.parametrize("left_out", [Request.SET_VRING_NUM, Request.SET_VRING_ADDR, Request.SET_VRING_KICK])
def test_rings_start_when_all_is_said_of_them(session: Session, left_out: Request) -> None:
    session.realize()
    session(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
    session.share()
    address = (FRONTEND + 0x3000, FRONTEND + 0x3200, FRONTEND + 0x3100)
    said: dict[Request, tuple[bytes, list[int]]] = {
        Request.SET_VRING_NUM: (state(1, 8), []),
        Request.SET_VRING_ADDR: (messages.VRING_ADDRESS.pack(1, 0, *address, 0), []),
        Request.SET_VRING_KICK: (U64.pack(1), [event()]),
    }
    session.rings(count=1)
    session.enable()
    payload, descriptors = said.pop(left_out)
    for request, (other, others) in said.items():
        session(request, other, *others)
    before = list(session.device.log)

    session(left_out, payload, *descriptors)

    assert before == []
    assert session.device.log == ["start"]


def test_regions_that_overlap_are_refused(session: Session) -> None:
    table = messages.memory_table([MemoryRegion(0, SIZE, 0, 0), MemoryRegion(SIZE - 1, SIZE, SIZE, 0)])
    with pytest.raises(RefusedError, match="overlaps"):
        session(Request.SET_MEM_TABLE, table, memory_file(), memory_file())


def test_memory_that_is_no_file_is_refused(session: Session) -> None:
    with pytest.raises(RefusedError, match="not a file"):
        session(Request.SET_MEM_TABLE, messages.memory_table([MemoryRegion(0, 1, 0, 0)]), event())


def test_shared_memory_can_no_longer_shrink(session: Session) -> None:
    descriptor = memory_file()
    table = messages.memory_table([MemoryRegion(0, SIZE, 0, 0)])
    session(Request.SET_MEM_TABLE, table, os.dup(descriptor))
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_ring_outside_of_memory_ends_the_session(session: Session) -> None:
    session.realize()
    session(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES))
    table = messages.memory_table([MemoryRegion(0, SIZE, 0x1234_0000, 0)])
    session(Request.SET_MEM_TABLE, table, memory_file())
    session.rings()
    session(Request.SET_VRING_ENABLE, state(0, 1))
    with pytest.raises(VhostUserError, match="in no region"):
        session(Request.SET_VRING_ENABLE, state(1, 1))


def test_a_device_that_cannot_start_ends_the_session_with_its_reason(session: Session) -> None:
    session.realize()
    session.device.refuses = True
    with pytest.raises(VhostUserError, match="receive: its size is wrong"):
        session.driver_ok()


def test_a_reply_out_of_nowhere_ends_the_session(session: Session) -> None:
    with pytest.raises(VhostUserError, match="nothing was asked"):
        session.backend.receive(Message(Request.GET_FEATURES, reply=True))


def test_closing_stops_and_forgets(session: Session) -> None:
    session.realize()
    session.driver_ok()
    session.backend.close()
    assert session.device.log == ["start", "stop", "reset"]


def read_end() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


MAKE = {"memory": memory_file, "event": event, "pipe": read_end}


class AnyMessages(RuleBasedStateMachine):
    """Whatever comes is answered or refused; no device starts twice, every descriptor is closed at last."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()  # because what earlier tests left behind is closed when Python finds it, not before
        self.before = open_descriptors()
        self.session = Session()

    @initialize(realized=st.booleans(), running=st.booleans())
    def begin(self, *, realized: bool, running: bool) -> None:
        if realized or running:
            self.session.realize()
        if running:
            self.session.driver_ok()

    @contextmanager
    def may_end(self) -> Iterator[None]:
        """A session that broke is closed, and another begins."""
        try:
            yield
        except VhostUserError as error:
            # From Python 3.13 on an exception that went through a context manager keeps its frames, so the
            # session and its memory, until the garbage collector comes.
            error.__traceback__ = None
            self.session.backend.close()
            self.session = Session()

    @rule(drawn=unsent)
    def any_message(self, drawn: tuple[Message, list[str]]) -> None:
        message, kinds = drawn
        descriptors = [MAKE[kind]() for kind in kinds]
        with self.may_end():
            self.session(message.request, message.payload, *descriptors, need_reply=message.need_reply)

    @rule()
    def start(self) -> None:
        with self.may_end():
            self.session.realize()
            self.session.driver_ok()

    @rule(positions=st.lists(st.integers(0, 65535), min_size=3, max_size=3))
    def stop(self, positions: list[int]) -> None:
        self.session.device.positions = positions
        with self.may_end():
            self.session.stop()

    @invariant()
    def rings_lie_in_memory(self) -> None:
        device = self.session.device
        if device.rings is None or device.memory is None:
            return
        for ring in filter(None, device.rings):
            device.memory.slice(ring.layout.descriptor_table, 1)
            os.fstat(ring.kick)
            ring.call()

    def teardown(self) -> None:
        self.session.backend.close()
        assert self.session.device.rings is None
        assert open_descriptors() == self.before


TestAnyMessages = AnyMessages.TestCase
TestAnyMessages.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("size", [1, 1024])
def test_rings_from_one_descriptor_to_the_limit_are_accepted(session: Session, size: int) -> None:
    session.realize()

    assert session(Request.SET_VRING_NUM, state(0, size), need_reply=True) == U64.pack(0)
