"""Measure the launch, from the start of ``vmm run`` to the heartbeat: ``python tools/bench_boot.py``.

The heartbeat is taken by a socket of our own, as a parent program would, so that the machine's own word is
not what is measured. Processor time counts all threads of the process. Where QEMU is installed, its microvm
boots the same image in turns with ours, without KVM and with vsock from our daemon, which is not counted; the
ratio of the two says more than seconds on a machine where other programs run, too.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import images
from debian import say
from nitro_eif import Contents, Eif, write_eif
from nitro_vmm.testing import tiny_kernel

HEARTBEAT_PORT = 9000
TIMEOUT_S = 120.0
QEMU = "qemu-system-x86_64"
QUIET_CMDLINE = "reboot=k panic=30 pci=off console=ttyS0 random.trust_cpu=on quiet"


@dataclass(frozen=True, slots=True)
class Launch:
    """One run."""

    wall_s: float
    cpu_s: float
    rss_mib: float


SAVED = {"kernel": ["--kernel"], "image": []}
"""Which machines are saved, and the options of ``vmm snapshot`` that do it."""


class LaunchError(Exception):
    """The enclave sent no heartbeat; the message has what the machine said."""


def cpu_clock(pid: int) -> int:
    """The clock of another process's processor time (clock_getcpuclockid(3))."""
    return (~pid << 3) | 2


def resident_mib(pid: int) -> float:
    """The most memory that a process has had, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def launch(command: list[str], directory: Path) -> Launch:
    """Run a machine to its end; what is measured is up to its heartbeat.

    Args:
        command: starts the machine, with the prefix ``directory/vsock`` for its parent's sockets.
        directory: a new one for each run.

    Raises:
        LaunchError: there was none.
    """
    path = Path(f"{directory}/vsock_{HEARTBEAT_PORT}")
    with socket.socket(socket.AF_UNIX) as listener, (directory / "console").open("w+") as console:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(TIMEOUT_S)
        started = time.monotonic()
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
            except (OSError, subprocess.TimeoutExpired) as error:
                machine.kill()
                console.seek(0)
                raise LaunchError(f"no heartbeat: {error}\n{console.read()[-4000:]}") from error
        if byte != b"\xb7" or machine.returncode != 0:
            console.seek(0)
            raise LaunchError(f"exit code {machine.returncode}, heartbeat {byte!r}\n{console.read()[-4000:]}")
    return measured


def launch_ours(image: Path, memory_mib: int, *more: str) -> Launch:
    """One run of ``vmm run``.

    Args:
        image: what.
        memory_mib: its memory.
        more: other options.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--memory-mib", str(memory_mib), "--vsock-path", f"{scratch}/vsock", *more]
        return launch([images.command("vmm"), "run", "--console", str(image), *options], Path(scratch))


def launch_saved(path: Path, image: Path, memory_mib: int) -> Launch:
    """One run that goes on from a saved machine.

    Raises:
        LaunchError: there was no heartbeat.
    """
    return launch_ours(image, memory_mib, "--from", str(path))


def save(image: Path, memory_mib: int, path: Path, *more: str) -> None:
    """Save a machine of an image.

    Raises:
        LaunchError: it cannot be saved.
    """
    options = ["-o", str(path), "--memory-mib", str(memory_mib), "--quiet", *more]
    if subprocess.run([images.command("vmm"), "snapshot", str(image), *options], check=False).returncode:
        raise LaunchError("the machine cannot be saved, see the message above")


