"""Measure the launch, from the start of ``vmm run`` to the heartbeat: ``python tools/bench_boot.py``.

The heartbeat is taken by a socket of our own, as a parent program would, so that the machine's own word is
not what is measured. Processor time counts all threads of the process. The medians of several runs are
printed, as text or with ``--json``; compare processor seconds where other programs are running.
"""

import argparse
import json
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import images
from debian import say

HEARTBEAT_PORT = 9000
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Launch:
    """One run."""

    wall_s: float
    cpu_s: float
    rss_mib: float


class LaunchError(Exception):
    """The enclave sent no heartbeat; the message has what the machine said."""


def cpu_clock(pid: int) -> int:
    """The clock of another process's processor time (clock_getcpuclockid(3))."""
    return (~pid << 3) | 2


def resident_mib(pid: int) -> float:
    """The most memory that a process has had, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def launch(image: Path, directory: Path) -> Launch:
    """Run an image to its end; what was measured is up to its heartbeat.

    Raises:
        LaunchError: there was none.
    """
    prefix = directory / "vsock"
    with socket.socket(socket.AF_UNIX) as listener, (directory / "console").open("w+") as console:
        path = Path(f"{prefix}_{HEARTBEAT_PORT}")
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(TIMEOUT_S)
        started = time.monotonic()
        command = [images.command("vmm"), "run", str(image), "--vsock-path", str(prefix)]
        with subprocess.Popen(command, stdout=console, stderr=console, stdin=subprocess.DEVNULL) as machine:
            try:
                stream, _ = listener.accept()
                with stream:
                    stream.settimeout(TIMEOUT_S)
                    byte = stream.recv(1)
                    measured = Launch(
                        time.monotonic() - started,
                        time.clock_gettime(cpu_clock(machine.pid)),
                        resident_mib(machine.pid),
                    )
                    stream.sendall(byte)
                machine.wait(TIMEOUT_S)
            except (TimeoutError, subprocess.TimeoutExpired, ProcessLookupError) as error:
                machine.kill()
                console.seek(0)
                raise LaunchError(f"no heartbeat: {error}\n{console.read()[-4000:]}") from error
        path.unlink()
        if byte != b"\xb7" or machine.returncode != 0:
            console.seek(0)
            raise LaunchError(f"exit code {machine.returncode}, heartbeat {byte!r}\n{console.read()[-4000:]}")
    return measured


def measure(image: Path, runs: int) -> list[Launch]:
    """Several launches in a row."""
    launches = []
    for number in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            launches.append(launch(image, Path(directory)))
        one = launches[-1]
        say(f"  {number + 1}/{runs}: {one.wall_s:.2f} s, {one.cpu_s:.2f} s of the processor")
    return launches


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure the time from the launch of an enclave to its heartbeat.",
        epilog="example: nox -s bench -- --runs 5 --json",
    )
    parser.add_argument("--runs", type=int, default=10, help="per image (default: %(default)s)")
    parser.add_argument("--kernel", choices=images.KERNELS, default="nitro", help="default: %(default)s")
    parser.add_argument("--image", type=Path, help="an image to launch instead of the hello image")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    try:
        image = options.image or images.hello(options.kernel)
        launches = measure(image, options.runs)
    except (LaunchError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    median = {name: statistics.median(getattr(one, name) for one in launches) for name in Launch.__slots__}
    if options.json:
        report = {"image": image.name, "median": median, "runs": [asdict(one) for one in launches]}
        print(json.dumps({**report, "machine": platform.processor() or platform.machine()}, indent=2))
    else:
        print(
            f"{image.name}: launch to heartbeat {median['wall_s']:.2f} s, {median['cpu_s']:.2f} s of the "
            f"processor, {median['rss_mib']:.0f} MiB (medians of {len(launches)} runs)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
