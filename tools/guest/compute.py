"""Computes what an emulated processor may get wrong, and prints each result on a line: ``name json``.

The same script runs in the guest and on the host, with different versions of Python and of libraries. So it
uses only what has one right answer: IEEE 754's exactly rounded operations, integers, digests, round trips.
"""

import bz2
import hashlib
import json
import lzma
import multiprocessing
import random
import sys
import threading
import zlib

DATA = random.Random(1).randbytes(1 << 20) + b"compress me " * 50_000  # noqa: S311 - the same each time


def pendulum(steps: int) -> str:
    """A chaotic orbit, so that one wrong last digit changes all of them."""
    x, y, z = 1.0, 1.0, 1.0
    for _ in range(steps):
        x, y, z = (
            x + 0.005 * 10.0 * (y - x),
            y + 0.005 * (x * (28.0 - z) - y),
            z + 0.005 * (x * y - (8.0 / 3.0) * z),
        )
    return f"{x.hex()} {y.hex()} {z.hex()} {(x * x + y * y + z * z) ** 0.5!r}"


def harmonic(start: int) -> str:
    """A sum of fractions, each rounded; Python's own `sum` is more exact in some versions than in others."""
    total = 0.0
    for n in range(start, start + 100_000):
        total += 1.0 / n
    return repr(total)


def in_threads() -> list[str]:
    """The sums from four threads, which take turns on one processor."""
    results = [""] * 4

    def work(index: int) -> None:
        results[index] = harmonic(1 + index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def in_processes() -> list[str]:
    """The same from four processes, with pipes and semaphores between them."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        return pool.map(harmonic, range(1, 5))


def integers() -> list[str]:
    """Long multiplication and division."""
    power = pow(3, 1 << 16, (1 << 2203) - 1)
    return [hashlib.sha256(str(power).encode()).hexdigest(), str((7**500 // 11**200) % 10**40)]


def hashes() -> dict[str, str]:
    """Digests of all the families that OpenSSL has code of its own for."""
    names = ("md5", "sha1", "sha256", "sha384", "sha512", "sha3_256", "blake2b")
    return {name: hashlib.new(name, DATA).hexdigest() for name in names}


def compression() -> dict[str, bool]:
    """Round trips; what the compressed bytes are is each version's own business."""
    return {
        "zlib": zlib.decompress(zlib.compress(DATA)) == DATA,
        "bz2": bz2.decompress(bz2.compress(DATA)) == DATA,
        "lzma": lzma.decompress(lzma.compress(DATA, preset=1)) == DATA,
    }


def checksums() -> list[int]:
    """Checksums that have fast code for each processor."""
    return [zlib.crc32(DATA), zlib.adler32(DATA)]


CHECKS = {
    "floats": lambda: pendulum(200_000),
    "threads": in_threads,
    "processes": in_processes,
    "integers": integers,
    "hashes": hashes,
    "checksums": checksums,
    "compression": compression,
}

if __name__ == "__main__":
    for name, check in CHECKS.items():
        print(name, json.dumps(check()), flush=True)
    print("computed by", json.dumps(f"Python {sys.version.split()[0]}"), flush=True)
