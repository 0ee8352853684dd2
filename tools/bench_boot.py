"""Measure the launch, from the start of ``vmm run`` to the heartbeat: ``python tools/bench_boot.py``.

The heartbeat is taken by a socket of our own, as a parent program would, so that the machine's own word is
not what is measured. Processor time counts all threads of the process. Where QEMU is installed, its microvm
boots the same image in turns with ours, without KVM and with vsock from our daemon, which is not counted; so
does a QEMU with the machine ``nitro-enclave``, if one is given. The ratio of the two says more than seconds
on a machine where other programs run, too.
"""

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import figures
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
    guest_s: float | None = None
    """Of the wall clock, what passed while the guest ran; only ours says it."""


SAVED = {"kernel": ["--kernel"], "image": []}
"""Which machines are saved, and the options of ``vmm snapshot`` that do it."""
COLD, MICROVM, NITRO = "cold", "QEMU microvm", "QEMU nitro-enclave"
"""Machines that are launched, besides those of `SAVED`."""


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
        timeline = Path(scratch, "timeline.json")
        options = ["--memory-mib", str(memory_mib), "--vsock-path", f"{scratch}/vsock", *more]
        options += ["--timeline", str(timeline), "--console", *images.EMULATED]
        one = launch([images.command("vmm"), "run", str(image), *options], Path(scratch))
        moments = {moment["name"]: moment["at_s"] for moment in json.loads(timeline.read_text())["moments"]}
    return replace(one, guest_s=moments["heartbeat"] - moments["guest starts"])


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
    options = ["-o", str(path), "--memory-mib", str(memory_mib), "--quiet", *images.EMULATED, *more]
    if subprocess.run([images.command("vmm"), "snapshot", str(image), *options], check=False).returncode:
        raise LaunchError("the machine cannot be saved, see the message above")


