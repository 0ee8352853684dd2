"""Compare this package's daemon with vhost-device-vsock: throughput, latency, connections, memory, idle CPU.

    python packages/vsock/bench/compare.py [--runs 5] [--seconds 1.0] [--only tx64k-1,rr] [--json]

Both daemons get the same guest and the same host programs (load.c), in turns, each run on a fresh process;
what is reported is the median of the ratios of each pair. Exit code 4 without peer or compiler.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nitro_vsock import F_EVENT_IDX, F_VERSION_1, HostError, QueueLayout
from nitro_vsock.vhost_user import FrontendSocket, SharedRegion, SharedRing

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[2] / "tools"))

import vsock_peer  # noqa: E402

MEMORY_BYTES = 64 << 20
RING_STRIDE, AVAILABLE, USED = 0x10000, 0x2000, 0x4000  # as in load.c
FEATURES = F_VERSION_1 | F_EVENT_IDX
FIRST_CID = 16
EXIT_UNAVAILABLE = 4
PEER = vsock_peer.PACKAGE
KIB = 1024


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    mode: str
    size: int = 0
    connections: int = 1
    rx_buffer: int = 4096
    wanted: float = 1.0
    """The ratio that ours must reach."""


CASES = {
    "tx64k-1": Case("tx", 64 * KIB, wanted=2.0),
    "tx4k-1": Case("tx", 4 * KIB, wanted=2.0),
    "rx64k-1": Case("rx", 64 * KIB, wanted=2.0),
    "rx4k-1": Case("rx", 4 * KIB, wanted=2.0),
    "tx64k-8": Case("tx", 64 * KIB, 8, wanted=1.5),
    "tx4k-8": Case("tx", 4 * KIB, 8, wanted=1.5),
    "rx64k-8": Case("rx", 64 * KIB, 8, wanted=1.5),
    "rx4k-8": Case("rx", 4 * KIB, 8, wanted=1.5),
    "rr": Case("rr", 64),
    "conn-guest": Case("conn-guest"),
    "conn-guest-16": Case("conn-guest", 0, 16),
    "conn-host": Case("conn-host"),
    "sibling64k-1": Case("sibling-tx", 64 * KIB),
    "sibling4k-1": Case("sibling-tx", 4 * KIB),
    "sibling64k-8": Case("sibling-tx", 64 * KIB, 8),
    "sibling-rr": Case("sibling-rr", 64),
}
SERVERS = {"sibling-tx": "sibling-sink", "sibling-rr": "sibling-echo"}
"""What the second guest does in a case with two."""
KINDS = {
    "tx": "guest to host",
    "rx": "host to guest",
    "rr": "round trips",
    "conn-guest": "the guest connects",
    "conn-host": "the host connects",
    "sibling-tx": "guest to guest",
    "sibling-rr": "round trips between guests",
}
"""What the rows are called by."""
IDLE_CONNECTIONS = 1000

Found = dict[str, float]
"""Medians; what is per second is bytes for tx and rx, else round trips or connections."""


@contextlib.contextmanager
def daemon(command: list[str], directory: Path, guests: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A back-end that listens at ``vhost16`` in ``directory``, and so on, stopped at the end."""
    control = directory / f"vhost{FIRST_CID + guests - 1}"
    if guests == 1:
        options = [f"--guest-cid={FIRST_CID}", f"--socket={control}", f"--uds-path={directory / 'vsock'}"]
    else:
        options = [
            f"--vm=guest-cid={cid},socket={directory / f'vhost{cid}'},uds-path={directory / f'vsock{cid}'}"
            for cid in range(FIRST_CID, FIRST_CID + guests)
        ]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(1000):
            if control.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        else:
            raise SystemExit(f"{command[0]} does not listen")
        yield process
    finally:
        process.terminate()
        _, story = process.communicate()
        if process.returncode not in {0, -15}:
            sys.stderr.write(story.decode(errors="replace"))


def connect(path: Path) -> FrontendSocket:
    """A connection with the back-end, which may have made its socket and not listen yet."""
    for _ in range(100):
        with contextlib.suppress(HostError):
            return FrontendSocket.connect(path)
        time.sleep(0.01)
    return FrontendSocket.connect(path)


