"""Guests of one process that connect to each other."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_bench import CID, WINDOW, data, ops
from nitro_vsock import (
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
