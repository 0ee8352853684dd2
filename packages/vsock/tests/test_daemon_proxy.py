"""TCP endpoints for guests: connected, refused, and the allow-list."""

import socket
from concurrent.futures import Future

import pytest
import trio

from nitro_vsock.daemon.config import AllowedEndpoint, Allowlist, Target
from nitro_vsock.daemon.proxy import CONNECTING_MAX, ProxyHostSide, check_allowed
from nitro_vsock.errors import UsageError
from nitro_vsock.packet import SocketType

ALLOWED = Allowlist(
    allowlist=(
        AllowedEndpoint(address="kms.example", port=443),
        AllowedEndpoint(address="127.0.0.1", port=80),
    )
)


class Nobody:
    """A host side without listeners."""

    def connect(self, port: int, socket_type: SocketType) -> socket.socket:
        raise FileNotFoundError(f"{port} {socket_type.name}")


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
        target = Target(host="127.0.0.1", port=server.getsockname()[1])
        proxy = ProxyHostSide({8000: target}, Nobody(), nursery)
        with await result(connect(proxy, 8000)) as joined:
            assert not joined.getblocking()
            peer, _ = server.accept()
            with peer:
                joined.send(b"hello")
                assert peer.recv(5) == b"hello"
    assert proxy.endpoints[8000].connections == 1


async def test_an_endpoint_that_refuses_refuses_the_guest(nursery: trio.Nursery) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        target = Target(host="127.0.0.1", port=reserved.getsockname()[1])
        proxy = ProxyHostSide({8000: target}, Nobody(), nursery)
        with pytest.raises(ConnectionRefusedError):
            await result(connect(proxy, 8000))
    assert proxy.endpoints[8000].refused == 1


async def test_a_guest_that_goes_meanwhile_leaves_no_connection(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = ProxyHostSide(
            {8000: Target(host="127.0.0.1", port=server.getsockname()[1])}, Nobody(), nursery
        )
        connect(proxy, 8000).cancel()
        peer, _ = await trio.to_thread.run_sync(server.accept)
        with peer:
            assert await trio.to_thread.run_sync(peer.recv, 1) == b""


async def test_connections_on_their_way_are_bounded(nursery: trio.Nursery) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTING_MAX * 2) as server:
        proxy = ProxyHostSide(
            {8000: Target(host="127.0.0.1", port=server.getsockname()[1])}, Nobody(), nursery
        )
        futures = [connect(proxy, 8000) for _ in range(CONNECTING_MAX + 1)]
        with pytest.raises(ConnectionRefusedError, match="too many"):
            await result(futures.pop())
        for future in futures:
            (await result(future)).close()


async def test_tcp_has_no_messages(nursery: trio.Nursery) -> None:
    proxy = ProxyHostSide({8000: Target(host="127.0.0.1", port=1)}, Nobody(), nursery)
    with pytest.raises(ConnectionRefusedError, match="no messages"):
        connect(proxy, 8000, SocketType.SEQPACKET).result()


async def test_other_ports_are_others_business(nursery: trio.Nursery) -> None:
    proxy = ProxyHostSide({8000: Target(host="127.0.0.1", port=1)}, Nobody(), nursery)
    with pytest.raises(FileNotFoundError, match="8001"):
        proxy.connect(8001, SocketType.STREAM)


@pytest.mark.parametrize("target", ["kms.example:443", "KMS.example:443", "127.0.0.1:80", "localhost:80"])
def test_what_the_allow_list_allows(target: str) -> None:
    check_allowed(Target.parse(target), ALLOWED)


@pytest.mark.parametrize("target", ["kms.example:80", "127.0.0.1:443", "127.0.0.2:80", "example:443"])
def test_what_it_does_not(target: str) -> None:
    with pytest.raises(UsageError, match="not in the allow-list"):
        check_allowed(Target.parse(target), ALLOWED)
