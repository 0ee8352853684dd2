"""vhost-user sessions over sockets: read one message at a time, let the back-end obey it, send its answer."""

import array
import contextlib
import os
import socket
from collections.abc import Sequence

import trio

from nitro_vsock.vhost_user.backend import Backend
from nitro_vsock.vhost_user.errors import VhostUserError
from nitro_vsock.vhost_user.messages import DESCRIPTORS_MAX, MessageDecoder

_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)


async def serve(connection: trio.socket.SocketType, backend: Backend) -> None:
    """Serve one front-end until it goes; closes the back-end, not the connection.

    Raises:
        VhostUserError: The front-end broke the protocol, or asked for what cannot be done.
        OSError: The connection broke.
    """
    decoder = MessageDecoder()
    try:
        while True:
            data, descriptors = await _receive(connection, decoder.wanted)
            if not data:
                if not decoder.idle:
                    raise VhostUserError("the front-end went in the middle of a message")
                return
            message = decoder.feed(data, descriptors)
            if message is not None and (answer := backend.receive(message)):
                await _send_all(connection, answer)
    finally:
        _close_all(decoder.take_descriptors())
        backend.close()


async def _receive(connection: trio.socket.SocketType, wanted: int) -> tuple[bytes, Sequence[int]]:
    data, ancillary, flags, _ = await connection.recvmsg(wanted, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        _close_all(descriptors)
        raise VhostUserError(
            f"more than {DESCRIPTORS_MAX} file descriptors with one message, or none left here"
        )
    return data, descriptors


async def _send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await connection.send(data) :]


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
