"""When what happened in an enclave's life: from the launch over the kernel's milestones to its end.

Each kind of moment is noted once, when it is first seen, so a timeline is small whatever the enclave does.
The kernel's milestones are read from the console. A program in the enclave can print the same lines, and so
falsify its own timeline; that is why nobody looks for them after the boot.
"""

import re
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

DETAIL_CHARACTERS_MAX: Final = 200

LAUNCH: Final = "launch"
ACCELERATOR: Final = "accelerator chosen"
MEASURED: Final = "image measured"
LOADED: Final = "kernel loaded"
STARTED: Final = "guest starts"
FIRST_OUTPUT: Final = "first output"
NSM_REQUEST: Final = "first NSM request"
HEARTBEAT: Final = "heartbeat"
FROM_ENCLAVE: Final = "first connection from the enclave"
TO_ENCLAVE: Final = "first connection to the enclave"
INIT: Final = "kernel: starts init"
APPLICATION_ENDED: Final = "application ended"
PANIC: Final = "panic"
END: Final = "end"

MILESTONES: Final = (
    ("kernel: first line", b"Linux version", rb"Linux version (\S+)"),
    ("kernel: memory known", b"Memory: ", rb"Memory: (\S+)"),
    ("kernel: clock chosen", b"clocksource: ", rb"clocksource: Switched to clocksource (\S+)"),
    ("kernel: unpacks the ramdisks", b"unpack", rb"Trying to unpack rootfs image"),
    ("kernel: has unpacked the ramdisks", b"initrd memory", rb"Freeing initrd memory: (\S+)"),
    ("kernel: console", b"printk: ", rb"printk: (?:legacy )?console \[?(\S+?)\]? enabled"),
    ("kernel: vsock", b"NET: ", rb"NET: Registered (?:PF_VSOCK|protocol family 40)"),
    (INIT, b"init process", rb"Run (\S+) as init process"),
)
"""What Linux 4.14 to 6.12 prints at its log level 7; with ``quiet`` or ``--quiet-kernel`` none of it.

Each has a name, what a line must have before it is looked at more closely, and a pattern."""
KERNEL_TIME: Final = re.compile(rb"^\[ *(\d+\.\d+)(?:\]|\[)")


class Moment(NamedTuple):
    """One thing that happened."""

    name: str
    """Which."""
    at_s: float
    """When, in seconds since the launch."""
    detail: str = ""
    """More, for people."""
    kernel_s: float | None = None
    """The kernel's own clock, where the kernel told of it; it begins some milliseconds after the guest."""


class Timeline:
    """The moments of one enclave. Any thread may note one.

    Args:
        seconds: The time since the launch.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._moments: dict[str, Moment] = {LAUNCH: Moment(LAUNCH, 0.0)}
        self._milestones = list(MILESTONES)

    @property
    def moments(self) -> list[Moment]:
        """All so far, the earliest first."""
        with self._lock:
            return sorted(self._moments.values(), key=lambda moment: moment.at_s)

    def has(self, name: str) -> bool:
        """Whether something has happened."""
        return name in self._moments

    def note(self, name: str, detail: str = "") -> None:
        """It happened now; only the first time counts."""
        if name not in self._moments:
            self._add(Moment(name, self._seconds(), detail[:DETAIL_CHARACTERS_MAX]))

    def note_line(self, line: bytes) -> None:
        """Look whether a line of the console is one of the kernel's milestones; before the heartbeat only."""
        if HEARTBEAT in self._moments:
            return
        for milestone in self._milestones:
            name, marker, pattern = milestone
            if marker in line and (match := re.search(pattern, line)):
                self._milestones.remove(milestone)
                time = KERNEL_TIME.match(line)
                detail = match[1].decode(errors="replace") if match.lastindex else ""
                printable = "".join(letter if letter.isprintable() else "?" for letter in detail)
                kernel_s = None if time is None else float(time[1])
                self._add(Moment(name, self._seconds(), printable[:DETAIL_CHARACTERS_MAX], kernel_s))
                return

    def as_json(self) -> list[dict[str, Any]]:
        """The moments with the names of `Moment`'s fields, times rounded to microseconds."""
        return [moment._asdict() | {"at_s": round(moment.at_s, 6)} for moment in self.moments]

    def __str__(self) -> str:
        """A line for each moment: when, how long after the one before, what."""
        lines, before_s = [], 0.0
        for moment in self.moments:
            detail = f" ({moment.detail})" if moment.detail else ""
            lines.append(f"{moment.at_s:9.3f} s  +{moment.at_s - before_s:.3f}  {moment.name}{detail}")
            before_s = moment.at_s
        return "\n".join(lines)

    def _add(self, moment: Moment) -> None:
        with self._lock:
            self._moments.setdefault(moment.name, moment)
