"""The front-end's half of a vhost-user session, for machines whose vsock device is another process.

`Frontend` needs no socket: each of its methods is a generator that yields messages to send and, where the
message has an answer, is sent that answer. It keeps to the order of QEMU, which every back-end is used to.
`FrontendSocket` is the small shell that runs these generators over a connected unix socket.

A machine asks for the configuration and the features when it is built (`connect`). It starts the rings when
its guest's driver says DRIVER_OK, and stops them when the driver resets the device. Meanwhile it watches
`fileno()`: because a back-end never sends anything unasked, a readable socket means that the back-end is
gone.
"""

import array
import os
import socket
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from nitro_vsock.errors import HostError
from nitro_vsock.vhost_user import messages
from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.messages import (
    MemoryRegion,
    Message,
    MessageDecoder,
    ProtocolFeature,
    Request,
    memory_table,
)
from nitro_vsock.virtio.split_queue import QueueLayout

REPLY_TIMEOUT_S = 10.0
"""A back-end answers within microseconds; one that has not by now never will."""

PROTOCOL_FEATURES_WANTED = (
    ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.RESET_DEVICE
)

_T = TypeVar("_T")
Exchange = Generator[Message, Message | None, _T]
"""Yields messages to send. It is sent the answer to each, or `None` if the message has no answer."""


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """A part of guest memory and the file that holds it; numbers in bytes."""

    guest_address: int
    size: int
    descriptor: int
    file_offset: int = 0


@dataclass(frozen=True, slots=True)
class SharedRing:
    """A ring to start: where it is in guest-physical addresses, from where to go on, and its eventfds."""

    layout: QueueLayout
    kick: int
    call: int
    next_available: int = 0


class Frontend:
    """What a front-end says, in order."""

    def __init__(self) -> None:
        self.features = 0
        """The virtio features that the back-end offers, after `negotiate`."""
        self.protocol_features = ProtocolFeature(0)
        self.queues = 0
        """How many rings the back-end has, after `negotiate`; 2 where it does not say."""
        self._rings = 0

    def negotiate(self) -> Exchange[None]:
        """Learn the back-end's features and agree on protocol features.

        Raises:
            VhostUserError: The back-end lacks what a vsock device needs, or answers something else.
        """
        offered = yield from self._ask(Request.GET_FEATURES)
        if not offered & messages.PROTOCOL_FEATURES:
            raise VhostUserError("the back-end has no protocol features, so no configuration space either")
        self.features = offered & ~messages.PROTOCOL_FEATURES
        known = yield from self._ask(Request.GET_PROTOCOL_FEATURES)
        self.protocol_features = ProtocolFeature(known & PROTOCOL_FEATURES_WANTED)
        if ProtocolFeature.CONFIG not in self.protocol_features:
            raise VhostUserError("the back-end has no configuration space, so this guest would have no CID")
        yield Message(Request.SET_PROTOCOL_FEATURES, messages.U64.pack(self.protocol_features))
        self.queues = 2
        if ProtocolFeature.MQ in self.protocol_features:
            self.queues = yield from self._ask(Request.GET_QUEUE_NUM)
        yield Message(Request.SET_OWNER)

    def read_config(self, offset: int, length: int) -> Exchange[bytes]:
        """A part of the configuration space.

        Raises:
            VhostUserError: The back-end has no such part.
        """
        content = yield Message(Request.GET_CONFIG, messages.CONFIG.pack(offset, length, 0) + bytes(length))
        expected = messages.CONFIG.size + length
        if content is None or len(content.payload) != expected:
            raise VhostUserError(f"GET_CONFIG: the back-end has no {length} bytes at {offset}")
        return content.payload[messages.CONFIG.size :]

    def start(
        self, features: int, regions: Sequence[SharedRegion], rings: Sequence[SharedRing]
    ) -> Exchange[None]:
        """Share the memory and start the rings: receive, transmit and, where the back-end has it, event.

        Raises:
            VhostUserError: The back-end refuses something.
        """
        self._rings = min(len(rings), self.queues)
        yield Message(Request.SET_FEATURES, messages.U64.pack(features | messages.PROTOCOL_FEATURES))
        # The front-end's own addresses are known to no other process, so the guest's do as well.
        table = memory_table(
            [MemoryRegion(r.guest_address, r.size, r.guest_address, r.file_offset) for r in regions]
        )
        yield from self._do(Request.SET_MEM_TABLE, table, *(region.descriptor for region in regions))
        for index, ring in enumerate(rings[: self._rings]):
            layout = ring.layout
            yield Message(Request.SET_VRING_NUM, messages.VRING_STATE.pack(index, layout.size))
            yield Message(Request.SET_VRING_BASE, messages.VRING_STATE.pack(index, ring.next_available))
            yield Message(
                Request.SET_VRING_ADDR,
                messages.VRING_ADDRESS.pack(
                    index, 0, layout.descriptor_table, layout.used_ring, layout.available_ring, 0
                ),
            )
            yield Message(Request.SET_VRING_CALL, messages.U64.pack(index), (ring.call,))
            yield Message(Request.SET_VRING_KICK, messages.U64.pack(index), (ring.kick,))
        # The event ring first: a device starts with its first two, and should know the third by then.
        for index in reversed(range(self._rings)):
            yield from self._do(Request.SET_VRING_ENABLE, messages.VRING_STATE.pack(index, 1))

    def stop(self) -> Exchange[list[int]]:
        """Stop the rings; returns from where each would go on."""
        for index in range(self._rings):
            yield from self._do(Request.SET_VRING_ENABLE, messages.VRING_STATE.pack(index, 0))
        positions = []
        for index in range(self._rings):
            answer = yield Message(Request.GET_VRING_BASE, messages.VRING_STATE.pack(index, 0))
            if answer is None:
                raise VhostUserError("GET_VRING_BASE: no answer")
            positions.append(answer.unpack(messages.VRING_STATE)[1])
        self._rings = 0
        return positions

    def reset(self) -> Exchange[None]:
        """Tell the back-end that the guest was reset, if it can be told."""
        if ProtocolFeature.RESET_DEVICE in self.protocol_features:
            yield from self._do(Request.RESET_DEVICE, b"")

    def expects_reply(self, message: Message) -> bool:
        """Whether the back-end has to answer a message."""
        return message.need_reply or message.request in ANSWERED

    def _ask(self, request: Request) -> Exchange[int]:
        answer = yield Message(request)
        if answer is None:
            raise VhostUserError(f"{request.name}: no answer")
        return answer.u64()

    def _do(self, request: Request, payload: bytes, *descriptors: int) -> Exchange[None]:
        """A request that has no answer of its own: have it acknowledged, where the back-end can."""
        acknowledged = ProtocolFeature.REPLY_ACK in self.protocol_features
        answer = yield Message(request, payload, descriptors, need_reply=acknowledged)
        if acknowledged and (answer is None or answer.u64()):
            raise VhostUserError(f"{request.name}: the back-end refused it; its log may say why")


