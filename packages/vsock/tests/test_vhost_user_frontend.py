"""The front-end's half against the back-end's half: in memory, and over a socket."""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from nitro_vsock.errors import HostError
from nitro_vsock.vhost_user.backend import Backend
from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.frontend import Exchange, Frontend, FrontendSocket, SharedRegion, SharedRing
from nitro_vsock.vhost_user.messages import HEADER, U64, Message, MessageDecoder, Request
from nitro_vsock.virtio.split_queue import QueueLayout
from test_vhost_user_backend import FEATURES, FakeDevice, event, memory_file

T = TypeVar("T")
SIZE = 0x4000


def decode(data: bytes) -> Message:
    decoder = MessageDecoder()
    message = decoder.feed(data[: HEADER.size]) or decoder.feed(data[HEADER.size :])
    assert message is not None
    return message


def run(exchange: Exchange[T], backend: Backend) -> T:
    """Let the two halves talk; descriptors are duplicated, as a socket would do."""
    answer = None
    while True:
        try:
            message = exchange.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        copies = tuple(map(os.dup, message.descriptors))
        reply = backend.receive(Message(message.request, message.payload, copies, message.need_reply))
        answer = decode(reply) if reply else None


@pytest.fixture
def shared() -> Iterator[tuple[SharedRegion, list[SharedRing]]]:
    """16 KiB of guest memory with three rings in it."""
    region = SharedRegion(0x10_0000, SIZE, memory_file())
    rings = [
        SharedRing(QueueLayout(8, place, place + 0x100, place + 0x200), kick=event(), call=event())
        for place in (0x10_0000, 0x10_0800, 0x10_1000)
    ]
    yield region, rings
    for descriptor in [region.descriptor, *(fd for ring in rings for fd in (ring.kick, ring.call))]:
        os.close(descriptor)


Shared = tuple[SharedRegion, list[SharedRing]]


def test_the_two_halves_understand_each_other(shared: Shared) -> None:
    region, rings = shared
    device = FakeDevice()
    backend, frontend = Backend(device), Frontend()
    run(frontend.negotiate(), backend)
    assert frontend.features == FEATURES
    assert run(frontend.read_config(0, 8), backend) == (16).to_bytes(8, "little")

    run(frontend.start(FEATURES, [region], rings), backend)
    assert device.log == ["start"], "once, with all three rings"
    assert device.rings is not None
    assert [ring and ring.layout for ring in device.rings] == [ring.layout for ring in rings]

    device.positions = [1, 2, 3]
    assert run(frontend.stop(), backend) == [1, 2, 3]
    run(frontend.reset(), backend)
    assert device.log == ["start", "stop", "reset"]
    backend.close()


def test_rings_are_started_and_stopped_with_the_messages_of_the_specification(shared: Shared) -> None:
    """To the byte, because a back-end that is not ours may look at what ours does not."""
    region, (_, ring, _) = shared
    frontend = Frontend()
    frontend.queues = 1
    ring = replace(ring, next_available=5)

    started = list(frontend.start(1 << 32, [replace(region, file_offset=0x1000)], [ring]))
    stopping = frontend.stop()
    stopped = [next(stopping), next(stopping)]

    assert [(message.request, message.payload) for message in started] == [
        (Request.SET_FEATURES, struct.pack("<Q", 1 << 32 | 1 << 30)),
        (Request.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0x10_0000, SIZE, 0x10_0000, 0x1000)),
        (Request.SET_VRING_NUM, struct.pack("<II", 0, 8)),
        (Request.SET_VRING_BASE, struct.pack("<II", 0, 5)),
        (Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 0x10_0800, 0x10_0A00, 0x10_0900, 0)),
        (Request.SET_VRING_CALL, struct.pack("<Q", 0)),
        (Request.SET_VRING_KICK, struct.pack("<Q", 0)),
        (Request.SET_VRING_ENABLE, struct.pack("<II", 0, 1)),
    ]
    assert [message.descriptors for message in started if message.descriptors] == [
        (region.descriptor,),
        (ring.call,),
        (ring.kick,),
    ]
    assert [(message.request, message.payload) for message in stopped] == [
        (Request.SET_VRING_ENABLE, struct.pack("<II", 0, 0)),
        (Request.GET_VRING_BASE, struct.pack("<II", 0, 0)),
    ]


