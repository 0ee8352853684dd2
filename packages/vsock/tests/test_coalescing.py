"""When the engine looks for events instead of sleeping, and how long it holds an interrupt back."""

import pytest

from nitro_vsock.device.coalescing import HELD_ROUNDS_MAX, Coalescing, Events

SPIN_S = 0.001
LOOK_S = 0.0003


class Quiet:
    """A clock, and an epoll on which nothing happens: a look takes 0.3 ms, a sleep as long as ``sleep_s``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleep_s = 1.0
        self.waits: list[float | None] = []
        self.sleeps = 0
        self.events: Events = []

    def clock(self) -> float:
        return self.now

    def poll(self, wait: float | None, _most: int) -> Events:
        self.waits.append(wait)
        self.now += LOOK_S if wait == 0 else self.sleep_s
        return self.events

    def before_sleep(self) -> None:
        self.sleeps += 1

    def wait(self, coalescing: Coalescing, wait: float | None, *, sleep_s: float) -> list[float | None]:
        """How long each look waited in one round."""
        self.sleep_s = sleep_s
        self.waits.clear()
        coalescing.wait(wait)
        return list(self.waits)


def coalescing(quiet: Quiet, spin_s: float = SPIN_S) -> Coalescing:
    return Coalescing(spin_s, quiet.poll, quiet.clock, quiet.before_sleep)


def test_looking_goes_on_while_it_pays() -> None:
    quiet = Quiet()
    tested = coalescing(quiet)

    assert quiet.wait(tested, None, sleep_s=0.002) == [None]
    assert quiet.wait(tested, None, sleep_s=1.0) == [0, 0, 0, 0, None], "the last sleep was short"
    assert quiet.wait(tested, None, sleep_s=1.0) == [None], "the last one was not"
    assert quiet.sleeps == 3


@pytest.mark.parametrize(("sleep_s", "pays"), [(0.0029, True), (0.0031, False)])
def test_a_sleep_is_short_up_to_three_times_the_looking(sleep_s: float, *, pays: bool) -> None:
    quiet = Quiet()
    tested = coalescing(quiet)

    quiet.wait(tested, None, sleep_s=sleep_s)

    assert tested.spin_pays is pays


def test_an_event_ends_the_looking() -> None:
    quiet = Quiet()
    quiet.events = [(7, 1)]
    tested = coalescing(quiet)
    tested.spin_pays = True

    assert tested.wait(None) == [(7, 1)]
    assert quiet.waits == [0]
    assert quiet.sleeps == 0


@pytest.mark.parametrize("wait", [None, 2.0])
def test_without_time_to_look_it_sleeps_at_once(wait: float | None) -> None:
    quiet = Quiet()
    tested = coalescing(quiet, spin_s=0.0)

    assert quiet.wait(tested, wait, sleep_s=0.0) == [wait]
    assert quiet.sleeps == 0, "nothing is held back where nobody looks"
    assert not tested.spin_pays


def test_who_does_not_want_to_wait_gets_one_look() -> None:
    quiet = Quiet()
    tested = coalescing(quiet)
    tested.spin_pays = True

    assert quiet.wait(tested, 0.0, sleep_s=0.0) == [0.0]
    assert quiet.sleeps == 0


def nothing() -> None:
    """An interrupt."""


def test_an_interrupt_is_held_back_for_some_rounds_and_no_longer() -> None:
    tested = coalescing(Quiet())
    tested.spin_pays = True
    tested.hold(nothing)

    held = [tested.take_due(busy=False) for _ in range(HELD_ROUNDS_MAX)]

    assert held == [None] * HELD_ROUNDS_MAX
    assert tested.take_due(busy=False) is nothing
    assert tested.take_due(busy=False) is None, "it is raised once"


def test_the_rounds_are_counted_anew_for_each_interrupt() -> None:
    tested = coalescing(Quiet())
    tested.spin_pays = True
    tested.hold(nothing)
    tested.take_due(busy=False)
    tested.take()
    tested.hold(nothing)

    held = [tested.take_due(busy=False) for _ in range(HELD_ROUNDS_MAX)]

    assert held == [None] * HELD_ROUNDS_MAX


@pytest.mark.parametrize(("busy", "pays"), [(True, True), (True, False), (False, False)])
def test_an_interrupt_is_raised_at_once_if_the_engine_goes_on_or_will_sleep(
    *, busy: bool, pays: bool
) -> None:
    tested = coalescing(Quiet())
    tested.spin_pays = pays
    tested.hold(nothing)

    assert tested.take_due(busy=busy) is nothing
