"""What is bounded, and that bulk connections share."""

import socket
from contextlib import suppress

import pytest

from engine_bench import PORT, Bench, once, ops
from nitro_vsock import SocketType
from nitro_vsock.device.connection_table import RESETS_MAX
from nitro_vsock.device.packet import Op

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_connections_are_limited_in_both_directions(bench: Bench) -> None:
    guest = bench.start(connections_max=2)
    bench.guest_opens(5000)
    bench.host_opens(52)
    bench.listen(6000)
    guest.send(Op.REQUEST, 100, 6000)
    assert ops(guest.packets()) == [Op.RST]
    assert bench.dial().recv(10) == b""
    assert bench.engine.counters().refused == 2


def test_half_open_host_programs_are_limited(bench: Bench) -> None:
    bench.start(half_open_max=2)
    waiting = [bench.dial() for _ in range(2)]
    assert bench.dial().recv(10) == b""
    waiting[0].close()
    bench.guest.run()
    bench.host_opens(52)


def test_a_guest_that_does_not_answer_a_request_is_given_up(bench: Bench) -> None:
    guest = bench.start(connect_timeout_s=2)
    host = bench.dial(b"CONNECT 52\n")
    assert ops(guest.packets()) == [Op.REQUEST]
    bench.clock.now += 2
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_a_full_backlog_refuses_the_guest_and_waits_for_nobody(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000, backlog=0)
    guest.send(Op.REQUEST, 99, 5000)
    guest.send(Op.REQUEST, 100, 5000)
    assert ops(guest.packets()) == [Op.RESPONSE, Op.RST]


def test_what_is_held_for_slow_host_programs_is_limited(bench: Bench) -> None:
    guest = bench.start(buffered_bytes_max=4 << 20, tx_buffer_size=1 << 20)
    for number in range(10):
        bench.guest_opens(5000 + number, 100 + number)
    for number in range(10):
        for _ in range(16):
            guest.send(Op.RW, 100 + number, 5000 + number, bytes(64 << 10))
    counters = bench.engine.counters()
    assert counters.buffered_bytes <= 4 << 20
    assert counters.budget_resets == 10 - counters.connections >= 1
    late = bench.listen(7000)
    guest.send(Op.REQUEST, 200, 7000)
    assert guest.packets()[-1].header.buf_alloc < 1 << 20, "windows shrink with what is left"
    bench.accept(late)


def test_bulk_connections_share_receive_buffers_fairly(bench: Bench) -> None:
    guest = bench.start()
    hosts = [bench.guest_opens(5000 + number, 100 + number) for number in range(8)]
    for host in hosts:
        host.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                host.send(bytes(4096))
    got: dict[int, int] = {}
    for _ in range(12):
        for packet in once(guest):
            got[packet.header.dst_port] = got.get(packet.header.dst_port, 0) + packet.header.len
    assert len(got) == 8
    assert sum(got.values()) ** 2 / (8 * sum(size * size for size in got.values())) > 0.9  # Jain's index


def test_connections_that_come_and_go_unanswered_are_bounded(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(buffers=0)
    guest.send(Op.REQUEST, 1, PORT)
    for port in range(2, 4000):
        guest.send(Op.REQUEST, port, PORT, run=False)
        guest.send(Op.RST, port, PORT)
        if guest.transmit.free_descriptors < 2:
            break
    else:
        pytest.fail("the device takes all that comes")
    assert len(ends) == guest.engine.config.connections_max + RESETS_MAX + 1


def test_packets_stay_in_the_ring_while_too_many_resets_wait_for_buffers(bench: Bench) -> None:
    guest = bench.start(buffers=0)
    free = guest.transmit.free_descriptors
    for port in range(RESETS_MAX):
        guest.send(Op.CREDIT_UPDATE, port, PORT)
        assert guest.transmit.free_descriptors == free

    guest.send(Op.CREDIT_UPDATE, RESETS_MAX, PORT)
    assert guest.transmit.free_descriptors < free

    guest._buffers = 8
    guest.refill()
    assert [packet.header.dst_port for packet in guest.packets()] == [*range(RESETS_MAX + 1)]


def test_adopted_sockets_count_for_the_limit(bench: Bench) -> None:
    guest = bench.start(connections_max=1)
    bench.host_opens(52)
    results: list[bool] = []
    ours, theirs = socket.socketpair()

    with theirs:
        bench.engine.adopt(ours, 53, on_result=results.append)
        guest.run()

        assert theirs.recv(1) == b""
    assert results == [False]
    assert guest.packets() == []


def test_an_address_that_is_in_use_is_not_given_to_another_socket(bench: Bench) -> None:
    guest = bench.start()
    results: list[bool] = []
    ours, theirs = socket.socketpair()
    others, their_others = socket.socketpair()

    with theirs, their_others:
        bench.engine.adopt(ours, 52, source=(2, 7000))
        assert ops(guest.packets()) == [Op.REQUEST]
        bench.engine.adopt(others, 52, source=(2, 7000), on_result=results.append)
        guest.run()

        assert their_others.recv(1) == b""
    assert results == [False]


def test_messages_are_refused_for_a_guest_that_has_none(bench: Bench) -> None:
    guest = bench.start()
    results: list[bool] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    with theirs:
        bench.engine.adopt(ours, 52, SocketType.SEQPACKET, on_result=results.append)
        guest.run()

        assert theirs.recv(1) == b""
    assert results == [False]
    assert guest.packets() == []
