"""Measure what vsock does through the guest: ``python tools/bench_round_trips.py``.

Questions and answers of a byte, connections from either side, and bytes in both directions, in turns with
QEMU's microvm: with vhost-device-vsock, and with our vsock daemon. vhost-device-vsock knows no parent at CID
3, which an enclave's init must reach. So there the same program is the guest's first process and talks to
CID 2. Processor time counts the machine with all its threads, and the daemon where there is one. And the
enclave is asked for new attestation documents, which takes a trip to the security module as well; Debian's
QEMU has no such device to compare with.
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import figures
import guest_clock
import guest_traffic
import images
import vsock_peer
from bench_boot import QEMU, LaunchError, cpu_clock, qemu_command
from debian import say
from guest_clock import ClockError
from guest_traffic import GuestTraffic, TrafficError

MEMORY_MIB = 256
HEARTBEAT_PORT = 9000
QUESTIONS = 300
WARM_UP = 200
TURNS = 6
"""How often the machines, which run side by side, are measured in turns, because on a shared computer only
what was measured within the same second compares."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of traffic."""

    move: Callable[[GuestTraffic, int], None]
    count: int
    """How many are moved in one measurement."""


ROWS = {
    "round trips": Row(GuestTraffic.round_trips, 500),
    "guest connects": Row(GuestTraffic.guest_connects, 300),
    "host connects": Row(GuestTraffic.host_connects, 200),
    f"host connects, {guest_traffic.TOGETHER} at once": Row(GuestTraffic.host_connects_together, 400),
    "host connects and asks": Row(GuestTraffic.host_asks, 200),
    "MiB out": Row(GuestTraffic.mib_out, 64),
    "MiB out, 32 KiB writes": Row(GuestTraffic.mib_out_by_halves, 64),
    "MiB in": Row(GuestTraffic.mib_in, 64),
}
BEYOND_PEER = {"MiB out"}
"""Guests of vhost-device-vsock 0.3.0 cannot do this: it ends a connection that gets 64 KiB at once."""
DOCUMENTS = "documents"
ON_PEER, ON_OURS = f"QEMU, {vsock_peer.PACKAGE}", "QEMU, our daemon"
"""QEMU's microvm on one vsock daemon or the other."""

Figures = dict[str, list[dict[str, float]]]
"""For each row, what each round has measured: how many a second, and microseconds of processor for each."""


