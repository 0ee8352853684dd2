"""Counters for people and for Prometheus, on a unix socket.

A client that writes ``json`` (or nothing) and a line end gets JSON. One that writes ``prometheus`` gets
Prometheus' text format, and so does an HTTP request, as an HTTP answer.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypedDict

import trio

REQUEST_BYTES_MAX = 4096
REQUEST_TIMEOUT_S = 5.0
CLIENTS_MAX = 16
HTTP_REQUEST = re.compile(rb"([A-Z]+) \S+ HTTP/1\.[01]\r?\n")
GAUGES = frozenset({"connected", "connections", "half_open", "buffered_bytes"})
"""Numbers that go down as well as up. All others only count."""


class VmReport(TypedDict):
    """One guest's state."""

    guest_cid: int
    connected: bool
    """Whether a front-end is connected."""
    sessions: int
    """How many front-ends have connected so far."""
    counters: Mapping[str, int]
    services: Mapping[str, Mapping[str, int]]
    """Counters of each proxy and published port."""


Report = Callable[[], Awaitable[Sequence[VmReport]]]
"""Where the guests' state comes from."""


def prometheus(vms: Sequence[VmReport]) -> str:
    """The report in Prometheus' text format (version 0.0.4)."""
    samples: dict[str, list[str]] = {}
    for vm in vms:
        labels = f'guest_cid="{vm["guest_cid"]}"'
        samples.setdefault("connected", []).append(f"{{{labels}}} {int(vm['connected'])}")
        samples.setdefault("sessions", []).append(f"{{{labels}}} {vm['sessions']}")
        for name, value in vm["counters"].items():
            samples.setdefault(name, []).append(f"{{{labels}}} {value}")
        for service, counters in vm["services"].items():
            name = re.sub(r'([\\"])', r"\\\1", service)
            for counter, value in counters.items():
                samples.setdefault(f"service_{counter}", []).append(f'{{{labels},service="{name}"}} {value}')
    return "".join(
        f"# TYPE nitro_vsock_{name} {'gauge' if name in GAUGES else 'counter'}\n"
        + "".join(f"nitro_vsock_{name}{value}\n" for value in values)
        for name, values in samples.items()
    )


async def serve(accept: Callable[[], Awaitable[trio.socket.SocketType]], report: Report) -> None:
    """Answer clients for ever, some of them at a time."""
    limit = trio.CapacityLimiter(CLIENTS_MAX)

    async def answer(client: trio.SocketStream) -> None:
        async with client, limit:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                await _answer(client, report)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(answer, trio.SocketStream(await accept()))


async def _answer(client: trio.SocketStream, report: Report) -> None:
    try:
        request = b""
        while b"\n" not in request and len(request) < REQUEST_BYTES_MAX:
            chunk = await client.receive_some(REQUEST_BYTES_MAX)
            if not chunk:
                break
            request += chunk
        if match := HTTP_REQUEST.match(request):
            known = match[1] in {b"GET", b"HEAD"}
            body = prometheus(await report()).encode() if known else b""
            head = (
                f"HTTP/1.0 {'200 OK' if known else '405 Method Not Allowed'}\r\n"
                "Content-Type: text/plain; version=0.0.4\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            await client.send_all(head.encode() + (body if match[1] == b"GET" else b""))
        elif request.startswith(b"prometheus"):
            await client.send_all(prometheus(await report()).encode())
        else:
            await client.send_all(json.dumps({"vms": list(await report())}).encode() + b"\n")
    except trio.BrokenResourceError:
        pass
