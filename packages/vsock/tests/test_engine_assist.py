"""The guest's own thread serves the rings: at kicks, and while the guest waits."""

import os
import socket
import threading
from contextlib import suppress

import pytest

from engine_bench import CID, PORT, Bench, ops, readable
from nitro_vsock import VsockConfig, VsockEngine
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Header, Op, Shutdown
from nitro_vsock.testing import FakeGuest


def connect(bench: Bench) -> tuple[FakeGuest, socket.socket]:
    """A guest with a connection that wants interrupts, and the host's end; all else is dealt with."""
    guest = bench.start()
    host = bench.guest_opens(PORT)
    guest.run()
    guest.transmit.used_chains()
    for driver in (guest.transmit, guest.receive):
        driver.want_interrupts()
    guest.interrupts = 0
    return guest, host


def write(guest: FakeGuest, data: bytes = b"x", *, op: int = Op.RW) -> bool:
    """The guest's driver offers a packet, and wants to hear when it was taken; returns whether it kicks."""
    with suppress(BlockingIOError):
        os.eventfd_read(guest.kick_fds[1])
    guest.send(op, 99, PORT, data, run=False)
    try:
        os.eventfd_read(guest.kick_fds[1])
    except BlockingIOError:
        return False
    return True


def test_a_kick_is_served_at_once_and_the_interrupt_for_it_waits(bench: Bench) -> None:
    guest, host = connect(bench)
    write(guest, b"hello")

    bench.engine.assist(halted=False)

    assert host.recv(100) == b"hello"
    assert len(guest.transmit.used_chains()) == 1
    assert bench.engine.holds
    assert guest.interrupts == 0

    bench.engine.release()
    assert not bench.engine.holds
    assert guest.interrupts == 1


def test_an_answer_interrupts_for_what_was_taken_as_well(bench: Bench) -> None:
    guest, host = connect(bench)
    write(guest)
    bench.engine.assist(halted=False)
    host.send(b"answer")

    bench.engine.assist(halted=True)

    assert guest.interrupts == 1
    assert not bench.engine.holds
    assert [packet.data for packet in guest.packets()] == [b"answer"]


def test_a_guest_that_sends_much_hears_of_its_descriptors_at_once(bench: Bench) -> None:
    guest, _ = connect(bench)
    for _ in range(16):
        write(guest)

    bench.engine.assist(halted=True)

    assert guest.interrupts == 1
    assert not bench.engine.holds


def test_an_interrupt_is_held_back_for_a_bounded_number_of_packets(bench: Bench) -> None:
    guest, _ = connect(bench)

    sent = 0
    while not guest.interrupts:
        write(guest)
        sent += 1
        bench.engine.assist(halted=False)
        assert sent <= 32

    assert not bench.engine.holds


def test_a_guest_that_waits_gets_much_data_with_one_interrupt(bench: Bench) -> None:
    guest, host = connect(bench)
    host.send(bytes(50_000))
    before = bench.engine.counters().interrupts

    bench.engine.assist(halted=True)

    assert sum(chain.length - HEADER_BYTES for chain in guest.receive.used_chains()) == 50_000
    assert guest.interrupts == 1
    assert bench.engine.counters().interrupts == before + 1


def test_a_guest_that_gets_more_and_more_data_goes_on(bench: Bench) -> None:
    guest, host = connect(bench)
    host.send(bytes(200_000))

    bench.engine.assist(halted=True)

    assert guest.interrupts == 1
    assert readable(bench.engine), "there is more to do"


def test_what_the_host_says_waits_at_a_kick_until_the_guest_halts(bench: Bench) -> None:
    guest, host = connect(bench)
    host.send(b"from the host")
    write(guest, b"from the guest")

    bench.engine.assist(halted=False)

    assert host.recv(100) == b"from the guest"
    assert guest.receive.used_chains() == []
    bench.engine.assist(halted=True)
    assert [packet.data for packet in guest.packets()] == [b"from the host"]


