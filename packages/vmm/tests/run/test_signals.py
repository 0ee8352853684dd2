"""Which signals end an enclave, and which came before anybody received them."""

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from nitro_vmm.run.signals import EarlySignals, receiver, said


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """None is ignored, as under nohup; those of the test run come back."""
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_one_counts() -> None:
    told: list[int] = []

    with EarlySignals() as early:
        assert early.first is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        early.tell(told.append)

    assert early.first == signal.SIGTERM
    assert told == [signal.SIGTERM]


def test_one_that_comes_later_is_told_at_once() -> None:
    told: list[int] = []

    with EarlySignals() as early:
        early.tell(told.append)
        assert told == []
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    assert told == [signal.SIGHUP]


def test_handlers_are_as_before() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with EarlySignals():
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, "ignored as under nohup"

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_termination_counts_even_where_it_was_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with EarlySignals() as early:
        os.kill(os.getpid(), signal.SIGTERM)

    assert early.first == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_they_are_received() -> None:
    with trio.fail_after(60), receiver() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)

        assert await anext(aiter(signals)) == signal.SIGUSR1


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_what_people_call_them(number: signal.Signals, name: str) -> None:
    assert said(number) == name
