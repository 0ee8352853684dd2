"""A terminal that is an enclave's console: the guest echoes, and afterwards all is as it was."""

import io
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from nitro_vmm.run.terminal import may_read, pollable, stdin_fd, terminal_without_echo

LOCAL_FLAGS = 3
LINES = termios.ECHO | termios.ICANON
SHOW = """
import termios
from nitro_vmm.run.terminal import terminal_without_echo

def show():
    flags = termios.tcgetattr(0)[3]
    print(bool(flags & termios.ECHO), bool(flags & termios.ICANON), bool(flags & termios.ISIG))

show()
with terminal_without_echo():
    show()
show()
"""


@pytest.fixture
def terminal() -> Iterator[int]:
    ours, theirs = os.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def flags(fd: int) -> int:
    (value,) = termios.tcgetattr(fd)[LOCAL_FLAGS : LOCAL_FLAGS + 1]
    assert isinstance(value, int)
    return value


def test_standard_input_has_no_echo_and_no_lines_meanwhile(terminal: int) -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW], stdin=terminal, stdout=subprocess.PIPE, check=True)

    assert shown.stdout.decode().splitlines() == ["True True True", "False False True", "True True True"]


def test_settings_come_back_after_an_error(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: terminal))
    before = flags(terminal)

    during = []

    def break_off() -> None:
        with terminal_without_echo():
            during.append(flags(terminal))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()

    assert during == [before & ~LINES]
    assert flags(terminal) == before


@pytest.mark.parametrize("foreground", [True, False])
def test_a_terminal_is_read_in_the_foreground_only(
    terminal: int,
    monkeypatch: pytest.MonkeyPatch,
    foreground: bool,  # noqa: FBT001
) -> None:
    group = os.getpgrp() if foreground else os.getpgrp() + 1
    monkeypatch.setattr(os, "tcgetpgrp", lambda _fd: group)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: terminal))
    before = flags(terminal)

    with terminal_without_echo():
        changed = flags(terminal) != before

    assert may_read(terminal) == foreground
    assert changed == foreground


def test_what_is_no_terminal_of_this_process_stops_nobody(terminal: int, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.touch()
    with path.open("rb") as file:
        assert may_read(file.fileno())
        assert not pollable(file.fileno())
    assert may_read(terminal)
    assert pollable(terminal)


@pytest.mark.parametrize("stdin", [None, io.StringIO("a notebook's")])
def test_there_may_be_no_standard_input(monkeypatch: pytest.MonkeyPatch, stdin: object) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)

    assert stdin_fd() < 0
    with terminal_without_echo():
        pass
