"""Compare what the enclave's processor computes with this machine's: ``python tools/conformance.py``.

Every form of every instruction that CPUID offers, on random and edge inputs of a seed, to the last bit. The
report is a table, and ``.cache/isa/report.json`` with an example of every difference.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from debian import say
from isa import recorded
from isa.assemble import AssembleError
from isa.compare import Difference
from isa.conformance import Report, conform
from isa.known import reason
from isa.run import RunError
from isa.tables import GROUPS, all_forms

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "isa"
RECORDED_SEED, RECORDED_INPUTS = 1, 16


def as_json(report: Report, seconds: float) -> dict[str, object]:
    """The report for programs."""

    def line(difference: Difference) -> dict[str, object]:
        return {
            "form": difference.form.code,
            "group": difference.form.group,
            "kind": difference.form.inputs,
            "inputs": difference.inputs,
            "fields": difference.fields,
            "example": difference.example,
            "known": reason(difference),
        }

    unknown = [one for one in report.differences if reason(one) is None]
    return {
        "seed": report.seed,
        "inputs": report.inputs,
        "seconds": round(seconds, 1),
        "forms": sum(report.compared.values()),
        "differing": len(unknown),
        "known": len(report.differences) - len(unknown),
        "groups": {
            group: {
                "forms": report.compared[group],
                "differing": sum(one.form.group == group for one in unknown),
            }
            for group in GROUPS
            if group in report.compared
        },
        "not offered": [form.code for form in report.not_offered],
        "not comparable here": [form.code for form in report.not_here],
        "differences": [line(one) for one in report.differences],
    }


def main() -> int:
    """Compare; 0 when nothing differs but what is known."""
    parser = argparse.ArgumentParser(
        description="Compare what the enclave's processor computes with this machine's.",
        epilog="example: nox -s isa -- --inputs 1500 --seed 7 --group floating",
    )
    parser.add_argument("--inputs", type=int, default=256, help="for each form (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (default: %(default)s)")
    parser.add_argument("--group", choices=GROUPS, action="append", help="only this one; may be repeated")
    parser.add_argument("--form", help="only forms with this text in their code")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--record", action="store_true", help="keep this machine's results in the repository")
    options = parser.parse_args()
    if options.record:
        options.seed, options.inputs = RECORDED_SEED, RECORDED_INPUTS
    forms = [
        form
        for form in all_forms()
        if form.group in (options.group or GROUPS) and (options.form or "") in form.code
    ]
    say(f"{len(forms)} forms, {options.inputs} inputs each, seed {options.seed}")
    record = recorded.Recorded(options.seed, options.inputs) if options.record else None
    started = time.monotonic()
    try:
        report = conform(forms, seed=options.seed, count=options.inputs, record=record)
    except (AssembleError, RunError) as error:
        say(f"error: {error}")
        return 4
    if record is not None:
        recorded.save(record)
        say(f"{recorded.FILE}: {len(record.digests)} forms")
    found = as_json(report, time.monotonic() - started)
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "report.json").write_text(json.dumps(found, indent=1))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(report)
        say(f"all of it: {CACHE / 'report.json'}")
    return 1 if found["differing"] else 0


def _print(report: Report) -> None:
    unknown = [one for one in report.differences if reason(one) is None]
    for one in unknown[:60]:
        print(f"{one.name}: {one.inputs} inputs: {', '.join(one.fields)}\n    {one.example[:200]}")
    if len(unknown) > 60:
        print(f"... and {len(unknown) - 60} more")
    wrong = Counter(one.form.group for one in unknown)
    print(f"{'group':28} {'forms':>6} {'differ':>6}")
    for group in GROUPS:
        if group in report.compared:
            print(f"{group:28} {report.compared[group]:6} {wrong[group]:6}")
    print(f"{'all':28} {sum(report.compared.values()):6} {len(unknown):6}")


if __name__ == "__main__":
    sys.exit(main())
