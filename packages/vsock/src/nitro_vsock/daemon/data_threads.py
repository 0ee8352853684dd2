"""The data path's threads: one for each guest, asleep in its engine until there is something to move.

trio could do the same, but waking a task costs as much as a small packet does, and a thread that sleeps in
epoll costs less.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import partial

import trio

from nitro_vsock.device.engine import VsockEngine


@contextlib.asynccontextmanager
async def running(engines: Iterable[VsockEngine]) -> AsyncIterator[None]:
    """Serve engines, each in a thread, until the block is left."""
    engines = tuple(engines)
    async with trio.open_nursery() as nursery:
        limiter = trio.CapacityLimiter(max(1, len(engines)))
        for engine in engines:
            nursery.start_soon(partial(trio.to_thread.run_sync, engine.run, limiter=limiter))
        try:
            yield
        finally:
            for engine in engines:
                engine.stop()
