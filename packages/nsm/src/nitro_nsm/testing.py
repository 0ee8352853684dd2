"""For tests of programs that talk to a Nitro Secure Module, and for our own."""

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nitro_nsm.errors import HostError
from nitro_nsm.module import Nsm
from nitro_nsm.server import serve


def seeded_entropy(seed: int) -> Callable[[int], bytes]:
    """Entropy for tests: bytes that look random, and are the same in each run for the same `seed`."""
    counter = itertools.count()
    return lambda count: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(count)


@contextmanager
def serving(nsm: Nsm, path: Path, *, users: Iterable[int] = ()) -> Iterator[Path]:
    """Serve a module on a unix socket, in a thread, while the block runs.

    Args:
        nsm: The module. Nobody else may use it meanwhile.
        path: The socket's path, which the block gets.
        users: See `nitro_nsm.serve`.

    Raises:
        HostError: `path` cannot be listened on.
    """
    started = threading.Event()
    stop: list[Callable[[], object]] = []
    failures: list[HostError] = []

    def ready() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is not None:
            stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        started.set()

    def run() -> None:
        try:
            asyncio.run(serve(nsm, path, ready=ready, users=users))
        except asyncio.CancelledError:
            pass
        except HostError as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run, name="nsm")
    thread.start()
    started.wait()
    try:
        if failures:
            raise failures[0]
        yield path
    finally:
        for call in stop:
            call()
        thread.join()
