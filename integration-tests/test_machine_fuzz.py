"""Random guests on whole machines: a few of those that `nox -s machine-fuzz` runs by the thousand."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from machine_fuzz import guest, minimise, trial  # noqa: E402
from machine_fuzz.trial import Verdict  # noqa: E402
from nitro_vmm.machine.machine import Machine  # noqa: E402

SEEDS = range(1, 41)
FOUND = sorted(Path(guest.__file__).with_name("found").glob("*.json"))
"""Guests that were too much for a machine of before."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_guest_ends_well(seed: int) -> None:
    result = trial.run(guest.make(seed))

    assert result.verdict.good, result


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FOUND])
def test_a_guest_that_was_too_much_ends_well(path: Path) -> None:
    result = trial.run(minimise.load(path))

    assert result.verdict.good, result


def test_a_seed_always_makes_the_same_guest() -> None:
    assert guest.make(7) == guest.make(7)
    assert guest.make(7) != guest.make(8)


def _raise() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        pytest.param(os.abort, Verdict.ABORT, id="abort"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), Verdict.SIGNAL, id="signal"),
        pytest.param(_raise, Verdict.TRACEBACK, id="exception"),
        pytest.param(lambda: os.write(2, b"Exception ignored in: hook"), Verdict.TRACEBACK, id="message"),
    ],
)
def test_a_failure_is_noticed(
    monkeypatch: pytest.MonkeyPatch, failure: Callable[[], object], verdict: Verdict
) -> None:
    assemble = trial._assemble  # noqa: SLF001

    def fail(made: guest.Guest) -> object:
        failure()
        return assemble(made)

    monkeypatch.setattr(trial, "_assemble", fail)

    assert trial.run(guest.Guest((), ())).verdict is verdict


def test_a_machine_that_does_not_stop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "stop", lambda _machine: None)
    endless = guest.Guest((b"\xeb\xfe",), ())

    assert trial.run(endless, stop_s=0.1).verdict is Verdict.UNSTOPPABLE


def test_a_process_that_is_deaf_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "DEAF_S", 0.1)
    monkeypatch.setattr(trial, "_assemble", lambda _made: signal.pause())

    assert trial.run(guest.Guest((), ()), run_s=0, stop_s=0).verdict is Verdict.DEAF


def test_minimising_leaves_what_fails() -> None:
    operations = tuple(bytes([number]) for number in range(20))
    whole = guest.Guest(operations, ((1, b"one"), (2, b"two")))

    small = minimise.minimise(
        whole, lambda made: {b"\x03", b"\x0b"} <= set(made.operations) and (2, b"two") in made.tables
    )

    assert small == guest.Guest((b"\x03", b"\x0b"), ((2, b"two"),))


def test_a_kept_guest_is_read_back(tmp_path: Path) -> None:
    made = guest.make(3)

    minimise.save(made, tmp_path / "kept.json", seed=3)

    assert minimise.load(tmp_path / "kept.json") == made