ANSWERED = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_VRING_BASE,
        Request.GET_MAX_MEM_SLOTS,
    }
)
"""Requests with an answer of their own."""


class FrontendSocket:
    """A front-end on a connected unix socket. Blocks for as long as the back-end needs to answer.

    Use it as a context manager, or `close` it.

    Args:
        connection: Connected to the back-end; owned from now on.
        timeout_s: How long to wait for an answer.
    """

    def __init__(self, connection: socket.socket, *, timeout_s: float = REPLY_TIMEOUT_S) -> None:
        connection.settimeout(timeout_s)
        self._connection = connection
        self._frontend = Frontend()

    @classmethod
    def connect(cls, path: Path | str, *, timeout_s: float = REPLY_TIMEOUT_S) -> Self:
        """Connect to a back-end that listens at ``path`` and negotiate.

        Raises:
            HostError: Nobody listens there.
            VhostUserError: Who listens there is no back-end that could serve.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(os.fspath(path))
        except OSError as error:
            connection.close()
            raise HostError(f"no vhost-user back-end at {path}: {error.strerror or error}") from error
        return cls.negotiate(connection, timeout_s=timeout_s)

    @classmethod
    def negotiate(cls, connection: socket.socket, *, timeout_s: float = REPLY_TIMEOUT_S) -> Self:
        """Negotiate on a socket that is connected to a back-end; takes it over.

        Raises:
            VhostUserError: Who is there is no back-end that could serve.
        """
        frontend = cls(connection, timeout_s=timeout_s)
        try:
            frontend._run(frontend._frontend.negotiate())
        except BaseException:
            connection.close()
            raise
        return frontend

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the back-end stops the rings by itself."""
        self._connection.close()

    def fileno(self) -> int:
        """Readable when the back-end is gone."""
        return self._connection.fileno()

    @property
    def features(self) -> int:
        """The virtio features that the back-end offers."""
        return self._frontend.features

    def read_config(self, offset: int, length: int) -> bytes:
        """A part of the configuration space; raises `VhostUserError` where there is none."""
        return self._run(self._frontend.read_config(offset, length))

    def start(self, features: int, regions: Sequence[SharedRegion], rings: Sequence[SharedRing]) -> None:
        """Share memory and start the rings; raises `VhostUserError` if the back-end refuses or is gone."""
        self._run(self._frontend.start(features, regions, rings))

    def stop(self) -> list[int]:
        """Stop the rings; returns from where each would go on. Raises `VhostUserError` as `start`."""
        return self._run(self._frontend.stop())

    def reset(self) -> None:
        """Tell the back-end that the guest was reset, if it can be told; raises as `start` does."""
        self._run(self._frontend.reset())

    def _run(self, sequence: Exchange[_T]) -> _T:
        answer: Message | None = None
        while True:
            try:
                message = sequence.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            try:
                self._send(message)
                answer = self._receive(message) if self._frontend.expects_reply(message) else None
            except TimeoutError:
                raise VhostUserError(f"{message.name}: the back-end does not answer") from None
            except OSError as error:
                raise VhostUserError(f"{message.name}: the back-end is gone: {error.strerror}") from error

    def _send(self, message: Message) -> None:
        data = message.encode()
        rights = array.array("i", message.descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        sent = self._connection.sendmsg([data], ancillary)
        self._connection.sendall(data[sent:])

    def _receive(self, message: Message) -> Message:
        decoder = MessageDecoder()
        answer = None
        while answer is None:
            data = self._connection.recv(decoder.wanted)
            if not data:
                raise VhostUserError(f"{message.name}: the back-end closed the connection")
            answer = decoder.feed(data)
        if not answer.reply or answer.request != message.request:
            raise VhostUserError(f"{message.name}: the back-end answered {answer.name}")
        return answer
