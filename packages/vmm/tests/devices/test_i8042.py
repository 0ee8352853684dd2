"""The keyboard controller: Linux's probe gets an answer to everything, and the reset line works."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.devices.i8042 import (
    COMMAND,
    CONFIG_KEYBOARD_INTERRUPT,
    CONFIG_MOUSE_DISABLED,
    CONFIG_SELF_TEST_PASSED,
    CONFIG_TRANSLATE,
    DATA,
    ECHO_AS_KEYBOARD,
    ECHO_AS_MOUSE,
    I8042,
    READ_MEMORY,
    RESEND,
    RESET,
    SELF_TEST,
    STATUS_FROM_MOUSE,
    STATUS_NOT_LOCKED,
    STATUS_OUTPUT_FULL,
    STATUS_TIMEOUT,
    TEST_KEYBOARD_PORT,
    TEST_MOUSE_PORT,
    WRITE_MEMORY,
    WRITE_OUTPUT_PORT,
    WRITE_TO_MOUSE,
)


class Bench:
    def __init__(self) -> None:
        self.resets = 0
        self.levels: list[bool] = []
        self.chip = I8042(self._reset, self.levels.append)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *data: int) -> None:
        self.chip.write(COMMAND, 1, command)
        for byte in data:
            self.chip.write(DATA, 1, byte)

    def status(self) -> int:
        return self.chip.read(COMMAND, 1)

    def answer(self) -> int:
        assert self.status() & STATUS_OUTPUT_FULL
        value = self.chip.read(DATA, 1)
        assert not self.status() & STATUS_OUTPUT_FULL
        return value


def test_nothing_waits_at_first_and_the_keyboard_is_not_locked() -> None:
    bench = Bench()

    assert not bench.status() & STATUS_OUTPUT_FULL
    assert bench.status() & STATUS_NOT_LOCKED


@pytest.mark.parametrize(
    ("command", "answer"), [(SELF_TEST, 0x55), (TEST_KEYBOARD_PORT, 0), (TEST_MOUSE_PORT, 1)]
)
def test_tests_answer_at_once(command: int, answer: int) -> None:
    bench = Bench()

    bench.command(command)

    assert bench.answer() == answer


def test_the_configuration_is_kept() -> None:
    bench = Bench()
    bench.command(READ_MEMORY)
    assert bench.answer() == CONFIG_SELF_TEST_PASSED | CONFIG_TRANSLATE

    bench.command(WRITE_MEMORY, 0x30)
    bench.command(0xA8)
    bench.command(0xAE)
    bench.command(READ_MEMORY)
    assert bench.answer() == 0
    bench.command(0xA7)
    bench.command(0xAD)
    bench.command(READ_MEMORY)
    assert bench.answer() == 0x10 | CONFIG_MOUSE_DISABLED


def test_each_byte_of_the_memory_is_kept() -> None:
    bench = Bench()
    for index in range(1, 32):
        bench.command(0x60 + index, 0x80 | index)

    found = []
    for index in range(32):
        bench.command(0x20 + index)
        found.append(bench.answer())

    assert found == [0x44, *(0x80 | index for index in range(1, 32))]


def test_the_status_says_how_the_last_byte_came() -> None:
    bench = Bench()
    seen = [bench.status(), bench.chip.read(DATA, 1)]

    bench.chip.write(DATA, 1, 0xFF)  # to a keyboard that is not there
    seen += [bench.status(), bench.chip.read(DATA, 1), bench.status()]
    bench.command(0xD4, 0xFF)  # to a mouse that is not there
    seen += [bench.status(), bench.chip.read(DATA, 1), bench.status()]
    bench.command(0xAA)  # self test
    seen += [bench.status(), bench.chip.read(DATA, 1), bench.status()]

    assert seen == [0x14, 0, 0x55, 0xFE, 0x14, 0x75, 0xFE, 0x14, 0x1D, 0x55, 0x1C]


def test_a_byte_of_the_mouse_is_no_interrupt_of_the_keyboard() -> None:
    bench = Bench()
    bench.command(0x60, 0x45)

    bench.command(0xD4, 0xFF)
    mouse = bench.levels[-1]
    bench.command(0xD2, 7)
    echo = bench.levels[-1]
    bench.answer()

    assert (mouse, echo, bench.levels[-1]) == (False, True, False)


@pytest.mark.parametrize("command", [0xF0, 0xF2, 0xFC, 0xFE])
def test_pulses_of_the_first_line_are_resets(command: int) -> None:
    bench = Bench()
    for other in (0xEE, command | 1):
        bench.command(other)
    before = bench.resets

    bench.command(command)

    assert (before, bench.resets) == (0, 1)


def test_no_mouse_answers_the_loopback_test() -> None:
    bench = Bench()

    bench.command(ECHO_AS_MOUSE, 0x5A)

    assert not bench.status() & STATUS_FROM_MOUSE
    assert bench.answer() == 0x5A


def test_devices_that_are_not_there_time_out_at_once() -> None:
    bench = Bench()
    bench.command(WRITE_MEMORY, CONFIG_KEYBOARD_INTERRUPT)

    bench.chip.write(DATA, 1, 0xFF)
    assert bench.levels[-1]
    assert bench.status() & (STATUS_TIMEOUT | STATUS_FROM_MOUSE) == STATUS_TIMEOUT
    assert bench.answer() == RESEND
    assert not bench.levels[-1]

    bench.command(WRITE_TO_MOUSE, 0xFF)
    assert not bench.levels[-1]
    assert bench.status() & STATUS_TIMEOUT
    assert bench.status() & STATUS_FROM_MOUSE
    assert bench.answer() == RESEND


def test_an_echo_interrupts_when_asked_to() -> None:
    bench = Bench()
    bench.command(ECHO_AS_KEYBOARD, 0x1C)
    assert not bench.levels[-1]

    bench.command(WRITE_MEMORY, CONFIG_KEYBOARD_INTERRUPT)

    assert bench.levels[-1]
    assert bench.answer() == 0x1C


def test_both_ways_to_pull_the_reset_line() -> None:
    bench = Bench()
    bench.command(RESET)
    assert bench.resets == 1

    bench.command(WRITE_OUTPUT_PORT, 0x03)
    bench.command(0xFF)
    assert bench.resets == 1
    bench.command(WRITE_OUTPUT_PORT, 0x02)
    assert bench.resets == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**32 - 1)), max_size=60))
def test_no_sequence_of_accesses_raises(sequence: list[tuple[int, int]]) -> None:
    bench = Bench()
    for offset, value in sequence:
        bench.chip.write(offset, 1, value)
        assert 0 <= bench.chip.read(offset, 1) <= 0xFF
