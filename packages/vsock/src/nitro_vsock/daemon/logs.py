"""The daemon's log: lines for people, or one JSON object per line."""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("nitro_vsock")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, message, and whatever ``extra`` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; times are UTC."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """The message with the ``extra`` fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        line = f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({fields})" if fields else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(*, form: str, level: str) -> None:
    """Send this package's log to standard error, as ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False


def options() -> list[str]:
    """The command line's options that make another process log as this one does."""
    form = "json" if any(isinstance(each.formatter, JsonFormatter) for each in LOGGER.handlers) else "text"
    return ["--log-format", form, "--log-level", logging.getLevelName(LOGGER.getEffectiveLevel()).lower()]