@contextlib.contextmanager
def load(
    program: Path, directory: Path, case: Case, seconds: float, cid: int = FIRST_CID
) -> Iterator[subprocess.Popen[str]]:
    """A guest on the back-end in ``directory``, and its load."""
    with contextlib.ExitStack() as stack:
        memory = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        stack.callback(os.close, memory)
        os.ftruncate(memory, MEMORY_BYTES)
        rings = []
        for index in range(2):
            place = index * RING_STRIDE
            kick, call = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
            stack.callback(os.close, kick)
            stack.callback(os.close, call)
            rings.append(SharedRing(QueueLayout(128, place, place + AVAILABLE, place + USED), kick, call))
        frontend = stack.enter_context(connect(directory / f"vhost{cid}"))
        frontend.start(FEATURES, [SharedRegion(0, MEMORY_BYTES, memory)], rings)
        descriptors = [memory, *(fd for ring in rings for fd in (ring.kick, ring.call))]
        process = subprocess.Popen(
            [
                program,
                *map(str, descriptors),
                directory / "vsock",
                case.mode,
                *map(str, (case.size, case.connections, seconds, case.rx_buffer)),
            ],
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.communicate()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_kib(pid: int) -> int:
    """Anonymous memory of a process: what it has for itself, without its code and guest memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1])
    raise SystemExit("the kernel does not tell the memory of a process")


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def wait_until_idle(guest: subprocess.Popen[str]) -> None:
    """Until the load generator has its connections."""
    if guest.stdout is None or not guest.stdout.readline():
        raise SystemExit("the load generator failed")


def rate(command: list[str], program: Path, case: Case, seconds: float) -> tuple[float, float]:
    """Bytes or events per second, and the back-end's CPU seconds for each million of them; 0: it stalled."""
    server = SERVERS.get(case.mode)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        process = stack.enter_context(daemon(command, Path(name), 1 if server is None else 2))
        if server is not None:
            other = Case(server, case.size, case.connections, case.rx_buffer)
            wait_until_idle(stack.enter_context(load(program, Path(name), other, 0, FIRST_CID + 1)))
        time.sleep(0.05)
        before = cpu_seconds(process.pid)
        with load(program, Path(name), case, seconds) as guest:
            output, _ = guest.communicate(timeout=60)
        after = cpu_seconds(process.pid)
    if guest.returncode:
        return 0.0, 0.0
    result = json.loads(output)
    amount = result["bytes"] if case.mode in {"tx", "rx", "sibling-tx"} else result["events"]
    if result["stalled"] or not amount:
        return 0.0, 0.0
    return amount / result["seconds"], (after - before) / amount * 1e6


def memory(command: list[str], program: Path) -> dict[str, float]:
    """Cost of idle connections: KiB and descriptors for each, and CPU per second."""
    with tempfile.TemporaryDirectory() as name, daemon(command, Path(name)) as process:
        with load(program, Path(name), Case("idle"), 0) as guest:
            wait_until_idle(guest)
            empty, empty_fds = anonymous_kib(process.pid), descriptors(process.pid)
        time.sleep(0.3)
        with load(program, Path(name), Case("idle", 0, IDLE_CONNECTIONS), 0) as guest:
            wait_until_idle(guest)
            full, full_fds = anonymous_kib(process.pid), descriptors(process.pid)
            before = cpu_seconds(process.pid)
            time.sleep(2)
            idle = (cpu_seconds(process.pid) - before) / 2
    return {
        "kib_per_connection": (full - empty) / (IDLE_CONNECTIONS - 1),
        "descriptors_per_connection": (full_fds - empty_fds) / (IDLE_CONNECTIONS - 1),
        "idle_cpu": idle,
        "anonymous_kib": full,
    }


def compile_load(directory: Path) -> Path:
    """Compile load.c.

    Raises:
        vsock_peer.UnavailableError: There is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise vsock_peer.UnavailableError("no C compiler (cc) for the load generator")
    program = directory / "load"
    subprocess.run([compiler, "-O2", "-pthread", "-o", program, HERE / "load.c"], check=True)
    return program


def compare(
    ours: list[str], theirs: list[str], program: Path, case: Case, arguments: argparse.Namespace
) -> Found:
    """One row: pairs of runs, in turns."""
    pairs = []
    for number in range(arguments.runs):
        order = [ours, theirs] if number % 2 else [theirs, ours]
        results = {id(command): rate(command, program, case, arguments.seconds) for command in order}
        pairs.append((results[id(ours)], results[id(theirs)]))
    ratios = [mine[0] / other[0] if other[0] else float("inf") for mine, other in pairs]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "wanted": case.wanted,
        "ours_lowest": min(mine[0] for mine, _ in pairs),
        "ours_highest": max(mine[0] for mine, _ in pairs),
        "ours_per_s": statistics.median(mine[0] for mine, _ in pairs),
        "theirs_per_s": statistics.median(other[0] for _, other in pairs),
        "ours_cpu_s_per_million": statistics.median(mine[1] for mine, _ in pairs),
        "theirs_cpu_s_per_million": statistics.median(other[1] for _, other in pairs),
    }


def row(case: Case, found: Found, runs: int) -> dict[str, object]:
    """What was found, as the other benchmarks of this project say it; processor time is of a million."""
    bytes_moved = case.mode in {"tx", "rx", "sibling-tx"}
    size = f", {case.size >> 10} KiB each" if bytes_moved else ""
    at_once = f", {case.connections} at once" if case.connections > 1 else ""
    return {
        "name": KINDS[case.mode] + size + at_once,
        "unit": "B/s" if bytes_moved else "/s",
        "ours": found["ours_per_s"],
        "lowest": found["ours_lowest"],
        "highest": found["ours_highest"],
        "runs": runs,
        "less_is_better": False,
        "peer": PEER,
        "theirs": found["theirs_per_s"],
        "ratio": found["ratio"],
        "ours_cpu_s": found["ours_cpu_s_per_million"] / (1 if bytes_moved else 1e6),
        "theirs_cpu_s": found["theirs_cpu_s_per_million"] / (1 if bytes_moved else 1e6),
    }


def memory_row(ours: Found, theirs: Found) -> dict[str, object]:
    """The same of memory."""
    one, two = ours["kib_per_connection"], theirs["kib_per_connection"]
    shape = {"unit": "KiB", "ours": one, "lowest": one, "highest": one, "runs": 1}
    return {"name": "memory of a connection", **shape, "peer": PEER, "theirs": two, "ratio": one / two}


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="pairs per row (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per run (default %(default)s)")
    parser.add_argument("--only", metavar="ROWS", help=f"some of {','.join(CASES)},memory")
    parser.add_argument(
        "--ours", default="", metavar="OPTIONS", help="options for our daemon, such as '--spin-us 50'"
    )
    parser.add_argument(
        "--against", default="", metavar="COMMAND", help="another build of ours instead of the peer"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    rows = arguments.only.split(",") if arguments.only else [*CASES, "memory"]
    if unknown := set(rows) - {*CASES, "memory"}:
        parser.error(f"no such row: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as directory:
        try:
            theirs = shlex.split(arguments.against) or [str(vsock_peer.fetch())]
            program = compile_load(Path(directory))
        except vsock_peer.UnavailableError as error:
            print(f"skipped: {error}", file=sys.stderr)
            return EXIT_UNAVAILABLE
        ours = [sys.executable, "-m", "nitro_vsock.cli", *shlex.split(arguments.ours)]
        versions = [
            subprocess.check_output([*program, "--version"], text=True).strip() for program in (ours, theirs)
        ]
        print(" against ".join(versions), file=sys.stderr)
        report: list[dict[str, object]] = []
        if not arguments.json:
            print(f"{'':14} {'ratio':>6} {'range':>11} {'wanted':>6} {'ours/s':>9} {'theirs/s':>9} CPU s/M")
        for name in rows:
            if name == "memory":
                costs = [memory(ours, program), memory(theirs, program)]
                report.append(memory_row(*costs))
                if not arguments.json:
                    print(name, json.dumps(dict(zip(("ours", "theirs"), costs, strict=True)), indent=2))
                continue
            found = compare(ours, theirs, program, CASES[name], arguments)
            report.append(row(CASES[name], found, arguments.runs))
            if not arguments.json:
                print(
                    f"{name:14} {found['ratio']:6.2f} {found['lowest']:5.2f}-{found['highest']:5.2f}"
                    f" {found['wanted']:6.1f} {found['ours_per_s']:9.3g} {found['theirs_per_s']:9.3g}"
                    f" {found['ours_cpu_s_per_million']:.3g} {found['theirs_cpu_s_per_million']:.3g}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps({"rows": report}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
