"""Two habits of trio that several files need."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let one error out of a nursery as itself, because the nursery is an inner affair of the caller's."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


async def either(first: trio.Event, second: trio.Event) -> None:
    """Wait for one of two events."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch, first)
        nursery.start_soon(watch, second)
