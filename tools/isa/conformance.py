"""One run over all forms: assemble, run on both sides, judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from isa import compare, layout, recorded, run
from isa.assemble import assemble
from isa.compare import Difference
from isa.form import Form
from isa.inputs import KINDS, make

FORMS_MAX: Final = 512
"""How many forms run in one process, because after one that dies those before it run again."""
RESULTS_BYTES_MAX: Final = 96 << 20
"""How much the results of one round may take."""


@dataclass(slots=True)
class Report:
    """What came out."""

    seed: int
    inputs: int
    compared: dict[str, int] = field(default_factory=dict)
    """How many forms were compared, by group."""
    differences: list[Difference] = field(default_factory=list)
    not_offered: list[Form] = field(default_factory=list)
    """What this processor does not claim to have."""
    not_here: list[Form] = field(default_factory=list)
    """What this machine cannot vouch for, and what is not recorded."""


def conform(
    forms: Sequence[Form],
    *,
    seed: int,
    count: int,
    progress: Callable[[int], object] = lambda _done: None,
    record: recorded.Recorded | None = None,
    host: bool = True,
) -> Report:
    """Compare forms with this machine's processor, or with what is recorded where it lacks a feature.

    Args:
        forms: which.
        seed: of the inputs.
        count: how many inputs each form runs on.
        progress: called with the number of forms done.
        record: keep this machine's results here.
        host: whether to ask this machine at all; if not, seed and count must be those of the record.

    Raises:
        AssembleError: there is no assembler.
        RunError: one of the sides died.
    """
    forms = sorted(forms, key=lambda form: form.refused)
    program = assemble(forms, count)
    inputs = {kind: make(kind, count, seed) for kind in KINDS}
    work = run.Work(program, inputs, count)
    known = recorded.load() if recorded.FILE.exists() and record is None else None
    if known is not None and (known.seed, known.count) != (seed, count):
        known = None
    report = Report(seed, count)
    size = count * layout.RECORD_BYTES
    step = max(1, min(FORMS_MAX, RESULTS_BYTES_MAX // size))
    first = 0
    while first < len(forms):
        some = forms[first : first + step]
        died: Form | None = None
        try:
            ours = run.emulated(work, first, len(some))
        except run.RunError as error:
            died, some = some[error.form], some[: error.form]
            report.compared[died.group] = report.compared.get(died.group, 0) + 1
            report.differences.append(Difference(died, count, ("end of the machine",), str(error)))
            ours = run.emulated(work, first, len(some))
        # What a processor must refuse may do anything where it is not refused, so it does not run here.
        runs_here = [form for form in some if not form.refused]
        theirs = run.native(work, first, len(runs_here)) if host and runs_here else None
        for number, form in enumerate(some):
            part = slice(number * size, number * size + size)
            mine = ours.records[part]
            by_record = form.by_record and record is None
            if form.refused == compare.offered(form, ours.features) and form.needs:
                report.not_offered.append(form)
                continue
            if form.refused:
                difference = compare.judge_refused(form, mine, inputs[form.inputs])
            elif theirs is not None and not by_record and compare.offered(form, theirs.features):
                right = theirs.records[part]
                if record is not None:
                    record.add(form, right)
                difference = compare.judge(form, mine, right)
            else:
                agrees = None if known is None else known.agrees(form, mine)
                if agrees is None:
                    report.not_here.append(form)
                    continue
                difference = None if agrees else Difference(form, count, (), "not what is recorded")
            report.compared[form.group] = report.compared.get(form.group, 0) + 1
            if difference is not None:
                report.differences.append(difference)
        first += len(some) + (died is not None)
        progress(first)
    return report
