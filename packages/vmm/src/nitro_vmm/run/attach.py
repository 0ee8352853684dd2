"""Runs an enclave in the foreground: its console is this process's, and signals end it.

The guest boots while the rest of what it needs is imported, because that takes a third of the time to the
heartbeat, and there are mostly two processors. Before that, the files are measured while what makes the guest
is imported. Signals are noted from the beginning.
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from nitro_vmm.enclave.ahead import Ahead
from nitro_vmm.errors import LaunchStoppedError
from nitro_vmm.run.console_writer import ConsoleWriter
from nitro_vmm.run.escapes import EscapeFilter
from nitro_vmm.run.signals import EarlySignals, said
from nitro_vmm.run.terminal import terminal_without_echo

if TYPE_CHECKING:
    from nitro_vmm.accel import Accelerator
    from nitro_vmm.plain_config import EnclaveSettings
    from nitro_vmm.run.foreground import Attached

logger = logging.getLogger(__name__)


def attach(
    config: "EnclaveSettings",
    *,
    console_fd: int = 1,
    raw_console: bool = False,
    accelerator: "Accelerator | None" = None,
    say: Callable[[str], None] = logger.info,
    started_s: float | None = None,
    launched: Callable[[], object] = lambda: None,
) -> "Attached":
    """Boot an enclave and wait for its end; in the main thread only, where signals arrive.

    Args:
        config: What to launch.
        console_fd: Where the console goes, if it is shown. The guest waits for its reader, and nothing is
            lost.
        raw_console: Let all escape sequences through to a terminal; otherwise it gets text and colours.
        accelerator: See `Enclave`.
        say: Told what happens, for people.
        started_s: See `Enclave`.
        launched: Called when nothing can keep the guest from running any more.

    Raises:
        LaunchStoppedError: A signal came before the guest ran.
        VmmError, EifError, VsockError, NsmError, OSError: See `Enclave`.
    """
    clean = bytes if raw_console or not os.isatty(console_fd) else EscapeFilter().feed
    with ExitStack() as resources:
        # Held, because what keeps it from being launched may be found when the guest prints already.
        writer = resources.enter_context(closing(ConsoleWriter(console_fd, clean=clean, held=True)))
        early = resources.enter_context(EarlySignals())
        ahead = resources.enter_context(Ahead(config))

        from nitro_vmm.enclave.launch import Launch  # noqa: PLC0415 - while the files are measured

        launch = Launch(
            config, console_sink=writer, accelerator=accelerator, say=say, started_s=started_s, ahead=ahead
        )
        resources.callback(launch.close)
        early.tell(lambda number: launch.give_up(f"ended by {said(signal.Signals(number))}"))
        try:
            if config.begins_at_once:
                launch.begin()
            if config.connects_at_once:
                launch.connect()
        except LaunchStoppedError as error:
            error.signal = early.first
            raise
        if config.shows_console:
            resources.enter_context(terminal_without_echo())
            launched = _both(writer.release, launched)
        else:
            launch.console.leave_sink()

        import trio  # noqa: PLC0415 - while the guest boots

        from nitro_vmm.run.foreground import see_through  # noqa: PLC0415

        return trio.run(see_through, config, launch, early, launched)


def _both(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], object]:
    return lambda: (first(), second())
