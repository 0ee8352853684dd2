"""Log messages reach the user, and a guest that causes many fills no terminal."""

import logging
from collections.abc import Callable

import pytest

from nitro_vmm.cli.told import Told

# The bounds as they are promised, so that those of the program are held against them.
LINES_MAX = 10
PERIOD_S = 60.0

Log = Callable[..., None]


@pytest.fixture
def log() -> Log:
    told = Told()

    def log(text: str, at_s: float = 1000.0, line: int = 1) -> None:
        record = logging.LogRecord("nitro", logging.WARNING, "device.py", line, text, None, None)
        record.created = at_s
        told.handle(record)

    return log


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_message_is_told(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log("a chain has no end")

    assert len(said := lines(capsys)) == 1
    assert said[0].endswith("a chain has no end")


def test_the_eleventh_of_a_kind_is_not_shown_and_that_is_said_once(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(LINES_MAX - 1):
        log(f"chain {number}")
    assert len(lines(capsys)) == LINES_MAX - 1

    for number in range(3):
        log(f"chain {number}")

    said = lines(capsys)
    assert len(said) == 2
    assert said[0].endswith("chain 0")
    assert "more such messages are not shown for 60 s" in said[1]


def test_other_kinds_are_shown_meanwhile(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(LINES_MAX + 5):
        log("chain")
    lines(capsys)

    log("ring", line=2)

    assert len(lines(capsys)) == 1


def test_after_a_while_they_are_shown_again(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(LINES_MAX + 5):
        log("chain", at_s=1000.0)
    lines(capsys)

    log("chain", at_s=1000.0 + PERIOD_S - 1)
    assert lines(capsys) == []
    log("chain", at_s=1000.0 + PERIOD_S)
    assert len(lines(capsys)) == 1
