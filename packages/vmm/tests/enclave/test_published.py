"""Ports of the enclave on this machine."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import trio

from nitro_vmm import HostError
from nitro_vmm.config import Endpoint, Published
from nitro_vmm.enclave.published import PublishedPorts

if TYPE_CHECKING:
    from nitro_vsock import VsockEngine

LOOPBACK = Endpoint(host="127.0.0.1", port=0)


class FakeEngine:
    """Takes the connections that it is given."""

    def __init__(self) -> None:
        self.send, self.adopted = trio.open_memory_channel[tuple[socket.socket, int]](10)

    def adopt(self, sock: socket.socket, guest_port: int) -> None:
        self.send.send_nowait((sock, guest_port))


async def test_connections_reach_the_enclaves_port(tmp_path: Path) -> None:
    engine, said = FakeEngine(), list[str]()
    published = [Published(listen=LOOPBACK, port=5000), Published(listen=tmp_path / "web", port=5001)]
    with ExitStack() as resources:
        ports = PublishedPorts(published, resources, said.append)
        async with trio.open_nursery() as nursery:
            ports.start(nursery, cast("VsockEngine", engine))
            (tcp, _), _ = ports.endpoints
            assert isinstance(tcp, Endpoint)
            async with await trio.open_tcp_stream(tcp.host, tcp.port):
                sock, first = await engine.adopted.receive()
                sock.close()
            async with await trio.open_unix_socket(tmp_path / "web"):
                sock, second = await engine.adopted.receive()
                sock.close()
            nursery.cancel_scope.cancel()

    assert (first, second) == (5000, 5001)
    assert said == [f"port 5000 is published at {tcp}", f"port 5001 is published at {tmp_path / 'web'}"]
    assert not (tmp_path / "web").exists()


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as resources:
        taken = Endpoint(host="127.0.0.1", port=server.getsockname()[1])

        with pytest.raises(HostError, match=r"cannot publish at 127\.0\.0\.1:") as caught:
            PublishedPorts([Published(listen=taken, port=1)], resources, lambda _: None)

    assert "port 0" in caught.value.hint
