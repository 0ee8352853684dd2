"""Ports of a guest that programs of the host reach: without a guest, and without a daemon."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from nitro_vsock import HostError, SocketType
from nitro_vsock.host import Published
from nitro_vsock.host.publish import Publisher


class Guest:
    """Takes every connection, and accepts or refuses it."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts = accepts
        self.opened, self.received = trio.open_memory_channel[tuple[socket.socket, int]](10)

    def adopt(
        self,
        sock: socket.socket,
        guest_port: int,
        socket_type: SocketType = SocketType.STREAM,  # noqa: ARG002
        *,
        on_result: Callable[[bool], None] | None = None,
    ) -> None:
        assert on_result is not None
        on_result(self.accepts)
        self.opened.send_nowait((sock, guest_port))


def published(text: str) -> Published:
    return Published.model_validate(Published.parse(text))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_tcp_connection_is_joined_with_the_guests_port_and_counted(
    nursery: trio.Nursery, *, accepts: bool
) -> None:
    port, guest = free_port(), Guest(accepts=accepts)
    with Publisher.open(published(f"tcp:127.0.0.1:{port}=80")) as publisher:
        nursery.start_soon(publisher.serve, guest)

        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            sock, guest_port = await guest.received.receive()
            with sock:
                assert guest_port == 80
                assert not sock.getblocking()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                sock.send(b"hello")
                assert await visitor.receive_some() == b"hello"

        assert (publisher.connections, publisher.refused) == ((1, 0) if accepts else (0, 1))
        assert publisher.name == f"publish tcp:127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def test_a_unix_socket_is_private_and_goes_away(nursery: trio.Nursery, tmp_path: Path) -> None:
    path, guest = tmp_path / "web", Guest()
    with Publisher.open(published(f"unix:{path}=80"), users=frozenset({os.geteuid()})) as publisher:
        assert path.stat().st_mode & 0o777 == 0o600
        nursery.start_soon(publisher.serve, guest)

        async with await trio.open_unix_socket(path):
            sock, _ = await guest.received.receive()
            sock.close()

        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_programs_of_other_users_are_refused_and_counted(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, guest = tmp_path / "web", Guest()
    with Publisher.open(published(f"unix:{path}=80"), users=frozenset({12345})) as publisher:
        nursery.start_soon(publisher.serve, guest)

        async with await trio.open_unix_socket(path) as visitor:
            assert await visitor.receive_some() == b""

        assert (publisher.connections, publisher.refused) == (0, 1)
        assert "another user" in caplog.text
        nursery.cancel_scope.cancel()


def test_a_port_that_is_taken_leaves_nothing_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(HostError, match=r"cannot publish at 127\.0\.0\.1"),
    ):
        Publisher.open(published(f"tcp:127.0.0.1:{taken.getsockname()[1]}=80"))


def test_every_address_of_a_name_is_listened_at() -> None:
    port = free_port()

    with Publisher.open(published(f"tcp:localhost:{port}=80")), socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_name_whose_addresses_are_all_elsewhere_is_refused() -> None:
    with pytest.raises(HostError, match=r"cannot publish at 192\.0\.2\.1"):  # TEST-NET-1 (RFC 5737)
        Publisher.open(published("tcp:192.0.2.1:80=80"))


def test_all_addresses_of_the_host() -> None:
    port = free_port()

    with Publisher.open(published(f"tcp:*:{port}=80")), socket.create_connection(("127.0.0.1", port)):
        pass
