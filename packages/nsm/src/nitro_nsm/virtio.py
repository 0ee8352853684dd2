"""The virtio device of the Nitro Secure Module (device id 33): no features, no configuration, one queue.

For each request the driver puts two chains into the queue, first the request in a chain that the device
reads, then room for the reply in a chain that the device writes, and kicks once. It expects the chains back
in that order, the first with length 0, with one interrupt for both (Linux, `drivers/misc/nsm.c`).
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from nitro_nsm.errors import ErrorCode
from nitro_nsm.module import ERRORS, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Nsm

DEVICE_ID = 33
QUEUE_SIZES = (2,)
"""As QEMU's device has it: one request and one reply are all that the driver has in flight."""


class Chain(Protocol):
    """A chain of descriptors that the driver made available."""

    @property
    def head(self) -> int:
        """The index that gives it back."""

    @property
    def readable(self) -> Sequence[memoryview]:
        """The buffers that the driver filled."""

    @property
    def writable(self) -> Sequence[memoryview]:
        """The buffers that the driver wants filled."""


class Queue(Protocol):
    """The device's side of a virtqueue."""

    def pop(self) -> Chain | None:
        """The next available chain, or `None`."""

    def push(self, head: int, written: int) -> None:
        """Give a chain back with so many bytes written."""

    def publish(self) -> bool:
        """Show the driver what was given back; returns whether it wants an interrupt."""


class VirtioNsm:
    """Serves one enclave's module over a virtqueue."""

    device_id = DEVICE_ID
    features = 0
    queue_sizes = QUEUE_SIZES

    def __init__(self, nsm: Nsm) -> None:
        self._nsm = nsm
        self._requests: deque[tuple[int, bytes]] = deque()
        """Requests that were read and wait for the driver to offer room for the reply, each with its head."""

    def process(self, queue: Queue) -> bool:
        """Serve all that is available; returns whether the driver must be interrupted.

        What `queue.pop` raises about a bad chain passes through. Nothing is lost then: call `process` again
        for the rest.
        """
        while (chain := queue.pop()) is not None:
            if len(self._requests) == QUEUE_SIZES[0] and not chain.writable:
                # A chain that waits here is offered again. Keeping it twice would let a driver fill the
                # host's memory.
                queue.push(chain.head, 0)
                continue
            if chain.readable or not chain.writable:
                self._requests.append((chain.head, gather(chain.readable, REQUEST_BYTES_MAX + 1)))
            if chain.writable:
                self._reply(queue, chain)
        return queue.publish()

    @property
    def waiting(self) -> tuple[tuple[int, bytes], ...]:
        """Requests that have no room for a reply yet, oldest first: the head of the chain, and its bytes."""
        return tuple(self._requests)

    def restore(self, waiting: Sequence[tuple[int, bytes]]) -> None:
        """Go on with these requests, which `waiting` gave, instead of those that wait here."""
        self._requests = deque(waiting)

    def reset(self) -> None:
        """Forget requests that have no reply yet. The module's registers outlive a reset of its device."""
        self._requests.clear()

    def _reply(self, queue: Queue, chain: Chain) -> None:
        if not self._requests:
            queue.push(chain.head, 0)  # room for a reply to a request that never came
            return
        head, request = self._requests.popleft()
        # Look at the room before the module acts: a driver that misses the reply must find nothing changed.
        if sum(map(len, chain.writable)) < RESPONSE_BYTES_MAX:
            reply = ERRORS[ErrorCode.BUFFER_TOO_SMALL]
        else:
            reply = self._nsm.handle(request)
        if head != chain.head:  # a driver may put request and room into one chain, which is given back once
            queue.push(head, 0)
        queue.push(chain.head, scatter(reply, chain.writable))


def gather(buffers: Sequence[memoryview], limit: int) -> bytes:
    """The first `limit` bytes of `buffers`. They are read once, because the guest may be writing there."""
    parts = []
    for buffer in buffers:
        if limit <= 0:
            break
        parts.append(bytes(buffer[:limit]))
        limit -= len(parts[-1])
    return b"".join(parts)


def scatter(data: bytes, buffers: Sequence[memoryview]) -> int:
    """Fill `buffers` with `data` as far as both go; returns how many bytes were written."""
    written = 0
    for buffer in buffers:
        part = data[written : written + len(buffer)]
        buffer[: len(part)] = part
        written += len(part)
    return written
