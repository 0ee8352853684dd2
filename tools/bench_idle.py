"""Measure what an enclave costs that waits: ``python tools/bench_idle.py``.

The application sleeps; what counts is the whole machine's processor time between two words that it prints.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import images
from bench_boot import cpu_clock
from debian import complain, say

SETTLE_S = 3  # the kernel has work of its own for some time after it has started the init
SHARE_WANTED = 0.01


class IdleError(Exception):
    """The enclave did not come to its end; the message has its exit code."""


def idle_share(kernel: str, seconds: int, directory: Path) -> float:
    """The share of one processor that an enclave takes while it sleeps.

    Raises:
        IdleError: the enclave did not end well.
    """
    busybox = shutil.which("busybox")
    if busybox is None or b"/lib64/ld-linux-x86-64" in Path(busybox).read_bytes():
        raise images.ImageError("no static busybox; Debian's package is busybox-static")
    programs = directory / "root" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(busybox, programs)
    script = f"b=/bin/busybox; $b sleep {SETTLE_S}; $b echo asleep; $b sleep {seconds}; $b echo awake"
    (programs / "wait").write_text(f"#!/bin/busybox sh\n{script}\n")
    (programs / "wait").chmod(0o755)
    image = str(directory / "idle.eif")
    options = ["--rootfs", str(programs.parent), "--cmd", "/bin/wait", *images.kernel_options(kernel)]
    build = [images.command("eif"), "build", *options, "--output", image]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    used_s: dict[str, float] = {}
    command = [images.command("vmm"), "run", "--console", "--quiet", image]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None  # noqa: S101 - it is a pipe
        for line in machine.stdout:
            if (word := line.strip()) in ("asleep", "awake"):
                used_s[word] = time.clock_gettime(cpu_clock(machine.pid))
    if machine.returncode or len(used_s) != 2:
        raise IdleError(f"the enclave ended with exit code {machine.returncode} and said {sorted(used_s)}")
    return (used_s["awake"] - used_s["asleep"]) / seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure the processor time of an enclave that sleeps.",
        epilog="example: nox -s 'bench(idle)' -- --kernel nitro --seconds 60",
    )
    parser.add_argument("--kernel", choices=images.KERNELS, help="default: both")
    parser.add_argument("--seconds", type=int, default=20, help="how long it sleeps (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="shares by kernel, as JSON")
    options = parser.parse_args()
    shares = {}
    for kernel in [options.kernel] if options.kernel else images.KERNELS:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                shares[kernel] = idle_share(kernel, options.seconds, Path(scratch))
        except images.ERRORS as error:
            return complain(error)
        except (IdleError, subprocess.CalledProcessError) as error:
            say(f"error: {error}")
            return 1
        if not options.json:
            print(f"{kernel}: {shares[kernel]:.2%} of a processor, wanted less than {SHARE_WANTED:.0%}")
    if options.json:
        print(json.dumps(shares, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
