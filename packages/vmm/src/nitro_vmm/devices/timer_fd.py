"""A descriptor that becomes readable at a time (timerfd_create(2)), which Python has from 3.13 on."""

import ctypes
import os
from typing import Final

CLOCK_MONOTONIC: Final = 1
NS_PER_S: Final = 1_000_000_000
TFD_NONBLOCK: Final = os.O_NONBLOCK
TFD_CLOEXEC: Final = os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """``struct itimerspec``: the interval, and the first time."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class TimerFd:
    """A timer that fires once each time that it is set, by the monotonic clock.

    Raises:
        OSError: There is no room for another descriptor.
    """

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        # Made once, because the timer is set at every halt of the guest.
        self._setting = _Setting(0, 0, 0, 0)
        self._arguments = (self._fd, 0, ctypes.byref(self._setting), None)

    def fileno(self) -> int:
        """Readable once it has fired, until it is set again."""
        return self._fd

    def set(self, delay_ns: int) -> None:
        """Fire in so many nanoseconds, and not at the time that was set before.

        Args:
            delay_ns: 0: do not fire at all.
        """
        self._setting.first_s, self._setting.first_ns = divmod(delay_ns, NS_PER_S)
        _libc.timerfd_settime(*self._arguments)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
