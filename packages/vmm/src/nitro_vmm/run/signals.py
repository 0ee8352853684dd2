"""Which signals end an enclave in order."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Final, Self

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
    import trio  # noqa: PLC0415 - a guest runs before it is imported

    return trio.open_signal_receiver(*_ending())


class EarlySignals:
    """Notes the first of them until `receiver` takes over, and again after; in the main thread only."""

    def __init__(self) -> None:
        self.first: int | None = None
        """Its number; `None` while there was none."""
        self._before: dict[int, Any] = {}
        self._tell: Callable[[int], None] = lambda _number: None

    def tell(self, whom: Callable[[int], None]) -> None:
        """Have the first one told at once; in the handler, so nothing there may wait for a lock."""
        self._tell = whom
        if self.first is not None:
            whom(self.first)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _ending()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.first is None:
            self.first = number
            self._tell(number)


def _ending() -> list[int]:
    return [*SIGNALS, *(one for one in OTHER_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN)]


def said(number: signal.Signals) -> str:
    """What people call it."""
    return "Ctrl-C" if number is signal.SIGINT else number.name
