"""vhost-user sessions over a real socket, with front-ends that stop at every point."""

import array
import os
import socket
from pathlib import Path

import pytest
import trio

from nitro_vsock.daemon import session
from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.backend import Backend
from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.frontend import PROTOCOL_FEATURES_WANTED
from nitro_vsock.vhost_user.messages import HEADER, U64, MemoryRegion, Message, Request
from test_vhost_user_backend import (
    FEATURES,
    FRONTEND,
    FakeDevice,
    event,
    memory_file,
    open_descriptors,
    state,
)


def conversation() -> list[Message]:
    """A whole session's messages up to running rings, with descriptors."""
    sent = [
        Message(Request.GET_FEATURES),
        Message(Request.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES_WANTED)),
        Message(Request.SET_FEATURES, U64.pack(FEATURES | messages.PROTOCOL_FEATURES)),
        Message(
            Request.SET_MEM_TABLE,
            messages.memory_table([MemoryRegion(0, 0x4000, FRONTEND, 0)]),
            (memory_file(),),
            need_reply=True,
        ),
    ]
    for index in (0, 1):
        place = FRONTEND + 0x800 * index
        address = messages.VRING_ADDRESS.pack(index, 0, place, place + 0x200, place + 0x100, 0)
        sent += [
            Message(Request.SET_VRING_NUM, state(index, 8)),
            Message(Request.SET_VRING_ADDR, address),
            Message(Request.SET_VRING_CALL, U64.pack(index), (event(),)),
            Message(Request.SET_VRING_KICK, U64.pack(index), (event(),)),
            Message(Request.SET_VRING_ENABLE, state(index, 1), need_reply=True),
        ]
    return sent


def send(connection: socket.socket, message: Message, *, cut: int | None = None) -> None:
    rights = array.array("i", message.descriptors)
    connection.sendmsg(
        [message.encode()[:cut]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    )
    for descriptor in message.descriptors:
        os.close(descriptor)


async def serve(connection: socket.socket) -> FakeDevice:
    """Serve what was sent and then closed."""
    device = FakeDevice()
    with trio.socket.from_stdlib_socket(connection) as served:
        await session.serve(served, Backend(device))
    return device


async def test_a_whole_session() -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair()
    with theirs:
        for message in conversation():
            send(theirs, message)
        theirs.shutdown(socket.SHUT_WR)
        device = await serve(ours)
        answers = theirs.recv(65536, socket.MSG_DONTWAIT)
    assert device.log == ["start", "stop", "reset"]
    assert answers[: HEADER.size] == HEADER.pack(Request.GET_FEATURES, 5, 8)
    assert len(answers) == 4 * (HEADER.size + U64.size), "features and three acknowledgements"
    assert open_descriptors() == before


@pytest.mark.parametrize("cut", [None, 1, 11, 12, 15])
@pytest.mark.parametrize("last", range(14))
async def test_a_front_end_that_dies_at_any_point_leaves_nothing_behind(last: int, cut: int | None) -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair()
    sent = conversation()
    with theirs:
        for message in sent[:last]:
            send(theirs, message)
        send(theirs, sent[last], cut=cut)
    for message in sent[last + 1 :]:
        for descriptor in message.descriptors:
            os.close(descriptor)
    try:
        device = await serve(ours)
        assert device.rings is None
    except (VhostUserError, OSError):
        pass
    assert open_descriptors() == before


async def test_too_many_descriptors_end_the_session() -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair()
    with theirs:
        send(theirs, Message(Request.SET_OWNER, b"", tuple(event() for _ in range(40))))
        with pytest.raises(VhostUserError, match="more than 32"):
            await serve(ours)
    assert open_descriptors() == before


async def test_a_stream_that_is_not_vhost_user_ends_the_session() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(VhostUserError, match="version"):
            await serve(ours)


def test_the_proc_file_system_counts_descriptors() -> None:
    """What the assertions above rely on."""
    before = open_descriptors()
    with Path("/dev/null").open():
        assert open_descriptors() == before + 1
