"""How connections end, from either side."""

import os
import socket

import pytest

from engine_bench import Bench, data, drain, ops
from nitro_vsock.device.packet import Op, Shutdown

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_guest_that_ends_its_stream_still_gets_the_answer(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"question")
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    assert host.recv(100) == b"question"
    assert host.recv(100) == b""
    host.send(b"answer")
    assert data(guest.packets()) == b"answer"


def test_data_after_the_guest_ended_its_stream_resets(bench: Bench) -> None:
    guest = bench.start()
    bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    guest.send(Op.RW, 99, 5000, b"more")
    assert ops(guest.packets()) == [Op.RST]


def test_a_host_program_that_ends_its_stream_still_gets_the_answer(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    host.send(b"question")
    host.shutdown(socket.SHUT_WR)
    question, shutdown = guest.packets()
    assert question.data == b"question"
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.SEND)
    guest.send(Op.RW, 99, 5000, b"answer")
    assert host.recv(100) == b"answer"
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.BOTH)
    assert ops(guest.packets())[-1] == Op.RST
    assert host.recv(100) == b""


def test_a_host_program_that_closes_ends_both_directions(bench: Bench) -> None:
    guest = bench.start(close_timeout_s=2)
    host = bench.guest_opens()
    host.send(b"last words")
    host.close()
    words, shutdown = guest.packets()
    assert words.data == b"last words"
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    guest.send(Op.RW, 99, 5000, b"was on its way")
    guest.send(Op.RST, 99, 5000)
    assert guest.packets() == []
    assert bench.engine.counters().connections == 0
    assert bench.engine.turn() is None


def test_a_host_program_that_closes_while_it_is_asked_whether_it_reads_has_its_last_words(
    bench: Bench,
) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.packets()
    parts = bench.engine._connections
    (connection,) = parts.table.by_address.values()
    host.send(b"last words")
    host.close()
    parts.table.doubt(connection)

    assert not parts.delivery.look_at_doubtful()

    words, shutdown = guest.packets()
    assert words.data == b"last words"
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)


def test_half_closed_by_both_ends_in_a_full_close(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.SEND)
    assert host.recv(10) == b""
    host.shutdown(socket.SHUT_WR)
    got = guest.packets()
    assert [packet.op for packet in got] == [Op.SHUTDOWN] * len(got)
    assert got[-1].header.flags == Shutdown.BOTH


def test_a_guest_that_does_not_agree_to_the_end_is_reset(bench: Bench) -> None:
    guest = bench.start(close_timeout_s=2)
    bench.guest_opens().close()
    assert ops(guest.packets()) == [Op.SHUTDOWN]
    assert bench.engine.turn() == 2.0
    bench.clock.now += 2
    assert ops(guest.packets()) == [Op.RST]
    assert bench.engine.counters().connections == 0


def test_a_guest_that_will_not_receive_stops_the_host_program(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.send(b"anything")
    guest.send(Op.RW, 99, 5000, b"still sending")
    assert host.recv(100) == b"still sending"
    host.close()
    assert ops(guest.packets()) == [Op.SHUTDOWN]


def test_all_that_a_guest_sent_before_it_closed_arrives_at_a_slow_reader(bench: Bench) -> None:
    guest = bench.start(tx_buffer_size=1 << 20)
    host = bench.guest_opens()
    sent = [os.urandom(64 << 10) for _ in range(12)]
    for block in sent:
        guest.send(Op.RW, 99, 5000, block)
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.BOTH)
    assert ops(guest.packets())[-1] == Op.RST
    assert bench.engine.counters().buffered_bytes > 0
    received = drain(host, guest)
    assert received == b"".join(sent)
    assert bench.engine.counters().connections == bench.engine.counters().buffered_bytes == 0


def test_a_host_program_that_never_reads_is_given_up(bench: Bench) -> None:
    guest = bench.start(linger_timeout_s=30, tx_buffer_size=1 << 20)
    bench.guest_opens()
    for _ in range(12):
        guest.send(Op.RW, 99, 5000, bytes(64 << 10))
    guest.send(Op.RST, 99, 5000)
    assert bench.engine.counters().connections == 1
    bench.clock.now += 30
    guest.run()
    assert bench.engine.counters().connections == bench.engine.counters().buffered_bytes == 0


def test_a_host_program_that_closes_with_data_unread_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"unread")
    host.close()
    assert ops(guest.packets())[-1] == Op.RST


def test_a_guest_hears_at_once_of_a_host_program_that_stops_reading(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.packets()

    host.shutdown(socket.SHUT_RD)

    (shutdown,) = guest.packets()
    assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)
    guest.send(Op.RW, 99, 5000, b"was on its way")
    assert guest.packets() == []
    host.send(b"but I talk")
    assert data(guest.packets()) == b"but I talk"


def test_a_host_program_that_takes_data_is_not_asked_whether_it_reads(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.packets()
    parts = bench.engine._connections
    (connection,) = parts.table.by_address.values()
    parts.table.doubt(connection)
    connection.segments = [memoryview(b"words")]
    connection.send_segments()
    host.shutdown(socket.SHUT_RD)

    assert not parts.delivery.look_at_doubtful(), "it has taken the words"
    parts.table.doubt(connection)
    assert parts.delivery.look_at_doubtful()

    (told,) = guest.packets()
    assert (told.op, told.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)


def test_a_guest_hears_that_a_host_program_stops_reading_while_that_one_still_talks(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.packets()
    parts = bench.engine._connections
    (connection,) = parts.table.by_address.values()
    host.send(b"words")
    host.shutdown(socket.SHUT_RD)
    parts.table.doubt(connection)

    assert parts.delivery.look_at_doubtful()

    told = [(packet.op, packet.header.flags, packet.data) for packet in guest.packets()]
    assert told == [(Op.SHUTDOWN, Shutdown.RECEIVE, b""), (Op.RW, 0, b"words")]


def test_one_byte_that_nobody_read_resets_the_host_program(bench: Bench) -> None:
    guest = bench.start(buf_alloc=0)
    host, host_port = bench.host_opens(52)
    host.send(b"x")

    guest.send(Op.RST, 52, host_port)

    with pytest.raises(ConnectionResetError):
        host.recv(1)
