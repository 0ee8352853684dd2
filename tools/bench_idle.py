"""Measure what an enclave costs that waits: ``python tools/bench_idle.py``.

The application sleeps. What counts is the whole machine's processor time between two words that it prints,
and the memory that the machine's process holds at the first of them. QEMU's microvm does the same in turns,
with vsock from our daemon, which is not counted.
"""

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import figures
import images
from bench_boot import HEARTBEAT_PORT, MICROVM, QEMU, TIMEOUT_S, LaunchError, cpu_clock, qemu_command
from debian import complain, say

SETTLE_S = 3  # the kernel has work of its own for some time after it has started the init
MEMORY_MIB = 512


class IdleError(Exception):
    """The enclave did not come to its end; the message has its exit code."""


@dataclass(frozen=True, slots=True)
class Idle:
    """One enclave that slept."""

    share: float
    """Of one processor."""
    rss_mib: float
    """What its process held, with the guest's memory."""


def build(kernel: str, seconds: int, directory: Path) -> Path:
    """The image of an enclave that sleeps.

    Raises:
        ImageError: there is no busybox, or no kernel.
        CalledProcessError: it cannot be built; ``eif`` has said why.
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
    image = directory / "idle.eif"
    options = ["--rootfs", str(programs.parent), "--cmd", "/bin/wait", *images.kernel_options(kernel)]
    command = [images.command("eif"), "build", *options, "--output", str(image)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image


@contextmanager
def parent(scratch: str) -> Iterator[None]:
    """Answers the heartbeat of one enclave, whenever it comes."""

    def answer() -> None:
        try:
            stream, _ = listener.accept()
            with stream:
                stream.sendall(stream.recv(1))
        except OSError:
            pass  # It does not come; the enclave's exit code then says more.

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{scratch}/vsock_{HEARTBEAT_PORT}")
        listener.listen()
        listener.settimeout(TIMEOUT_S)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def watch(command: list[str], seconds: int) -> Idle:
    """Run an enclave that sleeps to its end.

    Raises:
        IdleError: it did not end well.
    """
    used_s: dict[str, float] = {}
    rss_mib, said = 0.0, ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout is not None  # noqa: S101 - it is a pipe
        for line in machine.stdout:
            said += line
            if (word := line.strip()) in ("asleep", "awake"):
                used_s[word] = time.clock_gettime(cpu_clock(machine.pid))
            if word == "asleep":
                rss_mib = resident_mib(machine.pid)
    if machine.returncode or len(used_s) != 2:
        code, words = machine.returncode, sorted(used_s)
        raise IdleError(f"the enclave ended with exit code {code} and said {words}\n{said[-2000:]}")
    return Idle((used_s["awake"] - used_s["asleep"]) / seconds, rss_mib)


def resident_mib(pid: int) -> float:
    """The memory that a process holds now, from /proc."""
    found = re.search(r"^VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def idle(image: Path, seconds: int, qemu: str | None, *, acpi: bool) -> Idle:
    """One enclave, in QEMU if it is given.

    Raises:
        IdleError: it did not end well.
        LaunchError: the vsock daemon does not start.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(parent(scratch))
        if qemu is not None:
            command, _ = stack.enter_context(qemu_command(image, MEMORY_MIB, scratch, qemu, acpi=acpi))
        else:
            command = [images.command("vmm"), "run", str(image), "--console", "--quiet", *images.EMULATED]
            command += ["--memory-mib", str(MEMORY_MIB), "--vsock-path", f"{scratch}/vsock"]
        return watch(command, seconds)


def measure(kernel: str, options: argparse.Namespace) -> list[figures.Row]:
    """Both machines in turns.

    Raises:
        IdleError: an enclave did not end well.
    """
    ours: list[Idle] = []
    theirs: list[Idle] = []
    with tempfile.TemporaryDirectory() as scratch:
        image = build(kernel, options.seconds, Path(scratch))
        for number in range(options.runs):
            say(f"  {kernel} {number + 1}/{options.runs}")
            ours.append(idle(image, options.seconds, None, acpi=False))
            if shutil.which(options.qemu):
                theirs.append(idle(image, options.seconds, options.qemu, acpi=kernel == "debian"))
    shares = [[100 * one.share for one in runs] for runs in (ours, theirs)]
    sizes = [[one.rss_mib for one in runs] for runs in (ours, theirs)]
    return [
        figures.paired(f"processor while waiting, {kernel}", "%", *shares, peer=MICROVM),
        figures.paired(f"memory while waiting, {kernel}", "MiB", *sizes, peer=MICROVM),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure processor time and memory of an enclave that sleeps.",
        epilog="example: nox -s 'bench(idle)' -- --kernel nitro --seconds 60",
    )
    parser.add_argument("--runs", type=int, default=3, help="per kernel (default: %(default)s)")
    parser.add_argument("--kernel", choices=images.KERNELS, help="default: both")
    parser.add_argument("--seconds", type=int, default=20, help="how long it sleeps (default: %(default)s)")
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    found = []
    for kernel in [options.kernel] if options.kernel else images.KERNELS:
        try:
            found += measure(kernel, options)
        except images.ERRORS as error:
            return complain(error)
        except (IdleError, LaunchError, subprocess.CalledProcessError) as error:
            say(f"error: {error}")
            return 1
    skipped = [] if shutil.which(options.qemu) else [f"{MICROVM}: there is no program {options.qemu}"]
    figures.report(found, skipped, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