@contextmanager
def in_vmm(image: Path, *, vmm: str) -> Iterator[tuple[GuestTraffic, list[int]]]:
    """The enclave on our machine, and the processes that count."""
    with TemporaryDirectory() as scratch, closing(GuestTraffic(f"{scratch}/vsock")) as traffic:
        options = ["--memory-mib", str(MEMORY_MIB), "--vsock-path", f"{scratch}/vsock", "--quiet"]
        options += images.EMULATED
        with subprocess.Popen(
            [vmm, "run", str(image), *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as machine:
            try:
                traffic.accept()
                yield traffic, [machine.pid]
            finally:
                machine.terminate()


@contextmanager
def in_qemu(image: Path, *, qemu: str, daemon: str | None = None) -> Iterator[tuple[GuestTraffic, list[int]]]:
    """The same program in QEMU, and the processes that count.

    Args:
        image: what has it.
        qemu: the program.
        daemon: another vsock daemon than ours.

    Raises:
        LaunchError: the enclave does not connect.
        TrafficError: the program does not.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory())
        beats = stack.enter_context(socket.socket(socket.AF_UNIX))
        beats.bind(f"{scratch}/vsock_{HEARTBEAT_PORT}")
        beats.listen()
        beats.settimeout(guest_traffic.PATIENCE_S)
        traffic = stack.enter_context(closing(GuestTraffic(f"{scratch}/vsock")))
        first = "" if daemon is None else f" rdinit=/rootfs{guest_traffic.COMMAND}"
        command, daemon_pid = stack.enter_context(
            qemu_command(image, MEMORY_MIB, scratch, qemu, daemon=daemon, more_cmdline=first)
        )
        nothing = subprocess.DEVNULL
        machine = stack.enter_context(
            subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
        )
        stack.callback(machine.kill)
        if daemon is None:
            beat(beats)
        traffic.accept()
        yield traffic, [machine.pid, daemon_pid]


def beat(listener: socket.socket) -> None:
    """Answer an enclave's heartbeat, because its init waits for that.

    Raises:
        LaunchError: there is none.
    """
    try:
        stream, _ = listener.accept()
    except TimeoutError as error:
        raise LaunchError("the enclave in QEMU does not connect") from error
    with stream:
        stream.sendall(stream.recv(1))


def measure(move: Callable[[int], object], count: int, pids: list[int]) -> dict[str, float]:
    """One measurement."""
    used_s = sum(time.clock_gettime(cpu_clock(pid)) for pid in pids)
    began = time.perf_counter()
    move(count)
    took_s = time.perf_counter() - began
    used_s = sum(time.clock_gettime(cpu_clock(pid)) for pid in pids) - used_s
    return {"per second": count / took_s, "processor, us": 1e6 * used_s / count}


def measure_documents(image: Path) -> dict[str, float]:
    """Documents of the security module, as their receiver sees it.

    Raises:
        ClockError: the enclave does not answer.
    """
    with guest_clock.running(image, "--memory-mib", str(MEMORY_MIB)) as clock:
        took = []
        for _ in range(QUESTIONS):
            began = time.perf_counter()
            clock.attested()
            took.append(time.perf_counter() - began)
    return {"per second": 1 / statistics.median(took)}


def as_rows(measured: dict[str, Figures]) -> list[figures.Row]:
    """Each kind of traffic beside each other machine's; what only ours does comes last."""
    ours, *others = measured
    found = []
    for kind, turns in measured[ours].items():
        for other in [name for name in others if kind in measured[name]] or [""]:
            theirs = measured[other][kind] if other else []
            rates = [[one["per second"] for one in side] for side in (turns, theirs)]
            costs = [[1e-6 * one.get("processor, us", 0.0) for one in side] for side in (turns, theirs)]
            cpu_s = (costs[0], costs[1]) if any(costs[0]) else ((), ())
            found.append(figures.paired(kind, "/s", *rates, peer=other, less_is_better=False, cpu_s=cpu_s))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure vsock through an enclave, and trips on to its security module.",
        epilog="example: nox -s 'bench(round trips)' -- --runs 5",
    )
    parser.add_argument("--runs", type=int, default=3, help="boots of each machine (default: %(default)s)")
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument("--other", metavar="VMM", help="another version's vmm, to compare with as well")
    parser.add_argument("--only", choices=[*ROWS, DOCUMENTS], help="one row only")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    machines = {"vmm": partial(in_vmm, vmm=images.command("vmm"))}
    if options.other:
        machines["the other"] = partial(in_vmm, vmm=options.other)
    skipped = []
    if shutil.which(options.qemu):
        try:
            machines[ON_PEER] = partial(in_qemu, qemu=options.qemu, daemon=str(vsock_peer.fetch()))
        except vsock_peer.UnavailableError as error:
            skipped.append(str(error))
        machines[ON_OURS] = partial(in_qemu, qemu=options.qemu)
    else:
        skipped.append(f"QEMU: there is no program {options.qemu}")
    rows = {name: row for name, row in ROWS.items() if options.only in (None, name)}
    measured: dict[str, Figures] = {name: {} for name in machines}
    try:
        image = guest_traffic.build("nitro")
        clock_image = guest_clock.build("nitro")
        for number in range(options.runs):
            with ExitStack() as stack:
                enclaves = {}
                for name, machine in machines.items() if rows else ():
                    enclaves[name] = stack.enter_context(machine(image))
                    enclaves[name][0].round_trips(WARM_UP)
                for row, of in rows.items():
                    for _ in range(TURNS):
                        for name, (traffic, pids) in enclaves.items():
                            if name == ON_PEER and row in BEYOND_PEER:
                                continue
                            one = measure(partial(of.move, traffic), of.count, pids)
                            measured[name].setdefault(row, []).append(one)
            if options.only in (None, DOCUMENTS):
                measured["vmm"].setdefault(DOCUMENTS, []).append(measure_documents(clock_image))
            say(f"  {number + 1}/{options.runs}")
    except (ClockError, LaunchError, TrafficError, OSError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    figures.report(as_rows(measured), skipped, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
