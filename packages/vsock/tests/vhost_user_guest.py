"""A guest for tests, behind a vhost-user front-end: memory, three rings, and packets of any kind."""

import contextlib
import mmap
import os
import select
import socket
import struct
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from nitro_vsock import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, HOST_CID, SocketType
from nitro_vsock.device.packet import HEADER, HEADER_BYTES, Header, Op, Shutdown
from nitro_vsock.testing import FakeDriver, UsedChain
from nitro_vsock.vhost_user import FrontendSocket, SharedRegion, SharedRing
from nitro_vsock.virtio.guest_memory import GuestMemory

MEMORY_BYTES = 16 << 20
RING_SPACE = 4 << 20
QUEUE_SIZE = 128
RX_BUFFERS = 64
PATIENCE_S = 20.0
"""How long anything may take before a test fails; nothing waits for it when all is well."""

FEATURES = F_VERSION_1 | F_EVENT_IDX

Packet = tuple[Header, bytes]


class Guest:
    """A guest whose driver is the test.

    Args:
        path: The daemon's vhost-user socket.
        cid: The guest's address.
        rx_buffer: Payload bytes of each receive buffer.
    """

    def __init__(
        self,
        path: Path,
        *,
        cid: int = 16,
        rx_buffer: int = 4096,
        features: int = FEATURES,
        buf_alloc: int = 262144,
    ) -> None:
        self.cid, self.rx_buffer, self.features, self.buf_alloc = cid, rx_buffer, features, buf_alloc
        self.forwarded = 0
        self._stack = contextlib.ExitStack()
        self._memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._stack.callback(os.close, self._memory)
        os.ftruncate(self._memory, MEMORY_BYTES)
        memory = GuestMemory([(0, memoryview(mmap.mmap(self._memory, MEMORY_BYTES)))])
        self.receive_driver, self.transmit_driver, self.event_driver = (
            FakeDriver(
                memory,
                queue_size=QUEUE_SIZE,
                address=index * RING_SPACE,
                space=RING_SPACE,
                event_idx=bool(features & F_EVENT_IDX),
                indirect=bool(features & F_INDIRECT_DESC),
            )
            for index in range(3)
        )
        self._kicks, self._calls = ([self._event() for _ in range(3)] for _ in range(2))
        self._poll = select.poll()
        self._poll.register(self._calls[0], select.POLLIN)
        self._transmitted = select.poll()
        self._transmitted.register(self._calls[1], select.POLLIN)
        self._returned: list[UsedChain] = []
        self._received: list[Packet] = []
        self.frontend = self._stack.enter_context(FrontendSocket.connect(path))

    def _event(self) -> int:
        descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """DRIVER_OK, with receive buffers."""
        self._start_rings()
        for _ in range(RX_BUFFERS):
            self.offer_buffer()

    def _start_rings(self) -> None:
        """Every ring goes on after what the last device used of it."""
        drivers = (self.receive_driver, self.transmit_driver, self.event_driver)
        rings = [
            SharedRing(driver.layout, kick, call, next_available=self._used_index(driver))
            for driver, kick, call in zip(drivers, self._kicks, self._calls, strict=True)
        ]
        self.frontend.start(self.features, [SharedRegion(0, MEMORY_BYTES, self._memory)], rings)

    def _used_index(self, driver: FakeDriver) -> int:
        return driver.memory.slice(driver.layout.used_ring + 2, 2).cast("H")[0]

    def pause(self) -> None:
        """Stop the rings, as QEMU does to a guest that is paused; they must say where they are."""
        positions = self.frontend.stop()
        drivers = (self.receive_driver, self.transmit_driver, self.event_driver)
        assert positions == [self._used_index(driver) for driver in drivers]

    def resume(self) -> None:
        """Start them again, where they were."""
        self._start_rings()

    def reconnect(self, path: Path) -> bytes:
        """Go on with another daemon; the event that it sends."""
        self.frontend = self._stack.enter_context(FrontendSocket.connect(path))
        self.event_driver.offer(writable=[4])
        self._start_rings()
        self.event_driver.want_interrupts()
        poll = select.poll()
        poll.register(self._calls[2], select.POLLIN)
        while not (events := self.event_driver.used()):
            assert poll.poll(PATIENCE_S * 1000), "no event comes"
            os.eventfd_read(self._calls[2])
        return events[0]

    def offer_buffer(self) -> None:
        """One receive buffer as Linux makes them."""
        self.receive_driver.offer(writable=[HEADER_BYTES + self.rx_buffer])
        self._kick(0)

    def _kick(self, index: int) -> None:
        driver = (self.receive_driver, self.transmit_driver, self.event_driver)[index]
        if driver.wants_kick():
            os.eventfd_write(self._kicks[index], 1)

    def packet(self, op: int, guest_port: int, host_port: int, **fields: int) -> Header:
        """A header with this guest's credit."""
        template = Header(
            self.cid,
            HOST_CID,
            guest_port,
            host_port,
            0,
            SocketType.STREAM,
            op,
            0,
            self.buf_alloc,
            self.forwarded,
        )
        return template._replace(**fields)

    def send(
        self,
        op: int,
        guest_port: int,
        host_port: int,
        payload: bytes = b"",
        *,
        cut: tuple[int, ...] = (),
        **fields: int,
    ) -> None:
        """Transmit a packet: a header descriptor, and the payload in one or, cut at these places, several."""
        header = self.packet(op, guest_port, host_port, **{"len": len(payload), **fields})
        places = (0, *cut, len(payload))
        pieces = [payload[a:b] for a, b in pairwise(places) if a < b]
        self.transmit_driver.offer(
            readable=[HEADER.pack(*header), *pieces], indirect=bool(self.features & F_INDIRECT_DESC)
        )
        self._kick(1)
        self._returned += self.transmit_driver.used_chains()

    def kick_transmit(self) -> None:
        """Tell the device of what was made available by hand."""
        self._kick(1)

    def wait_transmitted(self, count: int) -> None:
        """Until so many chains of the transmit ring came back, since the beginning."""
        while len(self._returned) < count:
            self.transmit_driver.want_interrupts()
            self._returned += self.transmit_driver.used_chains()
            if len(self._returned) < count:
                assert self._transmitted.poll(PATIENCE_S * 1000), "a chain does not come back"
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._calls[1])

    def receive(self) -> Packet:
        """The next packet from the host; gives its buffer back."""
        while not self._received:
            self._collect()
            if not self._received:
                assert self._poll.poll(PATIENCE_S * 1000), "no packet comes"
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._calls[0])
        return self._received.pop(0)

    def _collect(self) -> None:
        self.receive_driver.want_interrupts()
        for chain in self.receive_driver.used_chains():
            header = Header(*HEADER.unpack_from(chain.written))
            assert chain.length == HEADER_BYTES + header.len, "the used length is what was written"
            self._received.append((header, chain.written[HEADER_BYTES:]))
            if header.op == Op.RW:
                self.forwarded += header.len
            self.offer_buffer()

    def expect(self, op: int) -> Header:
        """The next packet but those about credit; must be this one."""
        while True:
            header, _ = self.receive()
            if header.op not in {Op.CREDIT_UPDATE, Op.CREDIT_REQUEST}:
                assert header.op == op, f"op {header.op} instead of {op}"
                return header

    def connect(self, guest_port: int, host_port: int, **fields: int) -> None:
        """Open a connection to a port of the host that is there."""
        self.send(Op.REQUEST, guest_port, host_port, b"", cut=(), **fields)
        self.expect(Op.RESPONSE)

    def accept(self, *, port: int) -> Header:
        """Accept a connection from the host; its REQUEST."""
        request = self.expect(Op.REQUEST)
        assert request.dst_port == port
        self.send(Op.RESPONSE, port, request.src_port, dst_cid=request.src_cid)
        return request

    def synchronize(self) -> None:
        """Wait until the device has seen all that happened before."""
        self.send(Op.REQUEST, 999, 999)
        self.expect(Op.RST)

    def read(self, count: int) -> bytes:
        """So many bytes of payload, on whatever connection; tells the credit now and then."""
        data = b""
        told = self.forwarded
        while len(data) < count:
            header, payload = self.receive()
            if header.op == Op.RW:
                data += payload
                if self.forwarded - told > self.buf_alloc // 4:
                    told = self.forwarded
                    self.send(Op.CREDIT_UPDATE, header.dst_port, header.src_port, dst_cid=header.src_cid)
            elif header.op == Op.CREDIT_REQUEST:
                self.send(Op.CREDIT_UPDATE, header.dst_port, header.src_port, dst_cid=header.src_cid)
            elif header.op == Op.SHUTDOWN and not header.flags & Shutdown.SEND:
                pass  # the host takes nothing more, and may still send
            else:
                assert header.op == Op.CREDIT_UPDATE, f"op {header.op} instead of data"
        return data


def listen(path: Path) -> socket.socket:
    """A host program that waits for guests."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    listener.listen(128)
    listener.settimeout(PATIENCE_S)
    return listener


def patient(connection: socket.socket) -> socket.socket:
    """A blocking socket that fails after a while. Python's own timeouts would break MSG_WAITALL."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
    return connection


def accept(listener: socket.socket) -> socket.socket:
    """The next connection of a guest."""
    connection, _ = listener.accept()
    return patient(connection)


def dial(path: Path, text: bytes) -> socket.socket:
    """A host program that connects and says this."""
    connection = patient(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    connection.connect(os.fspath(path))
    if text:
        connection.sendall(text)
    return connection
