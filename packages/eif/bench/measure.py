"""How long measuring takes: ``python measure.py [MEBIBYTES] [ROUNDS]``.

PCR0, PCR1, PCR2 and the checksum of an image are computed as ``eif describe`` does, in turns with one
``hashlib.sha384`` pass over the same file. What counts is the ratio of their wall times, and the memory that
is held beyond the page cache (anonymous pages, as the kernel counts them).
"""

import hashlib
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nitro_eif import Contents, Eif, measure_and_checksum, write_eif

_PIECE_BYTES = 1 << 20


def main() -> None:
    """Measure and print."""
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 205
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "big.eif"
        _make(path, mebibytes)
        ratios, processor_ratios = [], []
        for _ in range(rounds):
            single, single_processor = _seconds(lambda: _one_pass(path))
            ours, our_processor = _seconds(lambda: _measure(path))
            ratios.append(ours / single)
            processor_ratios.append(our_processor / single_processor)
            print(f"one sha384 pass {single:.3f} s, PCR0/1/2 and CRC {ours:.3f} s, ratio {ratios[-1]:.2f}")
        processors = len(os.sched_getaffinity(0))
        median = statistics.median(ratios)
        print(f"{mebibytes} MiB on {processors} processors: ratio {median:.2f} (median of {rounds})")
        processor = statistics.median(processor_ratios)
        print(f"processor time: ratio {processor:.2f} (half of it is the best on two)")
        print(f"resident beyond the page cache: {_status('RssAnon') / 1024:.1f} MiB")


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
