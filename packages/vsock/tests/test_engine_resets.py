"""What is answered with RST, and what never is."""

from typing import Any

import pytest

from engine_bench import CID, WINDOW, Bench, drain, ops
from nitro_vsock import SocketType
from nitro_vsock.device.packet import Op

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 0, 77])
def test_a_packet_of_no_connection_is_answered_with_rst(bench: Bench, op: int) -> None:
    guest = bench.start()
    guest.send(op, 99, 5000, b"data" if op == Op.RW else b"", host_cid=3)
    (reset,) = guest.packets()
    assert reset.op == Op.RST
    assert (reset.header.src_cid, reset.header.dst_cid) == (3, CID)
    assert (reset.header.src_port, reset.header.dst_port) == (5000, 99)


def test_rst_is_never_answered(bench: Bench) -> None:
    guest = bench.start()
    guest.send(Op.RST, 99, 5000)
    assert guest.packets() == []


@pytest.mark.parametrize("kind", [0, 2, 3, 0xFFFF])
def test_an_unknown_type_is_answered_with_rst_of_that_type(bench: Bench, kind: int) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, type=kind)
    (reset,) = guest.packets()
    assert (reset.op, reset.header.type) == (Op.RST, kind)


@pytest.mark.parametrize("cid", [0, 1, 4, CID, 2**32 - 1, 2**64 - 1])
def test_an_unknown_cid_is_answered_with_rst(bench: Bench, cid: int) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, host_cid=cid)
    (reset,) = guest.packets()
    assert (reset.op, reset.header.src_cid) == (Op.RST, cid)


def test_another_guests_cid_as_sender_is_dropped(bench: Bench) -> None:
    guest = bench.start()
    bench.listen(5000)
    guest.send(Op.REQUEST, 99, 5000, src_cid=17)
    guest.send(Op.RW, 99, 5000, b"data", src_cid=17)
    assert guest.packets() == []
    assert bench.engine.counters().bad_packets == 2


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        (Op.REQUEST, {}),
        (Op.RESPONSE, {}),
        (0, {}),
        (77, {}),
        (Op.RW, {"type": SocketType.SEQPACKET}),
        (Op.RW, {"len": len(b"data") + 1}),
    ],
)
def test_what_makes_no_sense_in_a_connection_resets_it(bench: Bench, op: int, fields: dict[str, Any]) -> None:
    guest = bench.start()
    host = bench.guest_opens()

    guest.send(op, 99, 5000, b"data" if op == Op.RW else b"", **fields)

    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_data_before_the_guest_accepted_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.dial(b"CONNECT 52\n")
    (request,) = guest.packets()
    guest.send(Op.RW, 52, request.header.src_port, b"early")
    assert ops(guest.packets()) == [Op.RST]
    assert host.recv(10) == b""


def test_less_data_said_than_there_is_is_what_counts(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    guest.send(Op.RW, 99, 5000, b"data and padding", len=4)
    assert host.recv(100) == b"data"


def test_more_data_than_the_guest_may_send_resets(bench: Bench) -> None:
    guest = bench.start()
    host = bench.guest_opens()
    block = bytes(64 << 10)
    for _ in range(40):
        guest.send(Op.RW, 99, 5000, block)
    got = guest.packets()
    assert Op.RST in ops(got)
    assert bench.engine.counters().credit_violations == 1
    received = drain(host, guest)
    assert len(received) % len(block) == 0, "what the guest was allowed to send arrives whole"
    assert WINDOW <= len(received) < 40 * len(block)
