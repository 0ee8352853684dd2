"""The enclave's way out: proxied ports, and the HTTP proxy with its list."""

import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nitro_vmm.config import Endpoint, Proxied
from nitro_vmm.enclave.egress import Egress
from nitro_vmm.enclave.parent import ParentSide
from nitro_vsock import SocketType

# The bounds as they are promised, so that those of the program are held against them.
CONNECTING_MAX = 64


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """A TCP server that sends back what it gets; its port."""

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for piece in stream:
                await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, echo, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def egress(*allowed: Endpoint, proxied: tuple[Proxied, ...] = ()) -> AsyncIterator[Egress]:
    made = Egress(proxied, allowed)
    async with trio.open_nursery() as nursery:
        made.nursery = nursery
        yield made
        nursery.cancel_scope.cancel()


async def result(future: "Future[socket.socket]") -> socket.socket:
    return await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def through_http(out: Egress) -> trio.SocketStream:
    """The enclave's end of a connection to the HTTP proxy."""
    ours, theirs = socket.socketpair()
    out.serve_http(theirs)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


def dial(out: Egress, target: Endpoint) -> Future[socket.socket]:
    future: Future[socket.socket] = Future()
    out.dial(target, future)
    return future


async def test_a_proxied_port_leads_to_its_endpoint() -> None:
    async with echo_server() as port:
        proxied = Proxied(port=8000, target=Endpoint(host="127.0.0.1", port=port))
        async with egress(proxied=(proxied,)) as out:
            parent = ParentSide(None, lambda: None, soon=lambda function: function())
            parent.egress = out
            future = parent.connect(8000, SocketType.STREAM)
            assert isinstance(future, Future)
            sock = await result(future)
            sock.setblocking(True)
            sock.sendall(b"hello")
            answer = await trio.to_thread.run_sync(sock.recv, 100)
            sock.close()

    assert answer == b"hello"


async def test_an_endpoint_that_refuses_is_a_refusal_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    target = Endpoint(host="127.0.0.1", port=unused_port())
    async with egress() as out:
        with pytest.raises(ConnectionRefusedError):
            await result(dial(out, target))

    assert f"the enclave's connection to {target} failed: Connection refused" in caplog.text


async def test_connections_on_their_way_are_bounded() -> None:
    async with egress() as out:
        target = Endpoint(host="127.0.0.1", port=unused_port())
        futures = [dial(out, target) for _ in range(CONNECTING_MAX + 1)]

        with pytest.raises(ConnectionRefusedError, match="too many"):
            futures[-1].result(0)


async def test_what_is_allowed_is_reached_by_name() -> None:
    async with (
        echo_server() as port,
        egress(Endpoint(host="localhost", port=port)) as out,
        through_http(out) as stream,
    ):
        await stream.send_all(f"CONNECT LOCALHOST:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly ".encode())
        await stream.send_all(b"and late")
        await stream.send_eof()
        received = await read_all(stream)

    assert received == b"HTTP/1.1 200 Connection established\r\n\r\nearly and late"


@pytest.mark.parametrize(
    ("request_", "status", "logged"),
    [
        (b"CONNECT example.com:80 HTTP/1.1\r\n\r\n", b"403", "--allow example.com:80 would let it"),
        (b"CONNECT evil-example.com:443 HTTP/1.1\r\n\r\n", b"403", "may not connect"),
        (b"GET http://example.com/ HTTP/1.1\r\n\r\n", b"405", "no CONNECT"),
        (b"CONNECT \x1b[31m:443 HTTP/1.1\r\n\r\n", b"405", "no CONNECT"),
        (b"CONNECT " + b"a" * 10_000, b"405", "no CONNECT"),
        (b"CONNECT a:99999 HTTP/1.1\r\n\r\n", b"405", "no CONNECT"),
    ],
)
async def test_what_is_not_allowed_is_refused_and_logged(
    request_: bytes, status: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with egress(Endpoint(host="*.example.com", port=443)) as out, through_http(out) as stream:
        await stream.send_all(request_)
        received = await read_all(stream)

    assert received.split()[1] == status
    assert logged in caplog.text


async def test_an_allowed_endpoint_that_refuses() -> None:
    port = unused_port()
    async with egress(Endpoint(host="localhost", port=port)) as out, through_http(out) as stream:
        await stream.send_all(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n".encode())
        received = await read_all(stream)

    assert received.startswith(b"HTTP/1.1 502 ")


async def test_a_silent_enclave_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async with egress() as out, through_http(out) as stream:
        received = await read_all(stream)

    assert received == b""


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("kms.example.com", True),
        ("A.B.EXAMPLE.COM.", True),
        ("example.com", False),
        ("notexample.com", False),
        ("example.com.evil.org", False),
    ],
)
def test_wildcards(host: str, allowed: object) -> None:
    out = Egress([], [Endpoint(host="*.example.com", port=443)])

    assert out.allows(Endpoint(host=host, port=443)) is allowed
    assert not out.allows(Endpoint(host=host, port=80))
