"""Descriptors of any layout, good and bad."""

import os
import socket

import pytest

from engine_bench import PORT, Bench, data, drain, ops, readable, words
from nitro_vsock import SocketType
from nitro_vsock.device.packet import Op, Shutdown

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize(
    "pieces", [[44], [44, 32768], [44, 4096, 4096, 4096], [10, 20, 14], [1] * 43, [50], [65580], [44, 1, 1]]
)
def test_a_packet_may_be_cut_anywhere(bench: Bench, pieces: list[int]) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    payload = os.urandom(64 << 10)
    guest.send(Op.RW, 99, 5000, payload, pieces=pieces)
    assert drain(host, guest, len(payload)) == payload


@pytest.mark.parametrize("pieces", [[44], [10, 34], [43, 1]])
def test_a_packet_without_data_may_be_cut_anywhere(bench: Bench, pieces: list[int]) -> None:
    guest = bench.start()
    bench.guest_opens()

    guest.send(Op.CREDIT_REQUEST, 99, 5000, pieces=pieces)

    assert words(guest) == [(Op.CREDIT_UPDATE, b"")]


def test_packets_without_a_whole_header_are_counted_and_go_back(bench: Bench) -> None:
    guest = bench.start()
    free = guest.transmit.free_descriptors

    guest.transmit.offer(readable=[bytes(43)])
    guest.transmit.offer(readable=[bytes(20), bytes(23)])
    guest.transmit.offer(writable=[44])
    os.eventfd_write(guest.kick_fds[1], 1)

    assert guest.packets() == []
    assert bench.engine.counters().bad_packets == 3
    assert guest.transmit.free_descriptors == free


def test_what_follows_data_in_the_same_batch_comes_after_it(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()

    guest.send(Op.RW, 99, 5000, b"last words", run=False)
    guest.send(Op.SHUTDOWN, 99, 5000, flags=Shutdown.BOTH)

    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(100) == b"last words"
    assert host.recv(100) == b""


def test_what_follows_the_header_comes_first_however_long_the_rest_is(bench: Bench) -> None:
    """Where the second descriptor is as long as the data, and a part of the data is in the first one."""
    guest = bench.start()
    host = bench.guest_opens()

    guest.send(Op.RW, 99, 5000, b"firstrest!", len=5, pieces=[44 + 5])

    assert host.recv(100) == b"first"


@pytest.mark.parametrize("shape", [[4140], [4096], [44, 4096], [65580], [44, 100, 100], [20, 10, 100], [50]])
def test_receive_buffers_may_have_any_shape(bench: Bench, shape: list[int]) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.another_guest(receive_buffers=shape, queue_size=128)
    host = bench.guest_opens()
    payload = os.urandom(10_000 if sum(shape) > 100 else 1000)
    host.sendall(payload)
    got = guest.packets()
    assert data(got) == payload
    assert all(packet.header.len == len(packet.data) <= sum(shape) - 44 for packet in got)


@pytest.mark.parametrize("shape", [[4140], [44, 4096], [44, 100, 100], [20, 10, 100, 100], [50, 7, 90]])
def test_messages_fill_receive_buffers_of_any_shape(bench: Bench, shape: list[int]) -> None:
    guest = bench.start(seqpacket=True, receive_buffers=shape, queue_size=128)
    host = bench.dial(b"CONNECT 52\n", ".seqpacket")
    (request,) = guest.packets()
    guest.send(Op.RESPONSE, 52, request.header.src_port, type=SocketType.SEQPACKET)
    guest.packets()
    messages = [os.urandom(size) for size in (1, 90, 100, 101, 1000)]

    for message in messages:
        host.send(message)
        got = guest.packets()
        assert data(got) == message
        assert all(packet.header.len == len(packet.data) <= sum(shape) - 44 for packet in got)


def test_bad_chains_go_back_and_the_device_goes_on(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    for _ in range(100):
        guest.transmit.write_descriptor(5, 2**40, 0xFFFF_FFFF, 0)
        guest.transmit.make_available(5)
        guest.send(Op.RW, 99, 5000, b"x")
    assert drain(host, guest, 100) == b"x" * 100
    assert bench.engine.counters().bad_chains == 100
    assert bench.engine.failure is None


def test_a_driver_of_nothing_but_bad_chains_is_given_up(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    for _ in range(1024):
        guest.transmit.write_descriptor(5, 2**40, 0xFFFF_FFFF, 0)
        guest.transmit.make_available(5)
        os.eventfd_write(guest.kick_fds[1], 1)
        guest.run()
    assert bench.engine.failure is not None
    assert host.recv(10) == b""
    assert not readable(bench.engine)


def test_a_broken_ring_ends_the_device_with_a_reason(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.transmit.set_available_index(30_000)
    os.eventfd_write(guest.kick_fds[1], 1)
    guest.run()
    assert "chains are available" in str(bench.engine.failure)
    assert host.recv(10) == b""


def test_receive_buffers_without_room_go_back_unused(bench: Bench) -> None:
    guest = bench.start()
    bench.engine.detach()
    guest = bench.another_guest(buffers=0)
    guest.receive.offer(writable=[44])
    guest.receive.offer(readable=[b"x" * 100])
    guest.send(Op.RW, 99, 5000)
    assert [chain.length for chain in guest.receive.used_chains()] == [0, 0]
    guest.receive.offer(writable=[100])
    assert guest.receive.used_chains() == []
    os.eventfd_write(guest.kick_fds[0], 1)
    guest.run()
    assert [chain.length for chain in guest.receive.used_chains()] == [44]


def test_buffers_of_many_pieces_take_a_lot_at_once(bench: Bench) -> None:
    ends = bench.serve(PORT)
    pieces = [44, *[64] * 17]
    guest = bench.start(queue_size=2048, receive_buffers=pieces, buf_alloc=1 << 20)
    guest.send(Op.REQUEST, 99, PORT)
    assert words(guest) == [(Op.RESPONSE, b"")]
    data = os.urandom(300_000)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ends[0].sendall(data)
    received = words(guest)
    assert {op for op, _ in received} == {Op.RW}
    assert b"".join(part for _, part in received) == data


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([44], id="header, data"),
        pytest.param([47], id="header and some data, data"),
        pytest.param([44, 3], id="header, data, data"),
        pytest.param([47, 2], id="header and some data, data, data"),
        pytest.param([10, 34], id="half a header, the rest, data"),
        pytest.param([10, 37], id="half a header, the rest and some data, data"),
        pytest.param([53], id="all in one"),
    ],
)
@pytest.mark.parametrize("more", [0, 5])
def test_it_does_not_matter_how_a_packet_is_cut(bench: Bench, pieces: list[int], more: int) -> None:
    guest = bench.start()
    host = bench.guest_opens()

    guest.send(Op.RW, 99, 5000, b"some data" + bytes(more), pieces=pieces, len=9)
    guest.send(Op.RW, 99, 5000, b"; more")

    assert host.recv(100) == b"some data; more"
