"""Verdicts on enclaves."""

import pytest

from nitro_vmm.enclave.outcome import Outcome, Verdict, judge, late
from nitro_vmm.machine.machine import End, Ending


@pytest.mark.parametrize(
    ("end", "outcome", "reason"),
    [
        (End.POWER_OFF, Outcome.ENDED, "the enclave powered off"),
        (End.REBOOT, Outcome.ENDED, "the enclave rebooted"),
        (End.HALTED, Outcome.ENDED, "the enclave halted for good"),
        (End.TRIPLE_FAULT, Outcome.CRASH, "the enclave crashed with a triple fault"),
        (End.CRASHED, Outcome.CRASH, "the enclave crashed"),
    ],
)
def test_a_machine_that_ends_by_itself(end: End, outcome: Outcome, reason: str) -> None:
    assert judge(Ending(end), panic=None) == Verdict(outcome, reason)


@pytest.mark.parametrize("end", End)
def test_a_panic_is_the_reason_for_any_end(end: End) -> None:
    verdict = judge(Ending(end, "details"), panic="no init")

    assert verdict == Verdict(Outcome.PANIC, "the enclave's kernel panicked: no init")


def test_details_of_a_crash_are_told() -> None:
    assert judge(Ending(End.CRASHED, "at 0x1"), panic=None).reason == "the enclave crashed: at 0x1"


def test_no_heartbeat() -> None:
    assert late(180.0, panic=None) == Verdict(Outcome.BOOT_TIMEOUT, "no heartbeat within 180 s")


def test_a_panic_explains_a_missing_heartbeat() -> None:
    assert late(180.0, panic="stuck").outcome is Outcome.PANIC
