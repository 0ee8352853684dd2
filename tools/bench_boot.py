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
from dataclasses import asdict, dataclass
from pathlib import Path

import images
from debian import say
from nitro_eif import Eif

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


def launch_ours(image: Path, memory_mib: int) -> Launch:
    """One run of ``vmm run``.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--memory-mib", str(memory_mib), "--vsock-path", f"{scratch}/vsock"]
        return launch([images.command("vmm"), "run", str(image), *options], Path(scratch))


def launch_qemu(image: Path, memory_mib: int) -> Launch:
    """One run of QEMU's microvm, which its machine ``nitro-enclave`` is made of.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with tempfile.TemporaryDirectory() as scratch, Eif.open(image) as eif:
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
                machine = [
                    *(QEMU, "-M", "microvm,acpi=off,memory-backend=memory", "-accel", "tcg", "-no-reboot"),
                    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
                    *("-global", "virtio-mmio.force-legacy=off", "-m", str(memory_mib)),
                    *("-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
                    *("-chardev", f"socket,id=vhost,path={socket_path}"),
                    *("-device", "vhost-user-vsock-device,chardev=vhost"),
                    *("-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline),
                ]
                return launch(machine, Path(scratch))
            finally:
                daemon.terminate()


def medians(launches: list[Launch]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(getattr(one, name) for one in launches) for name in Launch.__slots__}


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
    parser.add_argument("--quiet", action="store_true", help="add quiet to the kernel's command line")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    machines = {"vmm": launch_ours}
    if options.kernel == "nitro" and shutil.which(QEMU):
        machines["qemu"] = launch_qemu
    launches: dict[str, list[Launch]] = {name: [] for name in machines}
    try:
        cmdline = ["--cmdline", QUIET_CMDLINE] if options.quiet else []
        image = options.image or images.hello(options.kernel, *cmdline)
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
        print(json.dumps({"image": image.name, "launches": report}, indent=2))
    else:
        print(f"{image.name}: launch to heartbeat, medians of {options.runs} runs")
        for name, runs in launches.items():
            of = medians(runs)
            print(f"  {name}: {of['wall_s']:.2f} s, processor {of['cpu_s']:.2f} s, {of['rss_mib']:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
