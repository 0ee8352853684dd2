"""Rings that come and go, pauses, threads, saved devices, and a host that lacks something."""

import errno
import gc
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engine_bench import (
    CID,
    PORT,
    Bench,
    data,
    nothing,
    open_descriptors,
    ops,
    readable,
    words,
)
from nitro_vsock import (
    GuestMemory,
    QueueLayout,
    SplitQueue,
    UsageError,
    Vring,
    VsockConfig,
    VsockEngine,
)
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.testing import FakeGuest
from nitro_vsock.virtio import split_queue

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_detach_delivers_what_was_sent_and_gives_buffers_back(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"last words", run=False)
    used = guest.receive.queue.next_available
    bench.engine.detach()
    assert host.recv(100) == b"last words"
    assert host.recv(100) == b""
    assert guest.receive.queue.next_available <= used
    guest._attach()
    with pytest.raises(UsageError, match="attached"):
        guest._attach()


def test_a_transport_reset_is_announced_on_the_event_queue(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    bench.engine.reset_transport()
    assert guest.packets() == [], "the guest ends its connections by itself"
    assert guest.event.used() == [bytes(4)]
    assert host.recv(10) == b""
    bench.engine.reset_transport()
    guest.run()
    assert guest.event.used() == []
    guest.event.offer(writable=[4])
    os.eventfd_write(guest.kick_fds[2], 1)
    guest.run()
    assert guest.event.used() == [bytes(4)]


def test_a_bad_event_buffer_does_not_lose_the_event(bench: Bench) -> None:
    guest = bench.start()
    guest.event.offer(writable=[3])
    guest.event.offer(writable=[4])
    bench.engine.reset_transport()
    guest.run()
    assert guest.event.used() == [bytes(4)], "the buffer that was there from the beginning"

    bench.engine.reset_transport()
    guest.run()

    assert guest.event.used() == [b"", bytes(4)]
    assert bench.engine.counters().bad_chains == 1


def test_a_saved_device_goes_on_in_another_engine_without_its_connections(bench: Bench) -> None:
    guest = bench.start()
    lost = bench.guest_opens()
    lost.send(b"never read")
    guest.packets()
    saved, before = bench.engine.state(), guest.receive.queue.next_available
    bench.engine.close()
    bench.engine = guest.engine = VsockEngine(bench.engine.config, clock=bench.clock)
    bench.stack.callback(bench.engine.close)
    queues = [
        SplitQueue(driver.memory, driver.layout, event_idx=True)
        for driver in (guest.receive, guest.transmit, guest.event)
    ]
    vrings = [Vring(queue, fd, lambda: None) for queue, fd in zip(queues, guest.kick_fds, strict=True)]
    assert saved is not None

    bench.engine.restore(saved, receive=vrings[0], transmit=vrings[1], event=vrings[2])

    assert saved.receive.next_available < before, "buffers that wait in the engine count as not taken"
    guest.run()
    assert guest.event.used() == [bytes(4)], "a transport reset"
    assert bench.engine.counters().connections == 0
    guest.send(Op.RW, 99, 5000, b"of before")
    assert ops(guest.packets()) == [Op.RST]
    with bench.engine.connect(52):
        assert ops(guest.packets()) == [Op.REQUEST]


def test_an_engine_without_rings_has_no_state(bench: Bench) -> None:
    bench.start()
    bench.engine.detach()
    assert bench.engine.state() is None


def test_turn_says_when_it_wants_to_be_called(bench: Bench) -> None:
    bench.start()
    assert bench.engine.turn() is None
    assert not readable(bench.engine)
    bench.guest.send(Op.RW, 1, 2, run=False)
    assert readable(bench.engine)


def test_a_closed_engine_is_quiet(bench: Bench) -> None:
    bench.start()
    bench.engine.close()
    bench.engine.close()
    assert bench.engine.turn() is None
    with bench.engine.connect(52) as host:
        assert host.recv(1) == b""


@pytest.mark.parametrize("pause", [True, False])
def test_events_seen_before_connections_are_lost_are_not_taken_for_those_of_a_later_socket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, pause: bool
) -> None:
    guest = bench.start()
    first, listener, coalescing = bench.guest_opens(5000, 99), bench.listen(6000), bench.engine._coalescing
    look = coalescing._poll
    later: list[socket.socket] = []

    def look_and_lose(wait: float | None, most: int) -> list[tuple[int, int]]:
        """Between seeing that ``first`` is closed and acting on it, another thread detaches or resets."""
        events = look(wait, most)
        monkeypatch.undo()
        if pause:
            bench.engine.detach()
            guest._attach()
        else:
            bench.engine.reset_transport()
        guest.send(Op.REQUEST, 100, 6000, run=False)
        assert bench.engine._rings is not None
        bench.engine._rings._transmitter.batch()
        by_fd = bench.engine._connections.table.by_fd
        assert {fd for fd, _ in events} & set(by_fd), "the number is used again"
        later.append(bench.accept(listener))
        return events

    first.close()
    monkeypatch.setattr(coalescing, "_poll", look_and_lose)
    bench.engine._round(0.0)  # as `run` does it; `turn` lets nobody in between
    later[0].shutdown(socket.SHUT_WR)
    assert guest.packets()[-1].header.flags == Shutdown.SEND


