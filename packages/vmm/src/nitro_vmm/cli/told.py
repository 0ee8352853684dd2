"""What the log tells the user, and how much of it; apart, because `logging` takes long to import."""

import logging
from typing import Final

from nitro_vmm.cli.streams import logs_json, report

LINES_MAX: Final = 10
"""How many messages of one kind are shown within `PERIOD_S`. A guest can cause some of them, as often as it
likes."""
PERIOD_S: Final = 60.0


class Told(logging.Handler):
    """Tells log records to the user, and not more than `LINES_MAX` of a kind in a while.

    A kind is a place in the source, because messages have the guest's numbers in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began_s: dict[tuple[str, int], float] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        kind = (record.pathname, record.lineno)
        if record.created - self._began_s.get(kind, 0.0) >= PERIOD_S:
            self._began_s[kind] = record.created
            self._counts[kind] = 0
        self._counts[kind] += 1
        level, logger = record.levelname.lower(), {"logger": record.name}
        if self._counts[kind] <= LINES_MAX:
            text = record.getMessage() if logs_json() else self.format(record)
            report(text, level=level, fields=logger)
        if self._counts[kind] == LINES_MAX:
            report(f"{record.name}: more such messages are not shown for {PERIOD_S:g} s", level=level)
