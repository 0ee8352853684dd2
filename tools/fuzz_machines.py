"""Run random guests on whole machines, each in a process of its own: ``python tools/fuzz_machines.py``.

Every machine must end or be stopped. One that does not is made as small as can be and kept in
``.cache/machine-fuzz``; ``--replay FILE`` runs it again.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from debian import say
from machine_fuzz import devices, guest, minimise, trial
from machine_fuzz.trial import Trial, Verdict

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "machine-fuzz"
SAID_EVERY_S = 10


MAKERS = {"processor": guest.make, "devices": devices.make}


def try_seed(seed: int, *, what: str) -> tuple[int, Trial]:
    """Run the guest of a seed; once more if it seems to hang, because this machine may be busy."""
    made = MAKERS[what](seed)
    result = trial.run(made)
    if result.verdict in {Verdict.UNSTOPPABLE, Verdict.DEAF}:
        result = trial.run(made)
    return seed, result


def trials(seeds: range, what: str, jobs: int) -> Iterator[tuple[int, Trial]]:
    """Run them all, some at a time, in any order."""
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(partial(try_seed, what=what), seeds, chunksize=4)


def keep(seed: int, what: str, found: Trial) -> Path:
    """Keep a small guest that fails in the same way."""

    def fails(smaller: guest.Guest) -> bool:
        return trial.run(smaller, stop_s=3).verdict is found.verdict

    path = CACHE / f"{what}-{found.verdict}-{seed}.json"
    small = minimise.minimise(MAKERS[what](seed), fails)
    minimise.save(small, path, seed=seed, verdict=found.verdict, details=found.details[-500:])
    return path


def main() -> int:
    """Run them; 0 when all machines ended well."""
    parser = argparse.ArgumentParser(
        description="Run random guests on whole machines and count those that do not end well.",
        epilog="example: nox -s machine-fuzz -- --count 100000 --seed 1",
    )
    parser.add_argument(
        "--what", choices=MAKERS, default="processor", help="what the guests turn to (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=1000, help="how many guests (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first; the others follow (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (default: %(default)s)"
    )
    parser.add_argument(
        "--keep", type=int, default=20, help="make so many failures small (default: %(default)s)"
    )
    parser.add_argument("--replay", type=Path, help="run one kept guest")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    if options.replay is not None:
        result = trial.run(minimise.load(options.replay))
        print(f"{result.verdict}: {result.details}")
        return 0 if result.verdict.good else 1
    counts: Counter[str] = Counter()
    failures: list[tuple[int, Trial]] = []
    started = said = time.monotonic()
    most_mib = 0
    for seed, result in trials(range(options.seed, options.seed + options.count), options.what, options.jobs):
        counts[result.verdict] += 1
        most_mib = max(most_mib, result.resident_mib)
        if not result.verdict.good:
            failures.append((seed, result))
        if time.monotonic() - said > SAID_EVERY_S:
            said = time.monotonic()
            say(f"  {counts.total()}/{options.count}: {dict(counts)}")
    failures.sort(key=lambda failure: failure[0])
    kept = [str(keep(seed, options.what, found)) for seed, found in failures[: options.keep]]
    report = {
        "seed": options.seed,
        "machines": options.count,
        "seconds": round(time.monotonic() - started, 1),
        "verdicts": dict(counts),
        "most memory, MiB": most_mib,
        "failures": [[seed, result.verdict, result.details[-200:]] for seed, result in failures],
        "kept": kept,
    }
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "report.json").write_text(json.dumps(report, indent=1))
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for seed, result in failures:
            print(f"seed {seed}: {result.verdict} {result.details[-100:].strip()}")
        print(f"{options.count} machines: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
