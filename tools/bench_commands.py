"""Measure what commands cost that start no guest of their own: ``python tools/bench_commands.py``.

Each is started as a shell starts it, and its own process is waited for: of ``vmm run -d`` that is what the
user waits for, not the enclave's process. A Python that does nothing runs in turns with them, because its
start is the least that any command can take.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bench_idle
import figures
import images
from debian import complain, say

COMMANDS: dict[str, list[str]] = {
    "vmm --version": ["vmm", "--version"],
    "vmm run --help": ["vmm", "run", "--help"],
    "vmm run -d": ["vmm", "run", "-d", "--name", "measured"],
    "vmm ps": ["vmm", "ps"],
    "vmm describe": ["vmm", "describe", "measured"],
    "vmm stop": ["vmm", "stop", "measured"],
    "vmm rm": ["vmm", "rm", "measured"],
    "eif --help": ["eif", "--help"],
    "nsm --help": ["nsm", "--help"],
    "vhost-user-vsock --help": ["vhost-user-vsock", "--help"],
}
"""In an order in which each finds what it needs."""
ENCLAVE_S = 600
"""How long the enclave that they are about would run, so that it never ends by itself."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took, without its children."""

    wall_s: float
    cpu_s: float


def cost(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command to its end.

    Raises:
        CalledProcessError: it failed.
    """
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began_s = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=quiet)
    _, status, used = os.wait4(pid, 0)
    wall_s = time.perf_counter() - began_s
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return Cost(wall_s, used.ru_utime + used.ru_stime)


def measure(runs: int) -> list[figures.Row]:
    """All commands in turns with Python alone.

    Raises:
        CalledProcessError: one failed, or the image cannot be built.
        DebianError: a package cannot be fetched.
        ImageError: there is no busybox, or no kernel.
    """
    ours: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    bare: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as scratch:
        image = bench_idle.build("nitro", ENCLAVE_S, Path(scratch))
        environment = os.environ | {"XDG_RUNTIME_DIR": scratch}
        try:
            for number in range(runs):
                say(f"  {number + 1}/{runs}")
                for name, (program, *arguments) in COMMANDS.items():
                    command = [images.command(program), *arguments]
                    if name == "vmm run -d":
                        command += [str(image), *images.EMULATED]
                    bare[name].append(cost([sys.executable, "-c", "pass"], environment))
                    ours[name].append(cost(command, environment))
        finally:
            stop = [images.command("vmm"), "stop", "--all"]  # it outlives a run that was broken off
            subprocess.run(stop, env=environment, stdout=subprocess.DEVNULL, check=False)
    return [
        figures.paired(
            name,
            "s",
            [one.wall_s for one in ours[name]],
            [one.wall_s for one in bare[name]],
            peer="a Python that does nothing",
            cpu_s=([one.cpu_s for one in ours[name]], [one.cpu_s for one in bare[name]]),
        )
        for name in COMMANDS
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure commands that start no guest of their own.",
        epilog="example: nox -s 'bench(commands)' -- --runs 20",
    )
    parser.add_argument("--runs", type=int, default=10, help="of each command (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    try:
        found = measure(options.runs)
    except images.ERRORS as error:
        return complain(error)
    except subprocess.CalledProcessError as error:
        say(f"error: {error}")
        return 1
    figures.report(found, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
