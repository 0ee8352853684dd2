"""Unicorn as an accelerator: what it says where it cannot do all."""

import logging

import pytest

from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.accel.unicorn import Unicorn, vm


@pytest.mark.parametrize(("missing", "times"), [("there is no compiler", 1), ("", 0)])
def test_a_missing_native_part_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str, times: int
) -> None:
    monkeypatch.setattr(vm, "MISSING", missing)
    monkeypatch.setattr(vm, "_said", False)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            Unicorn()

    said = [
        record.getMessage() for record in caplog.records if "without its native part" in record.getMessage()
    ]
    assert len(said) == times
    assert all(f"because {missing}:" in each for each in said)


@pytest.mark.parametrize("accelerator", [Unicorn, Kvm])
def test_a_machine_gets_as_many_processors_as_there_can_be(accelerator: type[Unicorn] | type[Kvm]) -> None:
    assert 1 <= accelerator.processors_default <= accelerator.processors_max
