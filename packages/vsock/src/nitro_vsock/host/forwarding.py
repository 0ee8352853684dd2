"""What AWS's ``vsock-proxy`` does: whoever connects to one of the listeners reaches one TCP endpoint.

The listeners are vsock or unix sockets of the host. Bytes are moved here, because nobody else has both ends.
"""

import logging
import socket
from collections.abc import Sequence
from typing import NoReturn

import trio

from nitro_vsock.host.endpoints import Endpoint
from nitro_vsock.host.listening import accept
from nitro_vsock.host.proxy import dial
from nitro_vsock.host.relay import relay

LOGGER = logging.getLogger(__name__)


class Forwarder:
    """Leads connections to one endpoint.

    Args:
        target: Where they lead.
        workers: How many connections there may be at a time; the next ones wait to be accepted.
        family: The only kind of address to try; by default all.
    """

    def __init__(
        self, target: Endpoint, *, workers: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> None:
        self._target = target
        self._workers = trio.Semaphore(workers)
        self._family = family

    async def serve(self, listeners: Sequence[socket.socket]) -> NoReturn:
        """Accept from all listeners, which are non-blocking, until cancelled.

        Raises:
            OSError: A listener cannot accept any more.
        """
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._serve_one, trio.socket.from_stdlib_socket(listener), nursery)
            await trio.sleep_forever()
        raise AssertionError  # a nursery that nobody cancels does not end

    async def _serve_one(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            # A place is taken only when somebody is there, because another listener may need it until then.
            await trio.lowlevel.wait_readable(listener)
            await self._workers.acquire()
            nursery.start_soon(self._lead, trio.SocketStream(await accept(listener)))

    async def _lead(self, guest: trio.SocketStream) -> None:
        try:
            async with guest:
                try:
                    server = await dial(self._target, self._family)
                except ConnectionRefusedError as error:
                    LOGGER.warning("cannot connect", extra={"target": str(self._target), "why": str(error)})
                    return
                async with server:
                    await relay(guest, server)
        finally:
            self._workers.release()
