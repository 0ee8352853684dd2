"""Which signals end an enclave in order."""

import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Final

import trio

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""End the enclave, even where they were ignored, as a shell's background jobs ignore Ctrl-C."""
OTHER_SIGNALS: Final = (
    *(signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM),
    *(signal.SIGPROF, signal.SIGXCPU, signal.SIGIO),
)
"""Would end this process and leave its sockets behind, so they end the enclave first; unless they were
ignored, as under nohup."""


def receiver() -> AbstractContextManager[AsyncIterator[int]]:
    """Receive them; in the main thread only."""
    others = [number for number in OTHER_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    return trio.open_signal_receiver(*SIGNALS, *others)


def said(number: signal.Signals) -> str:
    """What people call it."""
    return "Ctrl-C" if number is signal.SIGINT else number.name
