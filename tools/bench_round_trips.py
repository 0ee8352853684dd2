"""Measure what an answer from the enclave costs: ``python tools/bench_round_trips.py``.

The parent asks the enclave for the time over vsock, again and again, in turns with QEMU's microvm on our
vsock daemon. And it asks for a new attestation document, which takes a trip to the security module as well.
Debian's QEMU has no such device to compare with.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import guest_clock
import images
from bench_boot import QEMU, LaunchError, qemu_command
from debian import say
from guest_clock import PATIENCE_S, PORT, ClockError, GuestClock

MEMORY_MIB = 256
HEARTBEAT_PORT = 9000
QUESTIONS = 300


@contextmanager
def in_qemu(image: Path, *, qemu: str) -> Iterator[GuestClock]:
    """The enclave that tells the time, in QEMU.

    Raises:
        LaunchError: it does not connect.
    """
    with (
        TemporaryDirectory() as scratch,
        socket.socket(socket.AF_UNIX) as heartbeat,
        socket.socket(socket.AF_UNIX) as listener,
        qemu_command(image, MEMORY_MIB, scratch, qemu) as command,
    ):
        for sock, port in ((heartbeat, HEARTBEAT_PORT), (listener, PORT)):
            sock.bind(f"{scratch}/vsock_{port}")
            sock.listen()
            sock.settimeout(PATIENCE_S)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as machine:
            try:
                beat, _ = heartbeat.accept()
                with beat:
                    beat.sendall(beat.recv(1))
                stream, _ = listener.accept()
                with stream:
                    yield GuestClock(stream)
            except TimeoutError as error:
                raise LaunchError("the enclave in QEMU does not connect") from error
            finally:
                machine.kill()


def microseconds(ask: Callable[[], object]) -> float:
    """The median of many questions."""
    took = []
    for _ in range(QUESTIONS):
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    return 1e6 * statistics.median(took)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure round trips to an enclave over vsock, and on to its security module.",
        epilog="example: nox -s 'bench(round trips)' -- --rounds 5 --json",
    )
    parser.add_argument("--rounds", type=int, default=3, help="boots of each (default: %(default)s)")
    parser.add_argument("--qemu", default=QEMU, metavar="COMMAND", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    figures: dict[str, list[float]] = {"vsock": [], "vsock in QEMU": [], "vsock and security module": []}
    try:
        image = guest_clock.build("nitro")
        in_other = partial(in_qemu, image, qemu=options.qemu) if shutil.which(options.qemu) else None
        for number in range(options.rounds):
            with guest_clock.running(image, "--memory-mib", str(MEMORY_MIB)) as clock:
                figures["vsock"].append(microseconds(clock.read))
                figures["vsock and security module"].append(microseconds(clock.attested))
            if in_other is not None:
                with in_other() as clock:
                    figures["vsock in QEMU"].append(microseconds(clock.read))
            say(f"  {number + 1}/{options.rounds}")
    except (ClockError, LaunchError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    medians = {name: statistics.median(one) for name, one in figures.items() if one}
    if options.json:
        print(json.dumps({"microseconds": medians, "rounds": figures}, indent=2))
    else:
        for name, value in medians.items():
            print(f"{name}: {value:.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
