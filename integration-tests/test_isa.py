"""What the enclave's processor computes is what this machine's does: all forms, on few inputs.

`nox -s isa` runs the same on many.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from isa import known, layout, recorded  # noqa: E402
from isa.assemble import AssembleError  # noqa: E402
from isa.compare import Difference, judge  # noqa: E402
from isa.conformance import Report, conform  # noqa: E402
from isa.form import Form  # noqa: E402
from isa.tables import GROUPS, all_forms  # noqa: E402

NOT_OFFERED = "bit manipulation"
"""CPUID does not offer these, and the group of absent instructions tries that they are refused."""


@pytest.fixture(scope="module")
def report() -> Report:
    kept = recorded.load()
    try:
        return conform(all_forms(), seed=kept.seed, count=kept.count)
    except AssembleError as error:
        pytest.skip(str(error))


def unexplained(differences: Sequence[Difference]) -> list[str]:
    return [f"{one.name}: {one.example}" for one in differences if known.reason(one) is None]


@pytest.mark.parametrize("group", [group for group in GROUPS if group != NOT_OFFERED])
def test_every_form_of_a_group_gives_the_right_results(report: Report, group: str) -> None:
    assert group in report.compared

    assert unexplained([one for one in report.differences if one.form.group == group]) == []


def test_recorded_results_stand_in_for_a_machine_that_lacks_everything() -> None:
    kept = recorded.load()
    forms = [form for form in all_forms() if form.group == "crc32"]

    try:
        found = conform(forms, seed=kept.seed, count=kept.count, host=False)
    except AssembleError as error:
        pytest.skip(str(error))

    assert found.not_here == []
    assert found.differences == []
    assert found.compared == {"crc32": len(forms)}


def test_a_wrong_result_is_noticed() -> None:
    form = Form("crc32 eax, ebx")
    right = bytes(2 * layout.RECORD_BYTES)
    wrong = bytearray(right)
    wrong[layout.RECORD_BYTES + layout.GENERAL] = 1

    found = judge(form, bytes(wrong), right)

    assert found is not None
    assert (found.inputs, found.fields) == (1, ("rax",))
    assert judge(form, right, right) is None


@pytest.mark.parametrize(("bits", "near"), [(1, True), (1 << 40, False)])
def test_an_approximation_must_be_near(bits: int, near: bool) -> None:  # noqa: FBT001
    form = Form("fsin", digits=50)
    one = (0x3FFF << 64 | 1 << 63).to_bytes(10, "little")
    other = (0x3FFF << 64 | 1 << 63 | bits).to_bytes(10, "little")
    right, ours = bytearray(layout.RECORD_BYTES), bytearray(layout.RECORD_BYTES)
    right[32:42], ours[32:42] = one, other

    found = judge(form, bytes(ours), bytes(right))

    assert (found is None) is near
