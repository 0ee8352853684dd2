"""SEQPACKET connections: messages with their boundaries."""

import os
import socket

import pytest

from engine_bench import PORT, WINDOW, Bench, data, ops, words
from nitro_vsock import (
    SocketType,
)
from nitro_vsock.device.packet import Op, Shutdown

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_empty_messages_to_a_slow_reader_are_bounded(bench: Bench) -> None:
    guest = bench.start(seqpacket=True, tx_buffer_size=4096)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    bench.accept(listener)
    for _ in range(200):
        for _ in range(60):
            guest.send(Op.RW, 99, 5000, type=2, flags=1, run=False)
        if Op.RST in ops(guest.packets()):
            break
    assert bench.engine.counters().credit_violations == 1


def test_a_message_that_is_not_complete_counts_as_held(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    host = bench.accept(listener)

    held = []
    for flags in (0, 0, 1):
        guest.send(Op.RW, 99, 5000, bytes(1000), type=2, flags=flags)
        held.append(bench.engine.counters().buffered_bytes)

    assert held == [1000, 2000, 0]
    assert len(host.recv(10_000)) == 3000


def test_messages_keep_their_boundaries_both_ways(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    (response,) = guest.packets()
    assert (response.op, response.header.type) == (Op.RESPONSE, 2)
    host = bench.accept(listener)
    guest.send(Op.RW, 99, 5000, b"one ", type=2)
    guest.send(Op.RW, 99, 5000, b"message", type=2, flags=1)
    guest.send(Op.RW, 99, 5000, b"another", type=2, flags=3)
    assert host.recv(1000) == b"one message"
    assert host.recv(1000) == b"another"

    long = os.urandom(10_000)
    host.send(long)
    host.send(b"short")
    got = guest.packets()
    assert [(packet.header.len, packet.header.flags) for packet in got] == [
        (4096, 0),
        (4096, 0),
        (1808, 1),
        (5, 1),
    ]
    assert data(got) == long + b"short"
    host.close()
    assert guest.packets()[-1].header.flags == Shutdown.BOTH


def test_a_host_program_connects_for_messages(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    host = bench.dial(b"CONNECT 52\n", ".seqpacket")
    (request,) = guest.packets()
    assert (request.op, request.header.type) == (Op.REQUEST, 2)
    guest.send(Op.RESPONSE, 52, request.header.src_port, type=2)
    assert host.recv(100) == b"OK 52\n"
    host.send(b"ping")
    host.send(b"")
    host.send(b"pong")
    assert [packet.data for packet in guest.packets()] == [b"ping", b"", b"pong"]


def test_a_stream_listener_does_not_take_messages(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    assert ops(guest.packets()) == [Op.RST]


def test_messages_for_a_slow_reader_are_held_within_the_window(bench: Bench) -> None:
    guest = bench.start(seqpacket=True)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    host = bench.accept(listener)
    sent = credit = 0
    messages = []
    for number in range(1000):
        credit = max([credit, *(packet.header.fwd_cnt for packet in guest.packets())])
        message = bytes([number % 256]) * 10_000
        if sent + len(message) - credit > WINDOW:
            break
        guest.send(Op.RW, 99, 5000, message, type=2, flags=1)
        sent += len(message)
        messages.append(message)
    assert bench.engine.counters().buffered_bytes <= WINDOW
    received = []
    for _ in messages:
        received.append(host.recv(20_000))
        guest.run()
    assert received == messages
    assert guest.packets()[-1].header.fwd_cnt == sent


@pytest.mark.parametrize("length", [1, 212_961, WINDOW])
def test_messages_as_long_as_the_window_arrive(bench: Bench, length: int) -> None:
    bench.start(seqpacket=True)
    host = bench.engine.connect(52, SocketType.SEQPACKET)
    (request,) = bench.guest.packets()
    port = request.header.src_port
    bench.guest.send(Op.RESPONSE, 52, port, type=SocketType.SEQPACKET)
    message = bytes(length)
    for start in range(0, length, 1 << 16):
        piece = message[start : start + (1 << 16)]
        last = start + len(piece) == length
        bench.guest.send(Op.RW, 52, port, piece, type=SocketType.SEQPACKET, flags=int(last))
    with host:
        assert host.recv(1 << 20) == message


def test_messages_longer_than_the_window_reset(bench: Bench) -> None:
    guest = bench.start(seqpacket=True, tx_buffer_size=65536)
    listener = bench.listen(5000, socket.SOCK_SEQPACKET)
    guest.send(Op.REQUEST, 99, 5000, type=2)
    bench.accept(listener)
    for _ in range(3):
        guest.send(Op.RW, 99, 5000, bytes(32768), type=2)
    assert ops(guest.packets())[-1] == Op.RST


def test_an_empty_message_is_not_the_end(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(seqpacket=True)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    for message in (b"", b"x", b""):
        ends[0].send(message)
    ends[0].close()
    assert words(guest) == [(Op.RW, b""), (Op.RW, b"x"), (Op.RW, b""), (Op.SHUTDOWN, b"")]


def test_more_empty_messages_than_packets_are_metered_do_not_stop_it(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(seqpacket=True, buf_alloc=16000)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    for message in [b""] * 100 + [b"hello"]:
        ends[0].send(message)
        guest.run()
    assert words(guest) == [(Op.RW, b"")] * 100 + [(Op.RW, b"hello")]


def test_an_empty_message_waits_for_a_buffer(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(seqpacket=True, buffers=1)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    ends[0].send(b"")
    guest.run()
    ends[0].send(b"y")
    assert words(guest) == [(Op.RESPONSE, b""), (Op.RW, b""), (Op.RW, b"y")]


def test_partial_messages_count_as_held(bench: Bench) -> None:
    ends = bench.serve(PORT)
    guest = bench.start(seqpacket=True)
    guest.send(Op.REQUEST, 99, PORT, type=SocketType.SEQPACKET)
    guest.packets()
    guest.send(Op.RW, 99, PORT, b"x" * 1000, type=SocketType.SEQPACKET)
    assert guest.engine.counters().buffered_bytes == 1000
    guest.send(Op.RW, 99, PORT, b"y", type=SocketType.SEQPACKET, flags=1)
    assert ends[0].recv(2000) == b"x" * 1000 + b"y"
    assert guest.engine.counters().buffered_bytes == 0
    guest.send(Op.RW, 99, PORT, b"x" * 1000, type=SocketType.SEQPACKET)
    guest.send(Op.RST, 99, PORT, type=SocketType.SEQPACKET)
    assert guest.engine.counters().buffered_bytes == 0
