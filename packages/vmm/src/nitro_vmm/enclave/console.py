"""The enclave's console, for any number of readers.

What the guest prints is kept from the first byte on, so that a reader who comes late misses nothing, up to
`KEPT_BYTES_MAX`. One reader, the sink, may hold up the guest when it is slow; streams never do, and say how
much they have missed.
"""

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_BYTES_MAX: Final = 1 << 20
"""Some ten boots with all of the kernel's messages. What is older is dropped, because a guest that prints for
ever may not fill its host's memory."""


class ConsoleSink(Protocol):
    """A reader of the console that misses nothing: the guest waits for it."""

    def write(self, data: bytes, /) -> None:
        """Take output, in the processor's thread; may wait."""
        ...

    def abandon(self) -> None:
        """Never wait again, because the enclave is to end."""
        ...


class Console:
    """What the guest has printed.

    Args:
        sink: A reader for whom the guest waits.
    """

    def __init__(self, sink: ConsoleSink | None = None) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._end = 0
        """How many bytes were printed in all."""
        self._closed = False
        self._waiting: list[Callable[[], None]] = []

    def stream(self) -> "ConsoleStream":
        """A reader of its own, from the first byte that is kept."""
        return ConsoleStream(self)

    def write(self, data: bytes) -> None:
        """Take what the guest prints; called in the processor's thread, which waits for the sink."""
        with self._lock:
            self._kept += data
            self._end += len(data)
            del self._kept[: max(0, len(self._kept) - KEPT_BYTES_MAX)]
        self._wake()
        if (sink := self._sink) is not None:
            sink.write(data)

    def leave_sink(self) -> None:
        """The sink is not to get anything after all."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abandon()

    def abandon(self) -> None:
        """Let a sink that is slow hold up the guest no more."""
        if (sink := self._sink) is not None:
            sink.abandon()

    def close(self) -> None:
        """Nothing more will be printed: streams end when they have read what is there."""
        with self._lock:
            self._closed = True
        self._wake()

    def read(self, position: int) -> tuple[int, bytes]:
        """What was printed from ``position`` on, as far as it is kept; and where that begins."""
        with self._lock:
            start = max(position, self._end - len(self._kept))
            return start, bytes(self._kept[start - self._end + len(self._kept) :])

    async def wait(self, position: int) -> bool:
        """Wait for output behind ``position``; false when there will be none."""
        import trio  # noqa: PLC0415 - whoever waits has it; a guest runs before it is imported

        event = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)

        with self._lock:
            if self._end > position or self._closed:
                return self._end > position
            self._waiting.append(wake)
        try:
            await event.wait()
        finally:
            with self._lock:
                if wake in self._waiting:
                    self._waiting.remove(wake)
        return True

    def _wake(self) -> None:
        # Looked at without the lock, because this runs for every byte and hardly ever finds anybody. Who
        # begins to wait at this very moment holds the lock and sees the new output.
        if self._waiting:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()


class ConsoleStream:
    """One reader of a console; iterate over it, or call `receive`.

    Args:
        console: Whose output is read.
    """

    def __init__(self, console: Console) -> None:
        self.lost: int = 0
        """How many bytes were dropped before they were read, because this reader was too slow."""
        self._console = console
        self._position = 0

    async def receive(self) -> bytes:
        """Wait for output; empty when the enclave has ended and all was read."""
        import trio  # noqa: PLC0415 - see `Console.wait`

        await trio.lowlevel.checkpoint()
        while True:
            start, data = self._console.read(self._position)
            self.lost += start - self._position
            self._position = start + len(data)
            if data or not await self._console.wait(self._position):
                return data

    def __aiter__(self) -> "ConsoleStream":
        return self

    async def __anext__(self) -> bytes:
        if data := await self.receive():
            return data
        raise StopAsyncIteration
