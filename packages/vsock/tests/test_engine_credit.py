"""Flow control: the guest's credit and ours, and small packets."""

import os
from typing import TYPE_CHECKING

import pytest

from engine_bench import PORT, WINDOW, Bench, data, drain, ops, readable, words
from nitro_vsock.device.credit_wait import STALL_PROBE_S
from nitro_vsock.device.packet import Op, Shutdown

if TYPE_CHECKING:
    from nitro_vsock.testing import Packet

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_slow_host_program_does_not_block_the_ring(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    fast = bench.guest_opens(6000, 100)
    for _ in range(4):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    guest.send(Op.RW, 100, 6000, b"others go on")
    assert fast.recv(100) == b"others go on"


@pytest.mark.parametrize("size", [1001, 3000, 4093])
def test_a_batch_that_the_socket_takes_a_part_of_loses_nothing(bench: Bench, size: int) -> None:
    guest = bench.start(queue_size=256)
    host = bench.guest_opens()
    sent = bytearray()
    for first in range(0, WINDOW // size, 60):
        for number in range(first, min(first + 60, WINDOW // size)):
            piece = bytes([number % 251]) * size
            sent += piece
            guest.send(Op.RW, 99, 5000, piece, run=False)
        guest.run()
        guest.transmit.used_chains()
    assert bench.engine.counters().buffered_bytes > 0

    assert drain(host, guest, len(sent)) == sent


def test_a_host_program_that_was_slow_once_has_room_for_the_window(bench: Bench) -> None:
    bench.start()
    host = bench.guest_opens()
    held = []
    for _ in range(2):
        for _ in range(4):
            bench.guest.send(Op.RW, 99, 5000, bytes(WINDOW // 4))
        held.append(bench.engine.counters().buffered_bytes)
        left = WINDOW
        while left:
            left -= len(host.recv(left))
            bench.guest.packets()
    assert held[0] > 0
    assert held[1] == 0


def test_credit_comes_back_as_the_host_program_reads(bench: Bench) -> None:
    guest = bench.start(tx_buffer_size=1 << 20)
    host = bench.guest_opens()
    for _ in range(16):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    assert guest.packets()[-1].header.fwd_cnt < 1 << 20
    drain(host, guest, 1 << 20)
    update = guest.packets()[-1]
    assert (update.op, update.header.fwd_cnt) == (Op.CREDIT_UPDATE, 1 << 20)


@pytest.mark.parametrize("window", [4096, 16 << 10, 64 << 10, 256 << 10])
def test_a_guest_with_a_small_window_of_its_own_never_waits_in_vain(bench: Bench, window: int) -> None:
    """Linux has no more on its way than its own buf_alloc, and sends no CREDIT_REQUEST."""
    guest = bench.start()
    guest.buf_alloc = window
    host = bench.guest_opens()
    sent = known = 0
    for _ in range(200):
        room = min(window, WINDOW) - (sent - known)
        assert room > 0, f"stuck after {sent} bytes"
        guest.send(Op.RW, 99, 5000, bytes(room))
        sent += room
        drain(host, guest, room)
        known = max([known, *(packet.header.fwd_cnt for packet in guest.packets())])


def test_a_credit_request_is_answered(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"12345")
    guest.send(Op.CREDIT_REQUEST, 99, 5000)
    (update,) = guest.packets()
    assert (update.op, update.header.fwd_cnt, update.header.buf_alloc) == (Op.CREDIT_UPDATE, 5, WINDOW)


def test_no_more_is_sent_than_the_guest_has_room_for(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=10_000)
    payload = os.urandom(30_000)
    host.sendall(payload)
    got = guest.packets()
    assert data(got) == payload[:10_000]
    assert ops(got)[-1] == Op.CREDIT_REQUEST
    assert not readable(bench.engine), "no spinning"
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=10_000, fwd_cnt=10_000)
    assert data(guest.packets()) == payload[10_000:20_000]
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=5_000, fwd_cnt=12_000)
    assert data(guest.packets()) == b"", "the window shrank"
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=100_000, fwd_cnt=20_000)
    assert data(guest.packets()) == payload[20_000:]


@pytest.mark.parametrize("fwd_cnt", [1, 0x8000_0000, 0xFFFF_FFFF])
def test_a_guest_that_took_what_it_was_not_sent_gains_nothing(bench: Bench, fwd_cnt: int) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.CREDIT_UPDATE, 99, 5000, buf_alloc=1000, fwd_cnt=fwd_cnt)
    host.sendall(bytes(5000))
    assert len(data(guest.packets())) == 1000


def test_small_packets_are_metered(bench: Bench) -> None:
    """Linux counts some 600 bytes a packet against buf_alloc, and resets the connection that has too many."""
    guest = bench.start()
    host = bench.guest_opens()
    got = []
    for _ in range(390):
        host.send(b"x" * 200)
        got += guest.packets()
    in_flight = len([packet for packet in got if packet.op == Op.RW])
    assert in_flight * 600 <= 0.76 * WINDOW
    assert ops(got)[-1] == Op.CREDIT_REQUEST
    taken = len(data(got))
    guest.send(Op.CREDIT_UPDATE, 99, 5000, fwd_cnt=taken)
    assert taken + len(data(guest.packets())) == 390 * 200


def test_a_guest_that_is_silent_about_small_packets_is_asked_again(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    last: list[Packet] = []
    for _ in range(390):
        host.send(b"x" * 20)
        last = guest.packets() or last
    assert ops(last)[-1] == Op.CREDIT_REQUEST
    delay = bench.engine.turn()
    assert delay is not None
    bench.clock.now += delay
    assert ops(guest.packets()) == [Op.CREDIT_REQUEST]


def test_transmission_goes_on_while_there_are_no_receive_buffers_until_too_much_waits(bench: Bench) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.another_guest(buffers=0)
    for number in range(256):
        guest.send(Op.RW, number, 5000)
        assert guest.transmit.free_descriptors == 64
    for number in range(10):
        guest.send(Op.RW, number, 5000)
    assert guest.transmit.free_descriptors < 64, "the 257th packets stay in the ring"
    assert not readable(bench.engine), "no spinning"
    guest._buffers = 64
    guest.refill()
    assert ops(guest.packets()) == [Op.RST] * 266


def test_credit_does_not_keep_a_connection_that_is_closing(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(buf_alloc=100)
    guest.send(Op.REQUEST, 99, PORT)
    ends[0].send(b"x" * 1000)
    guest.packets()
    guest.send(Op.SHUTDOWN, 99, PORT, flags=Shutdown.RECEIVE)
    ends[0].close()
    guest.packets()
    guest.send(Op.CREDIT_UPDATE, 99, PORT, fwd_cnt=100)
    bench.clock.now += guest.engine.config.close_timeout_s
    assert words(guest) == [(Op.RST, b"")]
    assert guest.engine.counters().connections == 0


def test_a_guest_with_room_for_bytes_and_not_for_packets_is_asked_again(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(buf_alloc=1600, receive_buffers=(44 + 800,))
    guest.send(Op.REQUEST, 99, PORT)
    ends[0].send(b"x" * 2000)
    assert [op for op, _ in words(guest)] == [Op.RESPONSE, Op.RW, Op.RW, Op.CREDIT_REQUEST]
    guest.send(Op.CREDIT_UPDATE, 99, PORT, fwd_cnt=100)
    assert words(guest) == []
    bench.clock.now += STALL_PROBE_S
    assert words(guest) == [(Op.CREDIT_REQUEST, b"")]
