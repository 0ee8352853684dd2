"""Compare an enclave's clock with this computer's: ``python tools/guest_clock.py --minutes 10``.

The enclave is asked for the time over vsock. Its answer lies between the moments of the question and of the
answer as this computer's clock has them, or is wrong by as much as it lies outside. How busy the machine is
only changes how far apart the two are.
"""

import argparse
import json
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import images
from debian import say

PORT = 9001
"""Where ``guest/clock.c`` looks for its parent."""
PATIENCE_S = 300.0
QUESTIONS = 20
"""Asked at a time. The quickest answer counts, because it says most."""
PAUSE_S = 10.0
NS_PER_S, NS_PER_MS = 1_000_000_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer; all are nanoseconds since 1970."""

    before_ns: int
    """This computer's clock at the question."""
    guest_ns: int
    """The enclave's."""
    after_ns: int
    """This computer's clock at the answer."""

    @property
    def wrong_ns(self) -> int:
        """By how much the enclave's clock is wrong at least: positive if it is ahead."""
        return max(self.guest_ns - self.after_ns, 0) - max(self.before_ns - self.guest_ns, 0)

    @property
    def ahead_ns(self) -> int:
        """How far it is ahead, as far as one can know."""
        return self.guest_ns - (self.before_ns + self.after_ns) // 2

    @property
    def unknown_ns(self) -> int:
        """How far off `ahead_ns` may be, either way."""
        return (self.after_ns - self.before_ns) // 2


class GuestClock:
    """The clock of a running enclave.

    Args:
        stream: The connection that the enclave has opened.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def read(self) -> Reading:
        """Ask for the time, once."""
        before_ns = time.time_ns()
        (guest_ns,) = struct.unpack("<Q", self._ask(b"t", 8))
        return Reading(before_ns, guest_ns, time.time_ns())

    def read_best(self) -> Reading:
        """Ask several times; returns the answer that came quickest."""
        return min((self.read() for _ in range(QUESTIONS)), key=lambda reading: reading.unknown_ns)

    def attested(self) -> tuple[int, int]:
        """The time of a new attestation document, and the enclave's clock then, nanoseconds since 1970."""
        document_ms, guest_ns = struct.unpack("<QQ", self._ask(b"a", 16))
        return document_ms * NS_PER_MS, guest_ns

    def source(self) -> str:
        """The name of the clock that the enclave's kernel uses."""
        self._stream.sendall(b"s")
        line = b""
        while not line.endswith(b"\n"):
            line += self._receive(64)
        return line.decode().strip()

    def _ask(self, question: bytes, length: int) -> bytes:
        self._stream.sendall(question)
        answer = b""
        while len(answer) < length:
            answer += self._receive(length - len(answer))
        return answer

    def _receive(self, length: int) -> bytes:
        piece = self._stream.recv(length)
        if not piece:
            raise ClockError("the enclave has ended")
        return piece


class ClockError(Exception):
    """The enclave does not answer; the message has what it said."""


def build(kernel: str) -> Path:
    """The image of an enclave that tells the time.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: a part cannot be built.
    """
    with TemporaryDirectory() as scratch:
        images.compile_program(images.GUEST_SOURCES / "clock.c", Path(scratch, "clock"))
        return images.build("clock", kernel, Path(scratch), "--cmd", "/clock")


@contextmanager
def running(image: Path, *vmm_options: str) -> Iterator[GuestClock]:
    """An enclave that tells the time, until the block is left.

    Raises:
        ClockError: it does not connect.
    """
    with TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{scratch}/vsock_{PORT}")
        listener.listen()
        listener.settimeout(PATIENCE_S)
        command = images.launch(image, "--vsock-path", f"{scratch}/vsock", *vmm_options)
        console = Path(scratch, "console")
        with (
            console.open("wb") as output,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as machine,
        ):
            try:
                stream, _ = listener.accept()
                with stream:
                    stream.settimeout(PATIENCE_S)
                    yield GuestClock(stream)
            except TimeoutError as error:
                raise ClockError(f"no answer\n{console.read_text(errors='replace')[-4000:]}") from error
            finally:
                machine.terminate()


def watch(clock: GuestClock, seconds: float) -> list[Reading]:
    """Readings over a time, the first one at once."""
    readings = [clock.read_best()]
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, PAUSE_S))
        readings.append(clock.read_best())
        of = readings[-1]
        say(f"  ahead by {of.ahead_ns / NS_PER_MS:.3f} ms, give or take {of.unknown_ns / NS_PER_MS:.3f}")
    return readings


def report(clock: GuestClock, minutes: float) -> dict[str, object]:
    """All that is to be told of one enclave."""
    first = clock.read()
    documents = [guest_ns - document_ns for document_ns, guest_ns in (clock.attested() for _ in range(50))]
    readings = watch(clock, 60 * minutes)
    seconds = (readings[-1].guest_ns - readings[0].guest_ns) / NS_PER_S
    drift_ns = readings[-1].ahead_ns - readings[0].ahead_ns
    return {
        "clock source": clock.source(),
        "first answer wrong by at least, ms": first.wrong_ns / NS_PER_MS,
        "ahead, ms": readings[0].ahead_ns / NS_PER_MS,
        "ahead, give or take, ms": readings[0].unknown_ns / NS_PER_MS,
        "own document's age, ms": [min(documents) / NS_PER_MS, statistics.median(documents) / NS_PER_MS],
        "watched, s": round(seconds, 1),
        "most ahead, ms": max(reading.ahead_ns for reading in readings) / NS_PER_MS,
        "most behind, ms": -min(reading.ahead_ns for reading in readings) / NS_PER_MS,
        "drift, ms": drift_ns / NS_PER_MS,
    }


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description="Compare an enclave's clock with this computer's.",
        epilog="example: nox -s clock -- --kernel debian --minutes 10",
    )
    parser.add_argument("--kernel", choices=images.KERNELS, default="nitro", help="default: %(default)s")
    parser.add_argument("--boots", type=int, default=1, help="how many enclaves (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="how long to watch each one (default: %(default)s)"
    )
    options, vmm_options = parser.parse_known_args()
    try:
        image = build(options.kernel)
        for _ in range(options.boots):
            with running(image, *vmm_options) as clock:
                print(json.dumps(report(clock, options.minutes)), flush=True)
    except (ClockError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
