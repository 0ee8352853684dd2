"""The enclave's way out: ports of the parent that lead to TCP endpoints, and a proxy that knows names.

An enclave has no network. What it may reach is said outside: `Proxied` ports lead to one endpoint each, as
with AWS's vsock-proxy. `HTTP_PROXY_PORT` speaks HTTP's CONNECT (RFC 9110, section 9.3.6), for programs that
choose a name themselves, within the list of what is allowed. What is refused is logged.
"""

import logging
import os
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from nitro_vsock.host.relay import CHUNK_BYTES, relay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from nitro_vmm.config import Endpoint, Proxied

logger = logging.getLogger(__name__)

HTTP_PROXY_PORT: Final = 3128
"""Where Squid and many others are, so that ``HTTPS_PROXY`` settings look familiar."""
CONNECT_TIMEOUT_S: Final = 10.0
CONNECTING_MAX: Final = 64
"""Connections on their way at a time; the enclave's next one is refused, so that it cannot use up sockets."""
REQUEST_BYTES_MAX: Final = 8192
REQUEST_LINE: Final = re.compile(rb"CONNECT (\S{1,300}) HTTP/1\.[01]\r?\n")


class Egress:
    """Dials for one enclave.

    Args:
        proxied: Ports that lead to one endpoint each.
        allowed: What the HTTP proxy may connect to.
    """

    def __init__(self, proxied: "Sequence[Proxied]", allowed: "Sequence[Endpoint]") -> None:
        self.targets = {one.port: one.target for one in proxied}
        """Where each port leads."""
        self.allowed = tuple(allowed)
        self.nursery: trio.Nursery | None = None
        """Where connections are made; set before the enclave runs."""
        self._connecting = 0

    def dial(self, target: "Endpoint", future: "Future[socket.socket]") -> None:
        """Connect to a target; for the loop's own thread."""
        if self.nursery is None or self._connecting >= CONNECTING_MAX:
            future.set_exception(ConnectionRefusedError("too many connections on their way"))
        else:
            self._connecting += 1
            self.nursery.start_soon(self._answer, target, future)

    def serve_http(self, sock: socket.socket) -> None:
        """Serve a connection to the HTTP proxy; for the loop's own thread."""
        if self.nursery is None or self._connecting >= CONNECTING_MAX:
            sock.close()
            return
        self._connecting += 1
        self.nursery.start_soon(self._serve_http, sock)

    def allows(self, target: "Endpoint") -> bool:
        """Whether the list has it."""
        name = target.host.lower().rstrip(".")
        return any(
            one.port == target.port
            and (
                name.endswith(one.host[1:].lower()) if one.host.startswith("*.") else name == one.host.lower()
            )
            for one in self.allowed
        )

    async def _answer(self, target: "Endpoint", future: "Future[socket.socket]") -> None:
        try:
            stream = await _connect(target)
        except OSError as error:
            logger.warning("the enclave's connection to %s failed: %s", target, error)
            if future.set_running_or_notify_cancel():
                future.set_exception(ConnectionRefusedError(str(error)))
            return
        finally:
            self._connecting -= 1
        connection = socket.socket(fileno=stream.socket.detach())
        connection.setblocking(False)
        if future.set_running_or_notify_cancel():
            future.set_result(connection)
        else:
            connection.close()

    async def _serve_http(self, sock: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        async with stream:
            try:
                joined = await self._open(stream)
            finally:
                self._connecting -= 1
            if joined is not None:
                await _join(stream, *joined)

    async def _open(self, stream: trio.SocketStream) -> tuple[trio.SocketStream, bytes] | None:
        with trio.move_on_after(CONNECT_TIMEOUT_S), suppress(trio.BrokenResourceError):
            request = await _read_request(stream)
            head, separator, early = request.partition(b"\r\n\r\n")
            match = REQUEST_LINE.match(head + b"\r\n")
            target = _target(match[1]) if match and separator else None
            if target is None:
                logger.warning("the enclave's HTTP proxy got a request that is no CONNECT")
                await stream.send_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n")
                return None
            if not self.allows(target):
                logger.warning("the enclave may not connect to %s; --allow %s would let it", target, target)
                await stream.send_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return None
            try:
                server = await _connect(target)
            except OSError as error:
                logger.warning("the enclave's connection to %s failed: %s", target, error)
                await stream.send_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return None
            try:
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            except trio.BrokenResourceError:
                await server.aclose()
                return None
            return server, early
        return None


def _target(text: bytes) -> "Endpoint | None":
    from nitro_vmm.config import Endpoint  # noqa: PLC0415 - a model, and few have the proxy

    try:
        parsed = Endpoint.model_validate(Endpoint.parse(text.decode("ascii")))
    except ValueError:
        return None
    return parsed if parsed.host.isprintable() else None


async def _read_request(stream: trio.SocketStream) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request and len(request) < REQUEST_BYTES_MAX:
        piece = await stream.receive_some(CHUNK_BYTES)
        if not piece:
            break
        request += piece
    return request


async def _connect(target: "Endpoint") -> trio.SocketStream:
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            return await trio.open_tcp_stream(target.host, target.port)
    except trio.TooSlowError:
        raise ConnectionRefusedError(f"no answer within {CONNECT_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise ConnectionRefusedError(_why(error)) from error


def _why(error: OSError) -> str:
    cause = error.__cause__
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [error]
    reasons = (os.strerror(each.errno) for each in causes if isinstance(each, OSError) and each.errno)
    return ", ".join(dict.fromkeys(reasons)) or str(error)


async def _join(enclave: trio.SocketStream, server: trio.SocketStream, early: bytes) -> None:
    async with server:
        with suppress(trio.BrokenResourceError):  # `relay` finds out, too
            await server.send_all(early)
        await relay(enclave, server)
