"""The counters' socket: JSON for programs, text for Prometheus, HTTP for its scraper."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nitro_vsock import cli
from nitro_vsock.daemon import stats
from nitro_vsock.daemon.stats import VmReport
from nitro_vsock.host.unix import UnixListener

REPORT: list[VmReport] = [
    {
        "guest_cid": 16,
        "connected": True,
        "sessions": 2,
        "counters": {"connections": 3},
        "services": {'proxy 80 "x"': {"open": 1}},
    },
    {"guest_cid": 17, "connected": False, "sessions": 0, "counters": {"connections": 0}, "services": {}},
]
TEXT = """\
# TYPE nitro_vsock_connected gauge
nitro_vsock_connected{guest_cid="16"} 1
nitro_vsock_connected{guest_cid="17"} 0
# TYPE nitro_vsock_sessions counter
nitro_vsock_sessions{guest_cid="16"} 2
nitro_vsock_sessions{guest_cid="17"} 0
# TYPE nitro_vsock_connections gauge
nitro_vsock_connections{guest_cid="16"} 3
nitro_vsock_connections{guest_cid="17"} 0
# TYPE nitro_vsock_service_open counter
nitro_vsock_service_open{guest_cid="16",service="proxy 80 \\"x\\""} 1
"""


async def report() -> list[VmReport]:
    return REPORT


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    listener = UnixListener(path)
    async with trio.open_nursery() as nursery:
        accepting = trio.socket.from_stdlib_socket(listener.socket)

        async def accept() -> trio.socket.SocketType:
            connection, _ = await accepting.accept()
            return connection

        nursery.start_soon(stats.serve, accept, report)
        yield
        nursery.cancel_scope.cancel()
    listener.close()


async def ask(path: Path, question: bytes) -> bytes:
    async with await trio.open_unix_socket(os.fspath(path)) as client:
        await client.send_all(question)
        await client.send_eof()
        return b"".join([chunk async for chunk in client])


@pytest.mark.parametrize("question", [b"json\n", b"", b"\n"])
async def test_json(tmp_path: Path, question: bytes) -> None:
    async with served(tmp_path / "s"):
        assert json.loads(await ask(tmp_path / "s", question)) == {"vms": REPORT}


async def test_prometheus_text(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        assert (await ask(tmp_path / "s", b"prometheus\n")).decode() == TEXT


async def test_prometheus_over_http(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        head, _, body = (await ask(tmp_path / "s", b"GET /metrics HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert body.decode() == TEXT


@pytest.mark.parametrize(
    ("method", "status", "length"), [(b"HEAD", b"200 OK", len(TEXT)), (b"POST", b"405 Method Not Allowed", 0)]
)
async def test_other_http_requests_get_a_header(
    tmp_path: Path, method: bytes, status: bytes, length: int
) -> None:
    async with served(tmp_path / "s"):
        answer = await ask(tmp_path / "s", method + b" / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 " + status + b"\r\n")
    assert b"Content-Length: %d\r\n" % length in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_the_command_line_asks_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with served(tmp_path / "s"):
        code = await trio.to_thread.run_sync(cli.main, ["stats", str(tmp_path / "s")])
    assert code == cli.EXIT_OK
    assert "guest 16: connected\n  connections" in capsys.readouterr().out


def test_no_daemon_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stats", str(tmp_path / "s")]) == cli.EXIT_HOST
    assert "No such file" in capsys.readouterr().err