def test_after_a_kick_there_are_no_more_until_the_guest_halts(bench: Bench) -> None:
    guest, host = connect(bench)
    assert write(guest, b"1")
    bench.engine.assist(halted=False)
    assert not write(guest, b"2")
    assert not write(guest, b"3")

    assert bench.engine.rest(), "there is something to take"
    bench.engine.assist(halted=True)

    assert host.recv(100) == b"123"
    assert not bench.engine.rest()
    assert write(guest, b"4")


def test_after_a_turn_there_are_kicks_again(bench: Bench) -> None:
    guest, _ = connect(bench)
    write(guest)
    bench.engine.assist(halted=False)

    guest.run()

    assert write(guest)


def test_a_report_of_credit_and_the_packet_behind_it_need_one_kick(bench: Bench) -> None:
    guest, host = connect(bench)
    write(guest, b"", op=Op.CREDIT_UPDATE)
    bench.engine.assist(halted=False)
    bench.engine.rest()

    first = write(guest, b"", op=Op.CREDIT_UPDATE)
    second = write(guest, b"data")
    bench.engine.assist(halted=False)

    assert not first
    assert second
    assert host.recv(100) == b"data"


def test_a_guest_that_reports_no_credit_any_more_kicks_for_every_packet_again(bench: Bench) -> None:
    guest, host = connect(bench)
    write(guest, b"", op=Op.CREDIT_UPDATE)
    bench.engine.assist(halted=False)
    bench.engine.rest()
    assert not write(guest, b"without a kick")

    assert bench.engine.rest()
    bench.engine.assist(halted=True)

    assert host.recv(100) == b"without a kick"
    assert write(guest)


def test_a_guest_that_is_asked_for_a_connection_kicks_with_its_answer(bench: Bench) -> None:
    guest, _ = connect(bench)
    write(guest, b"", op=Op.CREDIT_UPDATE)
    bench.engine.assist(halted=False)
    host = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
    host.connect(str(bench.path))
    host.send(b"CONNECT 52\n")
    bench.engine.assist(halted=True)
    (chain,) = guest.receive.used_chains()
    request = Header(*HEADER.unpack_from(chain.written))

    guest.send(Op.RESPONSE, 52, request.src_port, run=False)
    kicks = os.eventfd_read(guest.kick_fds[1])
    bench.engine.assist(halted=False)

    assert kicks == 1
    assert host.recv(100) == b"OK 52\n"


def test_the_end_of_what_the_guest_has_closed_waits_for_the_next_interrupt(bench: Bench) -> None:
    guest, _ = connect(bench)
    guest.send(Op.SHUTDOWN, 99, PORT, flags=Shutdown.BOTH, run=False)
    bench.engine.assist(halted=True)
    ends = guest.interrupts

    guest.send(Op.REQUEST, 100, PORT, run=False)
    bench.engine.assist(halted=True)

    assert ends == 0
    assert guest.interrupts == 1
    assert ops(guest.packets()) == [Op.RST, Op.RESPONSE]
    assert not bench.engine.holds


def test_the_end_of_what_the_guest_has_closed_comes_alone_if_nothing_else_does(bench: Bench) -> None:
    guest, _ = connect(bench)
    guest.send(Op.SHUTDOWN, 99, PORT, flags=Shutdown.BOTH, run=False)
    bench.engine.assist(halted=True)

    bench.engine.release()

    assert guest.interrupts == 1
    assert ops(guest.packets()) == [Op.RST]


def test_an_end_that_was_told_alone_is_not_told_again(bench: Bench) -> None:
    guest, host = connect(bench)
    other = bench.guest_opens(PORT + 1, guest_port=100)
    guest.receive.want_interrupts()
    guest.send(Op.SHUTDOWN, 100, PORT + 1, flags=Shutdown.BOTH, run=False)
    bench.engine.assist(halted=True)
    bench.engine.release()
    guest.interrupts = 0
    guest.receive.want_interrupts(wanted=False)

    host.send(b"data")
    bench.engine.assist(halted=True)

    assert other.recv(1) == b""
    assert guest.interrupts == 0


