"""Boot enclaves again and again, and count what comes up: ``python tools/soak.py --aws-init FILE``.

There are three kinds: a kernel like AWS's with this project's init, Debian's kernel with it, and AWS's own
init. A boot counts when the enclave's heartbeat arrived, its security module answered with the measurements
that ``eif describe`` finds in the image, its random bytes are new, and it ended well.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import images
from debian import say


@dataclass(frozen=True, slots=True)
class Kind:
    """Something to boot."""

    kernel: str
    """One of `images.KERNELS`."""
    boots: int
    """How often, unless something else is asked for."""
    aws_init: bool = False
    """Whether the init is AWS's."""


KINDS = {
    "nitro": Kind("nitro", 100),
    "debian": Kind("debian", 20),
    "aws-init": Kind("nitro", 100, aws_init=True),
}


@dataclass(slots=True)
class Tally:
    """What came up."""

    boots: int = 0
    heartbeats: int = 0
    nsm_answers: int = 0
    good_ends: int = 0
    good: int = 0
    """How many boots count."""
    random: set[str] = field(default_factory=set)


def boot(image: Path, pcrs: list[str], farewell: str, tally: Tally, vmm_options: list[str]) -> None:
    """Boot once.

    Args:
        image: what.
        pcrs: its measurements.
        farewell: what init says at a good end.
        tally: gets what came up.
        vmm_options: more for ``vmm run``.
    """
    command = images.launch(image, *vmm_options)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    console = done.stdout.decode(errors="replace").replace("\r", "")
    random = re.findall(r"NSM: 256 random bytes, the first are ([0-9a-f]{16})$", console, re.MULTILINE)
    heartbeat = "heartbeat after" in done.stderr.decode(errors="replace")
    answered = (
        re.findall(r"NSM: PCR\d ([0-9a-f]{96})$", console, re.MULTILINE) == pcrs
        and len(random) == 1
        and random[0] not in tally.random
    )
    ended = done.returncode == 0 and farewell in console
    tally.boots += 1
    tally.heartbeats += heartbeat
    tally.nsm_answers += answered
    tally.good_ends += ended
    tally.good += heartbeat and answered and ended
    tally.random.update(random)
    if not (heartbeat and answered and ended):
        say(f"{console}{done.stderr.decode(errors='replace')}exit code {done.returncode}")


def soak(name: str, boots: int, aws_init: Path | None, vmm_options: list[str]) -> Tally:
    """Boot one kind many times.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: a part cannot be built.
    """
    kind = KINDS[name]
    # AWS's init keeps quiet at a good end, so that the kernel has the last word.
    init, farewell = ["--init", str(aws_init)], "reboot: Restarting system"
    if not kind.aws_init:
        init, farewell = [], "init: the application exited with 0"
    image = images.hello(kind.kernel, *init)
    described = subprocess.run(
        [images.command("eif"), "describe", "--json", str(image)], stdout=subprocess.PIPE, check=True
    )
    measurements = json.loads(described.stdout)["Measurements"]
    pcrs = [measurements[f"PCR{index}"] for index in range(3)]
    tally = Tally()
    started = time.monotonic()
    for number in range(boots):
        boot(image, pcrs, farewell, tally, vmm_options)
        if sys.stderr.isatty() or (number + 1) % 10 == 0:
            say(f"{name}: {number + 1}/{boots}: {tally.good} good, {time.monotonic() - started:.0f} s")
    return tally


def main() -> int:
    """Boot and count; 0 when every boot counts."""
    parser = argparse.ArgumentParser(
        description="Boot enclaves again and again, and count what comes up.",
        epilog="example: nox -s soak -- --kind nitro --boots 100",
    )
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="only this one; repeat for more (default: all)"
    )
    parser.add_argument("--boots", type=int, help="of each kind (default: 100, and 20 of Debian's kernel)")
    parser.add_argument(
        "--aws-init",
        type=Path,
        metavar="FILE",
        help="AWS's init: the one of nitro-cli's blobs, or init/init.c of aws-nitro-enclaves-sdk-bootstrap, "
        "compiled with -static; without it the kind aws-init is left out",
    )
    options, vmm_options = parser.parse_known_args()
    good = True
    for name in options.kind or KINDS:
        if KINDS[name].aws_init and options.aws_init is None:
            say(f"{name} is left out: say --aws-init FILE")
            good = good and not options.kind
            continue
        boots = KINDS[name].boots if options.boots is None else options.boots
        try:
            tally = soak(name, boots, options.aws_init, vmm_options)
        except images.ERRORS as error:
            say(f"error: {error}")
            return 4
        print(
            f"{name}: {tally.boots} boots, {tally.heartbeats} heartbeats, {tally.nsm_answers} with answers "
            f"of the security module, {tally.good_ends} ended well",
            flush=True,
        )
        good = good and tally.good == boots
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
