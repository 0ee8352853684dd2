"""Sees an enclave in the foreground through to its end: signals, standard input, and who wants to know."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from nitro_vmm.enclave.enclave import Enclave
from nitro_vmm.enclave.launch import Launch
from nitro_vmm.enclave.outcome import EnclaveEndedError, Result
from nitro_vmm.enclave.tasks import ungrouped
from nitro_vmm.enclave.timeline import Timeline
from nitro_vmm.errors import LaunchStoppedError
from nitro_vmm.run.code_pages import give_back_when_settled
from nitro_vmm.run.process import notify
from nitro_vmm.run.signals import EarlySignals, receiver, said
from nitro_vmm.run.terminal import may_read, pollable, stdin_fd

if TYPE_CHECKING:
    from nitro_vmm.plain_config import EnclaveSettings

INPUT_CHUNK_BYTES: Final = 4096
HIDDEN: Final = "the console is hidden, as on AWS in production mode; --console shows it"


class Attached(NamedTuple):
    """An enclave that ran in the foreground."""

    result: Result
    """How it ended."""
    signal: signal.Signals | None
    """Which signal ended it, if one did."""
    timeline: Timeline
    """When what happened."""
    console: bool
    """Whether the console was shown."""


async def see_through(
    config: "EnclaveSettings", launch: Launch, early: EarlySignals, launched: Callable[[], object]
) -> Attached:
    """Make an enclave of a launch, and wait for its end.

    Args:
        config: What is launched.
        launch: May have begun.
        early: Has the signals that came before this receives them.
        launched: Called when nothing can keep the guest from running any more.

    Raises:
        LaunchStoppedError: A signal came before the guest ran.
        VmmError, EifError, VsockError, NsmError, OSError: See `Enclave`.
    """
    enclave = Enclave(config, launch=launch)
    received: signal.Signals | None = None

    def end(number: int) -> None:
        nonlocal received
        # The first one counts: the enclave is ending already, and nothing ends it faster.
        if received is None:
            received = signal.Signals(number)
            enclave.terminate(f"ended by {said(received)}")

    async def obey(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            end(number)

    try:
        with ungrouped(), receiver() as signals:
            if early.first is not None:
                end(early.first)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, signals)
                async with enclave:
                    launched()
                    if config.shows_console:
                        nursery.start_soon(_feed_console, enclave)
                    elif config.console is None:
                        launch.say(HIDDEN)
                    nursery.start_soon(_notify_boot, enclave)
                    nursery.start_soon(give_back_when_settled, enclave)
                    result = await enclave.wait()
                nursery.cancel_scope.cancel()
    except LaunchStoppedError as error:
        error.signal = received
        raise
    return Attached(result, received, enclave.timeline, config.shows_console)


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
