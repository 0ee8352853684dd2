"""How long measuring takes: ``python measure.py [--mebibytes 205] [--runs 9] [--json]``.

PCR0, PCR1, PCR2 and the checksum of an image are computed as ``eif describe`` does, in turns with one
``hashlib.sha384`` pass over the same file. What counts is the ratio of their wall times, and the memory that
is held beyond the page cache (anonymous pages, as the kernel counts them).
"""

import argparse
import hashlib
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nitro_eif import Contents, Eif, measure_and_checksum, write_eif

_PIECE_BYTES = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure images, in turns with one SHA-384 pass.")
    parser.add_argument("--mebibytes", type=int, default=205, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    options = parser.parse_args()
    ours, single = [], []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "big.eif"
        _make(path, options.mebibytes)
        for _ in range(options.runs):
            single.append(_seconds(lambda: _one_pass(path)))
            ours.append(_seconds(lambda: _measure(path)))
    row = _row(f"PCR0, PCR1, PCR2 and checksum of {options.mebibytes} MiB", ours, single)
    if options.json:
        print(json.dumps({"rows": [row]}, indent=2))
        return
    processors = len(os.sched_getaffinity(0))
    print(f"{row['name']} on {processors} processors: {row['ours']:.3f} s, {row['ratio']:.2f} times one pass")
    print(f"processor time: {row['ours_cpu_s']:.3f} s, of one pass {row['theirs_cpu_s']:.3f} s")
    print(f"resident beyond the page cache: {_status('RssAnon') / 1024:.1f} MiB")


def _row(name: str, ours: list[tuple[float, float]], single: list[tuple[float, float]]) -> dict[str, Any]:
    """What was found, as the other benchmarks of this project say it."""
    median = statistics.median
    return {
        "name": name,
        "unit": "s",
        "ours": median(wall for wall, _ in ours),
        "lowest": min(ours)[0],
        "highest": max(ours)[0],
        "runs": len(ours),
        "peer": "one SHA-384 pass",
        "theirs": median(wall for wall, _ in single),
        "ratio": median(one / two for (one, _), (two, _) in zip(ours, single, strict=True)),
        "ours_cpu_s": median(processor for _, processor in ours),
        "theirs_cpu_s": median(processor for _, processor in single),
    }


def _make(path: Path, mebibytes: int) -> None:
    kernel = os.urandom(4 << 20)
    first = os.urandom(1 << 20)
    with tempfile.TemporaryFile() as file:
        for _ in range(mebibytes - 5):
            file.write(os.urandom(_PIECE_BYTES))
        file.flush()
        application = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        contents = Contents(kernel=kernel, cmdline=b"reboot=k", ramdisks=[first, application], metadata=b"{}")
        write_eif(contents, path)


def _one_pass(path: Path) -> None:
    digest = hashlib.sha384()
    with path.open("rb") as file:
        while data := file.read(_PIECE_BYTES):
            digest.update(data)


def _measure(path: Path) -> None:
    with Eif.open(path) as eif:
        measure_and_checksum(eif)


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Give wall time and processor time."""
    start, start_processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_processor


def _status(field: str) -> int:
    """Give a field of /proc/self/status, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