@pytest.mark.parametrize("flags", [0, Shutdown.SEND], ids=["a refusal", "an end while the guest listens"])
def test_a_program_of_the_guest_that_waits_hears_of_an_end_at_once(bench: Bench, flags: int) -> None:
    guest, host = connect(bench)
    if flags:
        guest.send(Op.SHUTDOWN, 99, PORT, flags=flags, run=False)
        bench.engine.assist(halted=True)
        host.close()
    else:
        guest.send(Op.REQUEST, 100, PORT + 1, run=False)

    bench.engine.assist(halted=True)

    assert guest.interrupts == 1
    assert not bench.engine.holds


def test_a_round_of_a_busy_engine_is_left_to_the_thread_that_has_it(bench: Bench) -> None:
    guest, host = connect(bench)
    write(guest, b"later")
    locked, done = threading.Event(), threading.Event()

    def turn() -> None:
        with bench.engine._lock:
            locked.set()
            done.wait()

    other = threading.Thread(target=turn)
    other.start()
    locked.wait()
    bench.engine.assist(halted=False)
    done.set()
    other.join()

    assert readable(bench.engine)
    guest.run()
    assert host.recv(100) == b"later"


def test_a_deadline_earlier_than_promised_is_told_once(bench: Bench) -> None:
    bench.start(connect_timeout_s=2.0)
    assert bench.engine.turn() is None
    first, second = (socket.socketpair() for _ in range(2))
    bench.engine.adopt(first[1], 52)

    assert bench.engine.assist(halted=True)
    bench.engine.adopt(second[1], 52)
    assert not bench.engine.assist(halted=True)

    assert bench.engine.turn() == pytest.approx(2.0)
    bench.clock.now += 2.0
    bench.engine.turn()
    assert first[0].recv(1) == b""
    for end in (first[0], second[0]):
        end.close()


def test_a_ring_that_the_guest_broke_fails_the_engine(bench: Bench) -> None:
    guest, _ = connect(bench)
    guest.transmit.set_available_index(1000)

    bench.engine.assist(halted=False)

    assert bench.engine.failure is not None
    assert not bench.engine.rest()


def test_an_engine_without_rings_rests() -> None:
    engine = VsockEngine(VsockConfig(guest_cid=CID))

    assert not engine.rest()
    assert not engine.assist(halted=True)
    engine.close()
    assert not engine.assist(halted=True)


def knock(bench: Bench, count: int) -> list[socket.socket]:
    """So many programs ask for the guest's port, and nobody has looked yet."""
    programs = []
    for _ in range(count):
        program = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
        program.connect(str(bench.path))
        program.send(b"CONNECT 52\n")
        programs.append(program)
    return programs


def test_a_guest_hears_of_programs_that_come_together_by_one_interrupt(bench: Bench) -> None:
    guest, _ = connect(bench)
    knock(bench, 8)

    bench.engine.assist(halted=True)

    assert guest.interrupts == 1
    assert ops(guest.packets()) == 8 * [Op.REQUEST]


@pytest.mark.parametrize("count", [1, 2, 17, 18, 49, 50])
def test_no_program_is_left_at_the_door(bench: Bench, count: int) -> None:
    guest, _ = connect(bench)
    knock(bench, count)

    while readable(bench.engine):
        bench.engine.assist(halted=True)

    assert ops(guest.packets()) == count * [Op.REQUEST]


def test_data_is_moved_while_ever_more_programs_come(bench: Bench) -> None:
    guest, host = connect(bench)
    knock(bench, 100)
    host.send(b"hello")

    bench.engine.assist(halted=True)

    assert b"hello" in [packet.data for packet in guest.packets()]
