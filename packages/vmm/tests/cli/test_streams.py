"""What is told to the user, and how much of it."""

import logging

import pytest

from nitro_vmm.cli.told import Told

# The bounds as they are promised, so that those of the program are held against them.
LINES_MAX = 10
PERIOD_S = 60.0


def record(line: int, created_s: float) -> logging.LogRecord:
    made = logging.LogRecord("vsock", logging.WARNING, "vsock.py", line, "dropped", (), None)
    made.created = created_s
    return made


def test_messages_of_a_kind_are_capped(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Told()

    for _ in range(1000):
        handler.emit(record(1, 100.0))
    handler.emit(record(2, 100.0))

    said = capsys.readouterr().err.splitlines()
    assert said == [
        *["dropped"] * LINES_MAX,
        "vsock: more such messages are not shown for 60 s",
        "dropped",
    ]


def test_they_are_shown_again_later(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Told()
    for _ in range(1000):
        handler.emit(record(1, 100.0))
    capsys.readouterr()

    handler.emit(record(1, 100.0 + PERIOD_S))

    assert capsys.readouterr().err == "dropped\n"