def launch_qemu(image: Path, memory_mib: int, *, qemu: str = QEMU) -> Launch:
    """One run of QEMU's microvm.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        qemu_command(image, memory_mib, scratch, qemu) as (command, _),
    ):
        return launch(command, Path(scratch))


@contextmanager
def qemu_command(image: Path, memory_mib: int, scratch: str, qemu: str) -> Iterator[tuple[list[str], int]]:
    """What starts QEMU's microvm, which its machine ``nitro-enclave`` is made of, and our vsock daemon's pid.

    Raises:
        LaunchError: the daemon does not start.
    """
    with Eif.open(image) as eif:
        initrd, kernel = Path(scratch, "initrd"), Path(scratch, "kernel")
        initrd.write_bytes(b"".join(eif.ramdisks))
        kernel.write_bytes(eif.kernel)
        # It has no keyboard controller to reset it; a triple fault ends it.
        cmdline = bytes(eif.cmdline).decode().replace("reboot=k", "reboot=t")
        socket_path = f"{scratch}/vhost"
        vsock = f"--vm=guest-cid=16,socket={socket_path},uds-path={scratch}/vsock"
        with subprocess.Popen([images.command("vhost-user-vsock"), vsock, "--log-level=error"]) as daemon:
            try:
                while not Path(socket_path).exists():
                    if daemon.poll() is not None:
                        raise LaunchError("the vsock daemon did not start, see its message above")
                    time.sleep(0.01)
                command = [
                    *(qemu, "-M", "microvm,acpi=off,memory-backend=memory", "-accel", "tcg", "-no-reboot"),
                    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
                    *("-global", "virtio-mmio.force-legacy=off", "-m", str(memory_mib)),
                    *("-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
                    *("-chardev", f"socket,id=vhost,path={socket_path}"),
                    *("-device", "vhost-user-vsock-device,chardev=vhost"),
                    *("-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline),
                ]
                yield command, daemon.pid
            finally:
                daemon.terminate()


def first_instruction(image: Path, memory_mib: int) -> Launch:
    """One run of ``vmm run`` with a kernel that says one letter; what is measured is up to that.

    All but the kernel is as in ``image``. The rest of a launch is the guest's part, and the unpacking of the
    real kernel.

    Raises:
        LaunchError: there was no letter.
    """
    code = bytes.fromhex("66baf803 b053 ee 66ba0206 b001 ee f4")  # the console; then a reset
    with tempfile.TemporaryDirectory() as scratch, Eif.open(image) as eif:
        ramdisks = [bytes(ramdisk) for ramdisk in eif.ramdisks]
        contents = Contents(
            kernel=tiny_kernel(code),
            cmdline=bytes(eif.cmdline),
            ramdisks=ramdisks,
            metadata=bytes(eif.metadata or b""),
        )
        write_eif(contents, Path(scratch, "letter.eif"))
        command = [
            images.command("vmm"),
            "run",
            "--console",
            f"{scratch}/letter.eif",
            "--memory-mib",
            str(memory_mib),
        ]
        command += ["--vsock-path", f"{scratch}/vsock"]
        started = time.monotonic()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as machine:
            assert machine.stdout is not None  # noqa: S101 - it is a pipe
            letter = machine.stdout.read(1)
            wall_s, cpu_s = time.monotonic() - started, time.clock_gettime(cpu_clock(machine.pid))
    if letter != b"S":
        raise LaunchError("the kernel of one letter did not say it")
    return Launch(wall_s, cpu_s, 0)


def medians(launches: list[Launch]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(getattr(one, name) for one in launches) for name in Launch.__slots__}


def guest_part(launches: dict[str, list[Launch]]) -> dict[str, float]:
    """What of our launch is the guest's, as a share of QEMU's whole launch: medians of the rounds' ratios."""
    if "qemu" not in launches:
        return {}
    ours, first, qemu = launches["vmm"], launches["vmm, to the first instruction"], launches["qemu"]
    return {
        what: statistics.median(
            (getattr(one, name) - getattr(two, name)) / getattr(three, name)
            for one, two, three in zip(ours, first, qemu, strict=True)
        )
        for what, name in (("wall clock", "wall_s"), ("processor", "cpu_s"))
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure the time from the launch of an enclave to its heartbeat.",
        epilog="example: nox -s bench -- --runs 5 --json",
    )
    parser.add_argument("--runs", type=int, default=10, help="per image (default: %(default)s)")
    parser.add_argument("--kernel", choices=images.KERNELS, default="nitro", help="default: %(default)s")
    parser.add_argument("--image", type=Path, help="an image to launch instead of the hello image")
    parser.add_argument("--memory-mib", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="add quiet to the kernel's command line")
    parser.add_argument(
        "--saved",
        action="store_true",
        help="launch from saved machines as well, the kernel's and the image's",
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    machines: dict[str, Callable[[Path, int], Launch]] = {
        "vmm": launch_ours,
        "vmm, to the first instruction": first_instruction,
    }
    saved = tempfile.TemporaryDirectory()
    for kind in SAVED if options.saved else ():
        machines[f"vmm, {kind} saved"] = partial(launch_saved, Path(saved.name, kind))
    if options.kernel == "nitro" and shutil.which(options.qemu):
        machines["qemu"] = partial(launch_qemu, qemu=options.qemu)
    launches: dict[str, list[Launch]] = {name: [] for name in machines}
    try:
        cmdline = ["--cmdline", QUIET_CMDLINE] if options.quiet else []
        image = options.image or images.hello(options.kernel, *cmdline)
        for kind, more in SAVED.items() if options.saved else ():
            save(image, options.memory_mib, Path(saved.name, kind), *more)
        for number in range(options.runs):
            for name, machine in machines.items():
                one = machine(image, options.memory_mib)
                launches[name].append(one)
                say(f"  {number + 1}/{options.runs} {name}: {one.wall_s:.2f} s, processor {one.cpu_s:.2f} s")
    except (LaunchError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    if options.json:
        report = {
            name: {"median": medians(runs), "runs": [asdict(one) for one in runs]}
            for name, runs in launches.items()
        }
        ratios = guest_part(launches)
        print(json.dumps({"image": image.name, "launches": report, "guest's part": ratios}, indent=2))
    else:
        print(f"{image.name}: launch to heartbeat, medians of {options.runs} runs")
        for name, runs in launches.items():
            of = medians(runs)
            print(f"  {name}: {of['wall_s']:.2f} s, processor {of['cpu_s']:.2f} s, {of['rss_mib']:.0f} MiB")
        for which, ratio in guest_part(launches).items():
            print(f"  the guest's part to QEMU's whole launch, {which}: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