def launch_qemu(image: Path, memory_mib: int, *, qemu: str = QEMU, acpi: bool = False) -> Launch:
    """One run of QEMU's microvm.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        qemu_command(image, memory_mib, scratch, qemu, acpi=acpi) as (command, _),
    ):
        return launch(command, Path(scratch))


def launch_nitro(image: Path, memory_mib: int, *, qemu: str) -> Launch:
    """One run of QEMU's machine ``nitro-enclave``, which reads the image itself.

    Raises:
        LaunchError: there was no heartbeat.
    """
    with tempfile.TemporaryDirectory() as scratch, vsock_daemon(scratch) as (socket_path, _):
        command = [
            *(qemu, "-M", "nitro-enclave,vsock=vhost", "-accel", "tcg", "-no-reboot"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            *("-chardev", f"socket,id=vhost,path={socket_path}", "-m", str(memory_mib)),
            # It has no keyboard controller either, and adds this to the image's own command line.
            *("-kernel", str(image), "-append", "reboot=t"),
        ]
        return launch(command, Path(scratch))


def lacks_nitro(qemu: str) -> str:
    """Why a QEMU has no machine ``nitro-enclave``; empty if it has."""
    if shutil.which(qemu) is None:
        return f"there is no program {qemu}"
    machines = subprocess.run([qemu, "-M", "help"], capture_output=True, text=True, check=False).stdout
    if "nitro-enclave" in machines:
        return ""
    return f"{qemu} has no machine nitro-enclave; QEMU 9.2 and later have it if built with libcbor and gnutls"


@contextmanager
def vsock_daemon(scratch: str, program: str | None = None) -> Iterator[tuple[str, int]]:
    """A vsock daemon for one guest of QEMU: its socket and its pid.

    Args:
        scratch: a directory for its sockets.
        program: another one than ours, which takes the same options.

    Raises:
        LaunchError: it does not start.
    """
    socket_path = f"{scratch}/vhost"
    vsock = f"--vm=guest-cid=16,socket={socket_path},uds-path={scratch}/vsock"
    ours = [images.command("vhost-user-vsock"), "--log-level=error"]
    with subprocess.Popen([*([program] if program else ours), vsock]) as daemon:
        try:
            while not Path(socket_path).exists():
                if daemon.poll() is not None:
                    raise LaunchError("the vsock daemon did not start, see its message above")
                time.sleep(0.01)
            yield socket_path, daemon.pid
        finally:
            daemon.terminate()


def counter_khz() -> int:
    """How fast this machine's processor says that it counts; QEMU hands the counter on."""
    (mhz,) = re.findall(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    return int(float(mhz) * 1000)


@contextmanager
def qemu_command(
    image: Path,
    memory_mib: int,
    scratch: str,
    qemu: str,
    *,
    acpi: bool = False,
    daemon: str | None = None,
    more_cmdline: str = "",
) -> Iterator[tuple[list[str], int]]:
    """What starts QEMU's microvm, which its machine ``nitro-enclave`` is made of, and its vsock daemon's pid.

    Args:
        image: what it boots.
        memory_mib: its memory.
        scratch: a directory for sockets and files.
        qemu: the program.
        acpi: whether devices are told by ACPI, as a distribution's kernel wants it, not by the command line.
        daemon: another vsock daemon than ours.
        more_cmdline: for the kernel's command line.

    Raises:
        LaunchError: the daemon does not start.
    """
    with Eif.open(image) as eif:
        initrd, kernel = Path(scratch, "initrd"), Path(scratch, "kernel")
        initrd.write_bytes(b"".join(eif.ramdisks))
        kernel.write_bytes(eif.kernel)
        # It has no keyboard controller to reset it; a triple fault ends it.
        cmdline = bytes(eif.cmdline).decode().replace("reboot=k", "reboot=t") + more_cmdline
    legacy = "acpi=off"
    if acpi:
        legacy = "acpi=on,pit=on,pic=on,rtc=on"
        # On a busy machine the kernel cannot tell how fast the processor's counter is, and hangs.
        cmdline += f" tsc_early_khz={counter_khz()}"
    with vsock_daemon(scratch, daemon) as (socket_path, daemon_pid):
        command = [
            *(qemu, "-M", f"microvm,{legacy},memory-backend=memory", "-accel", "tcg", "-no-reboot"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            *("-global", "virtio-mmio.force-legacy=off", "-m", str(memory_mib)),
            *("-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
            *("-chardev", f"socket,id=vhost,path={socket_path}"),
            *("-device", "vhost-user-vsock-device,chardev=vhost"),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", cmdline),
        ]
        yield command, daemon_pid


def rows(kernel: str, launches: dict[str, list[Launch]]) -> list[figures.Row]:
    """What all runs of one image say: each of our machines beside each of QEMU's, and our guest's part.

    Args:
        kernel: what the rows are called by.
        launches: all runs of each machine; those of QEMU are called `MICROVM` and `NITRO`.
    """
    peers = [name for name in (MICROVM, NITRO) if name in launches] or [""]
    found = []
    for peer in peers:
        theirs = launches.get(peer, [])
        for name, ours in launches.items():
            if name in (MICROVM, NITRO):
                continue
            found.append(
                figures.paired(
                    f"launch to heartbeat, {kernel}, {name}",
                    "s",
                    [one.wall_s for one in ours],
                    [one.wall_s for one in theirs],
                    peer=peer,
                    cpu_s=([one.cpu_s for one in ours], [one.cpu_s for one in theirs]),
                )
            )
        found.append(
            figures.paired(
                f"the guest's part of it, {kernel}, cold",
                "s",
                [one.guest_s for one in launches[COLD] if one.guest_s is not None],
                [one.wall_s for one in theirs],
                peer=f"{peer}'s whole",
            )
        )
    found.append(
        figures.paired(
            f"memory at the heartbeat, {kernel}",
            "MiB",
            [one.rss_mib for one in launches[COLD]],
            [one.rss_mib for one in launches.get(peers[0], [])],
            peer=peers[0],
        )
    )
    return found


def measure(kernel: str, image: Path, options: argparse.Namespace, nitro: str | None) -> list[figures.Row]:
    """Run all machines in turns with one image.

    Args:
        kernel: what the rows are called by, and, if it is one of `images.KERNELS`, how QEMU tells of devices.
        image: what is launched.
        options: of the command line.
        nitro: a QEMU that has the machine ``nitro-enclave``.

    Raises:
        LaunchError: there was no heartbeat, or a machine cannot be saved.
    """
    machines: dict[str, Callable[[Path, int], Launch]] = {COLD: launch_ours}
    with tempfile.TemporaryDirectory() as saved:
        for kind, more in SAVED.items() if options.saved else ():
            save(image, options.memory_mib, Path(saved, kind), *more)
            machines[f"{kind} saved"] = partial(launch_saved, Path(saved, kind))
        if shutil.which(options.qemu):
            machines[MICROVM] = partial(launch_qemu, qemu=options.qemu, acpi=kernel == "debian")
        if nitro is not None and kernel != "debian":
            machines[NITRO] = partial(launch_nitro, qemu=nitro)
        launches: dict[str, list[Launch]] = {name: [] for name in machines}
        for number in range(options.runs):
            for name, machine in machines.items():
                one = machine(image, options.memory_mib)
                launches[name].append(one)
                say(
                    f"  {kernel} {number + 1}/{options.runs} {name}: {one.wall_s:.2f} s,"
                    f" processor {one.cpu_s:.2f} s"
                )
    return rows(kernel, launches)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure the time from the launch of an enclave to its heartbeat.",
        epilog="example: nox -s 'bench(launch)' -- --runs 5 --saved",
    )
    parser.add_argument("--runs", type=int, default=10, help="per image (default: %(default)s)")
    parser.add_argument("--kernel", choices=images.KERNELS, help="default: all, one after the other")
    parser.add_argument("--image", type=Path, help="an image to launch instead of the hello images")
    parser.add_argument("--memory-mib", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument(
        "--nitro-qemu",
        metavar="COMMAND",
        help="a QEMU with the machine nitro-enclave, to compare with as well",
    )
    parser.add_argument("--quiet", action="store_true", help="add quiet to the kernel's command line")
    parser.add_argument(
        "--saved",
        action="store_true",
        help="launch from saved machines as well, the kernel's and the image's",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    skipped, nitro, found = [], options.nitro_qemu, []
    if not shutil.which(options.qemu):
        skipped.append(f"{MICROVM}: there is no program {options.qemu}")
    if nitro is None:
        skipped.append(f"{NITRO}: no program is given; --nitro-qemu names one")
    elif reason := lacks_nitro(nitro):
        skipped.append(f"{NITRO}: {reason}")
        nitro = None
    cmdline = ["--cmdline", QUIET_CMDLINE] if options.quiet else []
    try:
        if options.image is not None:
            found = measure(options.image.name, options.image, options, nitro)
        else:
            for kernel in [options.kernel] if options.kernel else images.KERNELS:
                found += measure(kernel, images.hello(kernel, *cmdline), options, nitro)
    except (LaunchError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    figures.report(found, skipped, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