def pause_before_next_events_are_acted_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread pauses the guest, and lets it go on, when the next round has seen what happened."""
    coalescing = bench.engine._coalescing
    look = coalescing._poll

    def look_and_pause(wait: float | None, most: int) -> list[tuple[int, int]]:
        events = look(wait, most)
        assert events
        monkeypatch.undo()
        bench.engine.detach(keep_connections=True)
        bench.guest._attach()
        return events

    monkeypatch.setattr(coalescing, "_poll", look_and_pause)


def test_what_a_host_program_said_just_before_a_pause_is_heard_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.packets()
    pause_before_next_events_are_acted_on(bench, monkeypatch)

    host.send(b"words")
    bench.engine._round(0.0)

    assert data(guest.packets()) == b"words"


def test_whom_a_host_program_asked_for_just_before_a_pause_is_heard_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = bench.start()
    host = bench.dial()
    guest.packets()
    pause_before_next_events_are_acted_on(bench, monkeypatch)

    host.send(b"CONNECT 52\n")
    bench.engine._round(0.0)

    assert ops(guest.packets()) == [Op.REQUEST]


def test_run_serves_in_a_thread_until_it_is_stopped_or_closed(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.run()
    other = VsockEngine(VsockConfig(guest_cid=CID))
    for engine, end in ((bench.engine, bench.engine.stop), (other, other.close)):
        thread = threading.Thread(target=engine.run)
        thread.start()
        end()
        thread.join(10)
        assert not thread.is_alive()


def test_an_interrupt_may_take_a_lock_that_the_machine_holds_while_it_attaches(bench: Bench) -> None:
    """Else: the device waits for the machine's lock with its own held, the machine for the device's."""
    guest = bench.start()
    bench.guest_opens()
    raised = threading.Event()

    def call() -> None:
        other = threading.Thread(target=bench.engine.counters)
        other.start()
        other.join(10)
        assert not other.is_alive(), "the engine's lock is held"
        raised.set()

    guest.on_interrupt = call
    guest.receive.want_interrupts()
    guest.send(Op.CREDIT_REQUEST, 99, 5000)
    assert raised.is_set()


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_guest_hears_that_its_packets_were_taken_while_the_engine_never_sleeps(*, event_idx: bool) -> None:
    with ExitStack() as stack:
        engine = VsockEngine(VsockConfig(guest_cid=CID, spin_us=10_000))
        stack.callback(engine.close)
        guest = FakeGuest(engine, event_idx=event_idx)
        stack.callback(guest.close)
        host = stack.enter_context(engine.connect(52))
        (request,) = guest.packets()
        guest.send(Op.RESPONSE, 52, request.header.src_port)
        guest.packets()
        engine._coalescing.spin_pays = True  # as in `run`, when short sleeps were seen
        guest.transmit.used_chains()
        guest.transmit.want_interrupts()
        before = guest.interrupts
        rounds = 0
        while guest.interrupts == before:
            guest.send(Op.RW, 52, request.header.src_port, b"a lone packet", run=False)
            engine._round(None)
            rounds += 1
            assert rounds < 30
        assert rounds > 1
        assert host.recv(1000) == b"a lone packet" * rounds


def test_a_guest_that_is_paused_hears_that_its_packet_was_taken(bench: Bench) -> None:
    guest = bench.start(spin_us=10_000)
    host = bench.guest_opens()
    guest.packets()
    bench.engine._coalescing.spin_pays = True  # as in `run`, when short sleeps were seen
    guest.transmit.want_interrupts()
    guest.send(Op.RW, 99, 5000, b"a lone packet", run=False)
    before = guest.interrupts
    bench.engine._round(None)
    assert guest.interrupts == before
    bench.engine.detach(keep_connections=True)
    assert guest.interrupts == before + 1
    assert host.recv(100) == b"a lone packet"


def test_no_view_of_guest_memory_outlives_detach(bench: Bench) -> None:
    """Else the mapping could not be closed. The garbage collector must not be what saves us."""
    bench.start()
    bench.engine.detach()
    ram = bytearray(1 << 16)
    with memoryview(ram) as view:
        queues = [
            SplitQueue(GuestMemory([(0, view)]), QueueLayout(8, place, place + 0x100, place + 0x200))
            for place in (0, 0x1000)
        ]
        view[0x1102:0x1104] = b"\xff\xff"
        gc.disable()
        bench.stack.callback(gc.enable)
        kick_fd = bench.guest.kick_fds[0]
        bench.engine.attach(
            receive=Vring(queues[0], kick_fd, nothing), transmit=Vring(queues[1], -1, nothing)
        )
        bench.engine.turn()
        assert bench.engine.failure is not None
        bench.engine.detach()
        del queues
    ram.append(0)  # BufferError if there were views


def test_sixty_drivers_one_after_another_leave_nothing(bench: Bench) -> None:
    bench.start()
    listener = bench.listen(5000)
    bench.guest.close()
    before = open_descriptors()
    for _ in range(60):
        guest = FakeGuest(bench.engine)
        guest.send(Op.REQUEST, 99, 5000)
        assert ops(guest.packets()) == [Op.RESPONSE]
        listener.accept()[0].close()
        guest.close()
        assert open_descriptors() == before


def test_a_paused_guest_finds_its_connections_again(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    bench.engine.detach(keep_connections=True)
    host.send(b"while you were away")
    guest.run()
    guest._attach()
    assert data(guest.packets()) == b"while you were away"
    guest.send(Op.RW, 99, 5000, b"back")
    assert host.recv(10) == b"back"


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_host_without_descriptors_left_is_asked_again_later(bench: Bench) -> None:
    guest = bench.start()
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(5)
        with no_descriptors_left():
            host.connect(str(bench.path))
            host.send(b"CONNECT 52\n")
            delay = bench.engine.turn()
            assert delay, "not at once, and not never"
        bench.clock.now += delay
        assert ops(guest.packets()) == [Op.REQUEST]


def test_a_closed_engine_is_quiet_although_something_was_to_be_due(bench: Bench) -> None:
    bench.start()
    with socket.socket(socket.AF_UNIX) as host:
        with no_descriptors_left():
            host.connect(str(bench.path))
            assert bench.engine.turn()
        bench.engine.close()

        assert bench.engine.turn() is None


def test_a_host_without_epoll_watches_left_is_asked_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, epoll = bench.start(), bench.engine._epoll

    class Full:
        """``fs.epoll.max_user_watches`` is reached."""

        poll, modify = epoll.poll, epoll.modify

        def register(self, *_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(bench.engine._connections.door, "_epoll", Full())
        with socket.socket(socket.AF_UNIX) as host:
            host.settimeout(5)
            host.connect(str(bench.path))
            delay = bench.engine.turn()
            assert delay, "not at once, and not never"
            assert host.recv(1) == b""
        assert bench.engine.counters().half_open == 0
    bench.clock.now += delay
    bench.dial(b"CONNECT 52\n")
    assert ops(guest.packets()) == [Op.REQUEST]


def test_detach_delivers_what_comes_after_a_bad_chain(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start()
    guest.send(Op.REQUEST, 99, PORT)
    guest.packets()
    guest.send(Op.RW, 99, PORT, b"one", run=False)
    guest.transmit.write_descriptor(60, 1 << 50, 10, 0)
    guest.transmit.make_available(60)
    guest.send(Op.RW, 99, PORT, b"two", run=False)
    guest.engine.detach()
    assert ends[0].recv(100) + ends[0].recv(100) == b"onetwo"


def test_a_reset_before_the_rings_are_there_keeps_what_the_guest_opens_then(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start()
    guest.engine.detach()
    guest.engine.reset_transport()
    guest.send(Op.REQUEST, 99, PORT, run=False)
    guest._attach()
    assert words(guest) == [(Op.RESPONSE, b"")]
    assert guest.event.used() == [bytes(4)]
    ends[0].send(b"hello")
    assert words(guest) == [(Op.RW, b"hello")]


def test_a_kick_descriptor_that_is_none_leaves_the_engine_detached(bench: Bench) -> None:
    bench.serve(PORT)
    guest = bench.start()
    guest.engine.detach()
    with tempfile.TemporaryFile() as file:
        receive, transmit = (
            Vring(driver.queue, kick_fd, lambda: None)
            for driver, kick_fd in ((guest.receive, guest.kick_fds[0]), (guest.transmit, file.fileno()))
        )
        with pytest.raises(UsageError, match="cannot wait for kicks"):
            guest.engine.attach(receive=receive, transmit=transmit)
    guest.engine.attach(receive=receive, transmit=transmit._replace(kick_fd=guest.kick_fds[1]))
    guest.send(Op.REQUEST, 99, PORT)
    assert words(guest) == [(Op.RESPONSE, b"")]


def test_a_kick_at_descriptor_0_is_heard(bench: Bench) -> None:
    """A service may have no standard input, and then an eventfd gets its number."""
    guest = bench.start()
    guest.run()
    guest.engine.detach()
    standard_input = os.dup(0)
    os.dup2(guest.kick_fds[1], 0)
    try:
        guest.engine.attach(
            receive=Vring(guest.receive.queue, -1, nothing), transmit=Vring(guest.transmit.queue, 0, nothing)
        )
        guest.run()

        os.eventfd_write(0, 1)

        assert readable(guest.engine)
    finally:
        guest.engine.detach()
        os.dup2(standard_input, 0)
        os.close(standard_input)


@pytest.mark.skipif(not split_queue.__file__.endswith(".py"), reason="compiled code takes no stand-ins")
def test_a_buffer_that_comes_just_before_the_engine_asks_for_kicks_gets_the_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve(PORT)
    guest = bench.start()
    guest.run()
    guest.engine.reset_transport()
    guest.run()
    assert len(guest.event.used()) == 1
    enable = guest.event.queue.enable_notifications

    def late() -> bool:
        if guest.event.free_descriptors == 64:  # once
            guest.event.offer(writable=[4])
        return enable()

    monkeypatch.setattr(guest.event.queue, "enable_notifications", late)
    guest.engine.reset_transport()
    guest.run()
    assert len(guest.event.used()) == 1
