"""Guests of one process that connect to each other."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_bench import CID, WINDOW, data, ops
from nitro_vsock import (
    SocketType,
    UsageError,
    VsockConfig,
    VsockEngine,
    VsockRouter,
)
from nitro_vsock.device.packet import Op, Shutdown
from nitro_vsock.testing import FakeGuest

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def siblings(stack: ExitStack, *groups: set[str]) -> tuple[list[FakeGuest], Callable[[], None]]:
    router = VsockRouter()
    guests = []
    for number, names in enumerate(groups):
        engine = VsockEngine(
            VsockConfig(guest_cid=100 + number, groups=frozenset(names), seqpacket=True), router=router
        )
        stack.callback(engine.close)
        guests.append(FakeGuest(engine))
        stack.callback(guests[-1].close)

    def run() -> None:
        for _ in range(8):
            for guest in guests:
                guest.run()

    return guests, run


@pytest.mark.parametrize("kind", [1, 2])
def test_siblings_exchange_packets_cut_to_the_receivers_buffers(kind: int) -> None:
    with ExitStack() as stack:
        (a, b), run = siblings(stack, {"x", "y"}, {"y"})
        a.send(Op.REQUEST, 7, 80, host_cid=101, type=kind)
        run()
        (request,) = b.packets()
        assert (request.header.src_cid, request.header.src_port, request.header.dst_port) == (100, 7, 80)
        assert a.packets() == [], "not before the sibling has accepted"
        b.send(Op.RESPONSE, 80, 7, host_cid=100, type=kind)
        run()
        assert ops(a.packets()) == [Op.RESPONSE]

        payload = os.urandom(64 << 10)
        a.send(Op.RW, 7, 80, payload, host_cid=101, type=kind, flags=kind - 1)
        run()
        got = b.packets()
        assert data(got) == payload
        assert max(packet.header.len for packet in got) == 4096
        b.send(Op.RW, 80, 7, b"thanks", host_cid=100, type=kind, flags=kind - 1)
        run()
        assert data(a.packets()) == b"thanks"

        a.send(Op.SHUTDOWN, 7, 80, host_cid=101, type=kind, flags=Shutdown.BOTH)
        run()
        assert ops(a.packets())[-1] == Op.RST
        assert b.packets()[-1].header.flags == Shutdown.BOTH


def joined(stack: ExitStack, kind: int) -> tuple[FakeGuest, FakeGuest, Callable[[], None]]:
    """Two guests, port 7 of the one connected with port 80 of the other."""
    (a, b), run = siblings(stack, {"x"}, {"x"})
    a.send(Op.REQUEST, 7, 80, host_cid=101, type=kind)
    run()
    b.packets()
    b.send(Op.RESPONSE, 80, 7, host_cid=100, type=kind)
    run()
    a.packets()
    return a, b, run


def test_messages_between_siblings_keep_their_ends_and_those_of_records() -> None:
    sent = [(b"goes on", 1), (b"ends", 3), (b"", 1), (b"", 3), (b"last", 3)]
    with ExitStack() as stack:
        a, b, run = joined(stack, SocketType.SEQPACKET)

        for message, flags in sent:
            a.send(Op.RW, 7, 80, message, host_cid=101, type=SocketType.SEQPACKET, flags=flags)
        run()

        assert [(packet.data, packet.header.flags) for packet in b.packets()] == sent


def test_the_end_of_a_record_is_on_the_last_packet_of_its_message() -> None:
    with ExitStack() as stack:
        a, b, run = joined(stack, SocketType.SEQPACKET)

        a.send(Op.RW, 7, 80, bytes(9000), host_cid=101, type=SocketType.SEQPACKET, flags=3)
        run()

        assert [packet.header.flags for packet in b.packets()] == [0, 0, 3]


def test_a_message_between_siblings_may_be_as_long_as_the_window() -> None:
    with ExitStack() as stack:
        a, b, run = joined(stack, SocketType.SEQPACKET)

        for part in range(4):
            flags = 1 if part == 3 else 0
            a.send(Op.RW, 7, 80, bytes(WINDOW // 4), host_cid=101, type=SocketType.SEQPACKET, flags=flags)
        run()

        got = [packet for packet in b.packets() if packet.op == Op.RW]
        assert len(data(got)) == WINDOW
        assert [packet.header.flags for packet in got] == [0] * (len(got) - 1) + [1]


@pytest.mark.parametrize("kind", [SocketType.STREAM, SocketType.SEQPACKET])
def test_a_sibling_hears_at_once_that_the_other_will_not_receive(kind: SocketType) -> None:
    with ExitStack() as stack:
        a, b, run = joined(stack, kind)

        a.send(Op.SHUTDOWN, 7, 80, host_cid=101, type=kind, flags=Shutdown.RECEIVE)
        run()

        (shutdown,) = b.packets()
        assert (shutdown.op, shutdown.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)
        a.send(Op.RW, 7, 80, b"still sending", host_cid=101, type=kind, flags=kind - 1)
        run()
        assert data(b.packets()) == b"still sending"
        a.send(Op.SHUTDOWN, 7, 80, host_cid=101, type=kind, flags=Shutdown.SEND)
        run()
        assert ops(a.packets())[-1] == Op.RST


def test_messages_that_are_held_arrive_although_their_sender_will_not_receive() -> None:
    kind = SocketType.SEQPACKET
    messages = [b"%d" % number for number in range(1000)]
    with ExitStack() as stack:
        a, b, run = joined(stack, kind)
        for message in messages:
            a.send(Op.RW, 7, 80, message, host_cid=101, type=kind, flags=1)

        a.send(Op.SHUTDOWN, 7, 80, host_cid=101, type=kind, flags=Shutdown.RECEIVE)
        got = []
        for _ in range(4):
            run()
            got += b.packets()
            b.send(Op.RW, 80, 7, b"for nobody", host_cid=100, type=kind, flags=1, fwd_cnt=len(data(got)))

        assert [packet.data for packet in got if packet.op == Op.RW] == messages
        (shutdown,) = [packet for packet in got if packet.op == Op.SHUTDOWN]
        assert shutdown.header.flags == Shutdown.RECEIVE


def test_a_host_at_any_address_leaves_siblings_theirs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        router = VsockRouter()
        paths = [tmp_path / "a", tmp_path / "b"]
        engines = [
            VsockEngine(VsockConfig(guest_cid=CID + i, uds_path=path, any_cid=True), router=router)
            for i, path in enumerate(paths)
        ]
        guests = [FakeGuest(engine) for engine in engines]
        for engine, guest in zip(engines, guests, strict=True):
            stack.callback(engine.close)
            stack.callback(guest.close)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{paths[0]}_5000")
        listener.listen()
        a, b = guests

        a.send(Op.REQUEST, 99, 5000, host_cid=77)
        (response,) = a.packets()
        assert (response.op, response.header.src_cid) == (Op.RESPONSE, 77)
        a.send(Op.REQUEST, 98, 5000, host_cid=CID + 1)
        assert ops(b.packets()) == [Op.REQUEST]


def test_siblings_that_refuse_or_share_no_group_are_reset() -> None:
    with ExitStack() as stack:
        (a, b, _), run = siblings(stack, {"x"}, {"x"}, {"y"})
        a.send(Op.REQUEST, 7, 80, host_cid=102)
        assert ops(a.packets()) == [Op.RST]
        a.send(Op.REQUEST, 7, 80, host_cid=101)
        run()
        b.send(Op.RST, 80, 7, host_cid=100)
        run()
        assert ops(a.packets()) == [Op.RST]


def test_a_sibling_that_does_not_read_is_bounded() -> None:
    with ExitStack() as stack:
        (a, b), run = siblings(stack, {"x"}, {"x"})
        a.send(Op.REQUEST, 7, 80, host_cid=101)
        run()
        b.send(Op.RESPONSE, 80, 7, host_cid=100)
        run()
        a.packets()
        sent = credit = 0
        while sent - credit < WINDOW:
            a.send(Op.RW, 7, 80, bytes(32768), host_cid=101)
            sent += 32768
            run()
            credit = max([credit, *(packet.header.fwd_cnt for packet in a.packets())])
        assert sent < 4 * WINDOW
        assert len(data(b.packets())) <= WINDOW


def test_a_cid_may_be_given_once() -> None:
    router = VsockRouter()
    engine = VsockEngine(VsockConfig(guest_cid=100), router=router)
    with pytest.raises(UsageError, match="100"):
        VsockEngine(VsockConfig(guest_cid=100), router=router)
    engine.close()
    VsockEngine(VsockConfig(guest_cid=100), router=router).close()
