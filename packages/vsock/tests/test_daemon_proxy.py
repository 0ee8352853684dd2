"""TCP endpoints for guests: connected, refused, and the allow-list."""

import socket
from concurrent.futures import Future
from typing import Any

import pytest
import trio

from nitro_vsock import SocketType, UsageError
from nitro_vsock.host import Destination, Proxied, RefusingHostSide
from nitro_vsock.host.allowlist import AllowedEndpoint, Allowlist
from nitro_vsock.host.proxy import CONNECTING_MAX, ProxyHostSide, dial

ALLOWED = Allowlist(
    allowlist=(
        AllowedEndpoint(address="kms.example", port=443),
        AllowedEndpoint(address="127.0.0.1", port=80),
    )
)


def to(port: int) -> list[Proxied]:
    """Port 8000 of the host leads to this port of the machine."""
    return [Proxied(port=8000, target=Destination(host="127.0.0.1", port=port))]


def connect(
    proxy: ProxyHostSide, port: int, socket_type: SocketType = SocketType.STREAM
) -> Future[socket.socket]:
    future = proxy.connect(port, socket_type)
    assert isinstance(future, Future)
    return future


async def result(future: Future[socket.socket]) -> socket.socket:
    return await trio.to_thread.run_sync(future.result)


async def test_a_port_leads_to_its_endpoint(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = ProxyHostSide(to(server.getsockname()[1]), RefusingHostSide(), nursery)
        with await result(connect(proxy, 8000)) as joined:
            assert not joined.getblocking()
            peer, _ = server.accept()
            with peer:
                joined.send(b"hello")
                assert peer.recv(5) == b"hello"
    assert proxy.routes[8000].connections == 1


async def test_an_endpoint_that_refuses_refuses_the_guest(nursery: trio.Nursery) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        proxy = ProxyHostSide(to(reserved.getsockname()[1]), RefusingHostSide(), nursery)
        with pytest.raises(ConnectionRefusedError):
            await result(connect(proxy, 8000))
    assert proxy.routes[8000].refused == 1


class Resolver(trio.abc.HostnameResolver):
    """Knows addresses of one host, some of which nobody answers at."""

    async def getaddrinfo(  # noqa: PLR0917
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002, ARG002
        proto: int = 0,  # noqa: ARG002
        flags: int = 0,  # noqa: ARG002
    ) -> list[Any]:
        assert host == b"server.example"
        known = [
            (socket.AF_INET6, "::1"),
            (socket.AF_INET, "127.0.0.2"),
            (socket.AF_INET, "127.0.0.1"),
        ]
        return [
            (kind, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, int(port or 0)))
            for kind, address in known
            if family in (0, kind)
        ]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_only_addresses_of_the_family_that_is_asked_for_are_tried() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = Destination(host="server.example", port=server.getsockname()[1])

        for family in (socket.AF_UNSPEC, socket.AF_INET):
            stream = await dial(target, family)
            await stream.aclose()
        with pytest.raises(ConnectionRefusedError):
            await dial(target, socket.AF_INET6)


async def test_the_log_says_why_an_endpoint_cannot_be_reached(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await result(connect(ProxyHostSide(to(port), RefusingHostSide(), nursery), 8000))

    (record,) = caplog.records
    assert record.__dict__["target"] == f"127.0.0.1:{port}"
    assert record.__dict__["why"].endswith("Connection refused")


async def test_an_endpoint_that_never_answers_is_given_up(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(*_: object) -> trio.SocketStream:
        raise trio.TooSlowError

    monkeypatch.setattr(trio, "open_tcp_stream", never)

    with pytest.raises(ConnectionRefusedError):
        await result(connect(ProxyHostSide(to(1), RefusingHostSide(), nursery), 8000))

    assert caplog.records[0].__dict__["why"] == "it took too long"


async def test_other_endpoints_from_now_on_and_counts_of_those_that_stay(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = to(server.getsockname()[1])
        proxy = ProxyHostSide(here, RefusingHostSide(), nursery)
        (await result(connect(proxy, 8000))).close()

        proxy.replace([*here, Proxied(port=8001, target=Destination(host="127.0.0.1", port=1))])

        assert proxy.routes[8000].connections == 1
        assert proxy.routes[8001].connections == 0
        proxy.replace([])
        with pytest.raises(FileNotFoundError):
            proxy.connect(8000, SocketType.STREAM)


async def test_a_guest_that_goes_meanwhile_leaves_no_connection(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = ProxyHostSide(to(server.getsockname()[1]), RefusingHostSide(), nursery)
        connect(proxy, 8000).cancel()
        peer, _ = await trio.to_thread.run_sync(server.accept)
        with peer:
            assert await trio.to_thread.run_sync(peer.recv, 1) == b""


async def test_connections_on_their_way_are_bounded(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTING_MAX * 2) as server:
        proxy = ProxyHostSide(to(server.getsockname()[1]), RefusingHostSide(), nursery)
        futures = [connect(proxy, 8000) for _ in range(CONNECTING_MAX + 1)]
        with pytest.raises(ConnectionRefusedError, match="too many"):
            await result(futures.pop())
        for future in futures:
            (await result(future)).close()


async def test_tcp_has_no_messages(nursery: trio.Nursery) -> None:
    proxy = ProxyHostSide(to(1), RefusingHostSide(), nursery)
    with pytest.raises(ConnectionRefusedError, match="no messages"):
        proxy.connect(8000, SocketType.SEQPACKET)


async def test_other_ports_are_others_business(nursery: trio.Nursery) -> None:
    proxy = ProxyHostSide(to(1), RefusingHostSide(), nursery)
    with pytest.raises(FileNotFoundError, match="8001"):
        proxy.connect(8001, SocketType.STREAM)


@pytest.mark.parametrize("target", ["kms.example:443", "KMS.example:443", "127.0.0.1:80", "localhost:80"])
def test_what_the_allow_list_allows(target: str) -> None:
    ALLOWED.check(Destination.parse(target))


@pytest.mark.parametrize("target", ["kms.example:80", "127.0.0.1:443", "127.0.0.2:80", "example:443"])
def test_what_it_does_not(target: str) -> None:
    with pytest.raises(UsageError, match="not in the allow-list"):
        ALLOWED.check(Destination.parse(target))
