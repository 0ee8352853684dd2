"""Deadlines: in order, once, and not when they were cancelled or moved."""

import pytest

from engine_bench import Clock
from nitro_vsock.device.timers import NEVER, Timers


class Waiting:
    """Something with a deadline."""

    def __init__(self) -> None:
        self.deadline: float | None = None


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_due_is_called_once_in_order_and_the_rest_waits(clock: Clock) -> None:
    timers, called = Timers(clock), list[str]()
    for name, delay in (("later", 3.0), ("second", 2.0), ("first", 1.0)):
        timers.schedule(Waiting(), delay, lambda name=name: called.append(name))  # type: ignore[misc]

    clock.now += 2.0
    timers.run_due()
    timers.run_due()

    assert called == ["first", "second"]
    assert timers.seconds_left() == 1.0


def test_those_of_the_same_time_go_in_the_order_in_which_they_were_scheduled(clock: Clock) -> None:
    timers, called = Timers(clock), list[int]()
    for number in range(5):
        timers.schedule(Waiting(), 1.0, lambda number=number: called.append(number))  # type: ignore[misc]

    clock.now += 1.0
    timers.run_due()

    assert called == [0, 1, 2, 3, 4]


def test_a_cancelled_one_is_not_called_and_nobody_wakes_up_for_it(clock: Clock) -> None:
    timers, waiting = Timers(clock), Waiting()
    timers.schedule(waiting, 1.0, lambda: pytest.fail("it was cancelled"))

    waiting.deadline = None

    assert timers.seconds_left() is None
    clock.now += 1.0
    timers.run_due()


def test_one_that_was_scheduled_anew_is_called_at_the_new_time_only(clock: Clock) -> None:
    timers, waiting, called = Timers(clock), Waiting(), list[str]()
    timers.schedule(waiting, 1.0, lambda: called.append("old"))
    timers.schedule(waiting, 3.0, lambda: called.append("new"))

    clock.now += 1.0
    timers.run_due()
    assert called == []
    assert timers.seconds_left() == 2.0
    clock.now += 2.0
    timers.run_due()

    assert called == ["new"]
    assert waiting.deadline is None


def test_the_soonest_is_never_later_than_what_is_due_and_exact_after_a_look(clock: Clock) -> None:
    timers, first = Timers(clock), Waiting()
    before = timers.soonest
    timers.schedule(first, 1.0, lambda: None)
    timers.schedule(Waiting(), 3.0, lambda: None)
    both = timers.soonest
    first.deadline = None
    cancelled = timers.soonest

    assert before == NEVER
    assert both == cancelled == clock.now + 1.0
    assert timers.next_deadline() == timers.soonest == clock.now + 3.0


def test_one_that_is_overdue_leaves_no_time(clock: Clock) -> None:
    timers = Timers(clock)
    timers.schedule(Waiting(), 1.0, lambda: None)

    clock.now += 5.0

    assert timers.seconds_left() == 0.0


def test_what_a_timer_schedules_for_now_is_called_in_the_same_run(clock: Clock) -> None:
    timers, called = Timers(clock), list[str]()

    def again() -> None:
        called.append("first")
        timers.schedule(Waiting(), 0.0, lambda: called.append("second"))

    timers.schedule(Waiting(), 0.0, again)
    timers.run_due()

    assert called == ["first", "second"]
