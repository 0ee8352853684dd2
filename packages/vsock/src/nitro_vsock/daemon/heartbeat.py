"""The heartbeat of a Nitro enclave, answered by the daemon, so that QEMU's users need no program for it.

When an enclave has booted, its init connects to port 9000 of the parent, sends the byte 0xB7 and waits for
the same byte (aws-nitro-enclaves-cli, ``enclave_proc``). An enclave without an answer ends itself.
"""

import socket
from collections.abc import Mapping

import trio

from nitro_vsock.daemon.logs import LOGGER

HEARTBEAT_PORT = 9000
HEARTBEAT = b"\xb7"
TIMEOUT_S = 5.0
"""How long the enclave may take for its one byte."""


class Heartbeat:
    """Answers the heartbeat of one guest: a service of its engine. Make it in a trio task.

    Args:
        nursery: Where the answers are given.
        log: What the log says with every line.
    """

    def __init__(self, nursery: trio.Nursery, log: Mapping[str, object]) -> None:
        self.answered = 0
        """Heartbeats so far."""
        self.wrong = 0
        """Connections so far that brought something else, or nothing."""
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._log = log

    def serve(self, sock: socket.socket) -> None:
        """Answer one connection. From the engine's thread, so that it only hands the socket on."""
        try:
            self._token.run_sync_soon(self._begin, sock)
        except trio.RunFinishedError:
            sock.close()

    def _begin(self, sock: socket.socket) -> None:
        try:
            self._nursery.start_soon(self._answer, trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
        except RuntimeError:  # the nursery has ended
            sock.close()

    async def _answer(self, stream: trio.SocketStream) -> None:
        async with stream:
            said = b""
            with trio.move_on_after(TIMEOUT_S):
                try:
                    said = await stream.receive_some(len(HEARTBEAT))
                    if said == HEARTBEAT:
                        await stream.send_all(HEARTBEAT)
                except trio.BrokenResourceError:
                    said = b""
            self._count(said)  # before the close, because who sees that may ask for the counters

    def _count(self, said: bytes) -> None:
        if said == HEARTBEAT:
            self.answered += 1
            LOGGER.info("heartbeat: the enclave has booted", extra=self._log)
            return
        self.wrong += 1
        if self.wrong == 1:  # a guest must not fill the log
            LOGGER.warning("a heartbeat that is none; further ones are only counted", extra=self._log)
