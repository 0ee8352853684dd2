"""What the command line shows people: progress, sizes and tables."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import IO, Final, Self

_QUIET_S: Final = 1.0
_INTERVAL_S: Final = 0.1


class Meter:
    """Shows progress on a terminal's standard error, once the work has taken a second.

    Call it with bytes done and bytes in all; ``with`` clears the line at the end.
    """

    def __init__(self, label: str, stream: IO[str] | None = None) -> None:
        self._label = label
        self._stream = stream if stream is not None else sys.stderr
        self._shown_at = time.monotonic() + _QUIET_S - _INTERVAL_S
        self._enabled = self._stream.isatty()
        self._dirty = False

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are done."""
        now = time.monotonic()
        if not self._enabled or now - self._shown_at < _INTERVAL_S:
            return
        self._shown_at = now
        self._dirty = True
        share = f"{100 * done // total:3d} % of {size(total)}" if total else size(done)
        print(f"\r\033[K{self._label} {share}", end="", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._dirty:
            print("\r\033[K", end="", file=self._stream, flush=True)


def size(count: int) -> str:
    """Write a number of bytes for people."""
    if count < 10_000:
        return f"{count} B"
    power = min(2, next((power for power in range(3) if count < 1000 << (10 * power + 10)), 2))
    return f"{count / (1024 << (10 * power)):.1f} {('KiB', 'MiB', 'GiB')[power]}"


def table(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Lay rows out in columns."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def printable(text: str) -> str:
    """Text from a file, with control characters escaped so that a terminal does not obey them."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shown(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def print_json(value: object) -> None:
    """Print a value as nitro-cli does, but for characters that a terminal would obey: they are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_measurements(values: dict[str, str], *, as_json: bool) -> None:
    """Print registers as `Measurements.as_json` gives them: JSON as nitro-cli's, or one a line."""
    if as_json:
        print_json({"Measurements": values})
    else:
        print(table(((name, value) for name, value in values.items() if name.startswith("PCR")), indent=""))


def story(text: str) -> None:
    """What is going on, on standard error."""
    print(shown(text), file=sys.stderr, flush=True)