def test_a_refusal_names_the_request(shared: Shared) -> None:
    region, rings = shared
    backend, frontend = Backend(FakeDevice()), Frontend()
    run(frontend.negotiate(), backend)
    beyond = SharedRegion(region.guest_address, SIZE + 1, region.descriptor)
    with pytest.raises(VhostUserError, match="SET_MEM_TABLE: the back-end refused"):
        run(frontend.start(FEATURES, [beyond], rings), backend)
    backend.close()


def test_a_part_of_the_configuration_space_that_is_not_there_is_an_error() -> None:
    backend, frontend = Backend(FakeDevice()), Frontend()
    run(frontend.negotiate(), backend)
    with pytest.raises(VhostUserError, match="no 4 bytes at 8"):
        run(frontend.read_config(8, 4), backend)


@pytest.mark.parametrize(
    ("features", "protocol_features", "why"),
    [(1 << 32, 0x209, "no protocol features"), (1 << 30 | 1 << 32, 0x9, "no CID")],
)
def test_a_back_end_that_cannot_serve_is_told_apart(features: int, protocol_features: int, why: str) -> None:
    negotiation = Frontend().negotiate()
    assert next(negotiation).request == Request.GET_FEATURES
    with pytest.raises(VhostUserError, match=why):  # noqa: PT012 (whichever answer tells)
        negotiation.send(Message(Request.GET_FEATURES, U64.pack(features), reply=True))
        negotiation.send(Message(Request.GET_PROTOCOL_FEATURES, U64.pack(protocol_features), reply=True))


def test_a_back_end_with_little_is_served_with_little() -> None:
    """No REPLY_ACK and no MQ: nothing waits for an acknowledgement, and two rings are passed."""
    frontend = Frontend()
    negotiation = frontend.negotiate()
    next(negotiation)
    negotiation.send(Message(Request.GET_FEATURES, U64.pack(1 << 30 | 1 << 32), reply=True))
    negotiation.send(Message(Request.GET_PROTOCOL_FEATURES, U64.pack(1 << 9), reply=True))
    assert next(negotiation).request == Request.SET_OWNER
    assert list(negotiation) == []
    assert frontend.queues == 2
    assert list(frontend.reset()) == []


class SmallServer:
    """A back-end on a socket, for one session, in a thread."""

    def __init__(self, path: Path, *, requests_max: int | None = None) -> None:
        self.device = FakeDevice()
        self._left = requests_max
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeDevice:
        self._thread.start()
        return self.device

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        backend, decoder = Backend(self.device), MessageDecoder()
        with connection, contextlib.closing(backend):
            while self._left is None or self._left > 0:
                data, descriptors, _, _ = socket.recv_fds(connection, decoder.wanted, 8)
                if not data:
                    return
                message = decoder.feed(data, descriptors)
                if message is not None:
                    connection.sendall(backend.receive(message))
                    self._left = None if self._left is None else self._left - 1


def test_over_a_socket(tmp_path: Path, shared: Shared) -> None:
    region, rings = shared
    path = tmp_path / "vhost.sock"
    with SmallServer(path) as device, FrontendSocket.connect(path) as frontend:
        assert frontend.features == FEATURES
        assert frontend.read_config(0, 8)[0] == 16
        frontend.start(FEATURES, [region], rings)
        assert device.rings is not None
        frontend.stop()
        frontend.reset()
    assert device.log == ["start", "stop", "reset", "reset"]


@pytest.mark.parametrize("requests", range(1, 12))
def test_a_back_end_that_goes_away_in_the_middle_is_an_error(
    tmp_path: Path, shared: Shared, requests: int
) -> None:
    region, rings = shared
    path = tmp_path / "vhost.sock"
    with (
        SmallServer(path, requests_max=requests),
        pytest.raises(VhostUserError, match=r"back-end (is gone|closed)"),
        FrontendSocket.connect(path) as frontend,
    ):
        frontend.start(FEATURES, [region], rings)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no vhost-user back-end at .*No such file"):
        FrontendSocket.connect(tmp_path / "vhost.sock")


def test_a_back_end_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "mute.sock"))
        listener.listen(1)
        with pytest.raises(VhostUserError, match="GET_FEATURES: the back-end does not answer"):
            FrontendSocket.connect(tmp_path / "mute.sock", timeout_s=0.01)


@pytest.mark.parametrize(
    ("request_number", "reply"), [(Request.GET_FEATURES, False), (Request.SET_FEATURES, True)]
)
def test_an_answer_to_something_else_is_an_error(request_number: Request, *, reply: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(Message(request_number, U64.pack(0), reply=reply).encode())

        with pytest.raises(VhostUserError, match=f"the back-end answered {request_number.name}"):
            FrontendSocket.negotiate(ours)
