"""Runs an enclave in the foreground: its console is this process's, and signals end it."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Final

import trio

from nitro_vmm.accel import Accelerator
from nitro_vmm.config import EnclaveConfig
from nitro_vmm.enclave import Enclave, EnclaveEndedError, Result
from nitro_vmm.enclave.tasks import ungrouped
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.run.console_writer import ConsoleWriter
from nitro_vmm.run.escapes import EscapeFilter
from nitro_vmm.run.process import notify
from nitro_vmm.run.signals import receiver, said
from nitro_vmm.run.terminal import may_read, pollable, stdin_fd, terminal_without_echo

logger = logging.getLogger(__name__)

INPUT_CHUNK_BYTES: Final = 4096
HIDDEN: Final = "the console is hidden, as on AWS in production mode; --console shows it"


@dataclass(frozen=True, slots=True)
class Attached:
    """An enclave that ran in the foreground."""

    result: Result
    """How it ended."""
    signal: signal.Signals | None
    """Which signal ended it, if one did."""
    timeline: Timeline
    """When what happened."""


def attach(
    config: EnclaveConfig,
    *,
    console_fd: int = 1,
    raw_console: bool = False,
    accelerator: Accelerator | None = None,
    say: Callable[[str], None] = logger.info,
    started_s: float | None = None,
    launched: Callable[[], object] = lambda: None,
) -> Attached:
    """Boot an enclave and wait for its end; in the main thread only, where signals arrive.

    Args:
        config: What to launch.
        console_fd: Where the console goes, if it is shown. The guest waits for its reader, and nothing is
            lost.
        raw_console: Let all escape sequences through to a terminal; otherwise it gets text and colours.
        accelerator: See `Enclave`.
        say: Told what happens, for people.
        started_s: See `Enclave`.
        launched: Called when the guest runs.

    Raises:
        VmmError, EifError, VsockError, NsmError, OSError: See `Enclave`.
    """
    with ExitStack() as resources:
        sink = None
        if config.shows_console:
            clean = bytes if raw_console or not os.isatty(console_fd) else EscapeFilter().feed
            sink = resources.enter_context(closing(ConsoleWriter(console_fd, clean=clean)))
            resources.enter_context(terminal_without_echo())
        enclave = Enclave(config, console_sink=sink, accelerator=accelerator, say=say, started_s=started_s)
        return trio.run(_see_through, enclave, say, launched)


async def _see_through(
    enclave: Enclave, say: Callable[[str], None], launched: Callable[[], object]
) -> Attached:
    received: signal.Signals | None = None

    async def obey(signals: AsyncIterator[int]) -> None:
        nonlocal received
        async for number in signals:
            # The first one counts: the enclave is ending already, and nothing ends it faster.
            if received is None:
                received = signal.Signals(number)
                enclave.terminate(f"ended by {said(received)}")

    with ungrouped(), receiver() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, signals)
            async with enclave:
                launched()
                if enclave.config.shows_console:
                    nursery.start_soon(_feed_console, enclave)
                elif enclave.config.console is None:
                    say(HIDDEN)
                nursery.start_soon(_notify_boot, enclave)
                result = await enclave.wait()
            nursery.cancel_scope.cancel()
    return Attached(result, received, enclave.timeline)


async def _notify_boot(enclave: Enclave) -> None:
    with suppress(EnclaveEndedError):
        await enclave.booted()
        notify("READY=1")


async def _feed_console(enclave: Enclave) -> None:
    fd = stdin_fd()
    if fd < 0 or not may_read(fd):
        return
    waits = pollable(fd)
    while True:
        if waits:
            await trio.lowlevel.wait_readable(fd)
        try:
            data = os.read(fd, INPUT_CHUNK_BYTES)
        except OSError:  # a terminal that was hung up
            return
        if not data:
            return
        await enclave.send_input(data)
