"""Boot the hello image again and again, and count what comes up: ``python tools/soak.py --boots 100``.

A boot counts when the enclave's heartbeat arrived, its security module answered with the measurements that
``eif describe`` finds in the image, its random bytes are new, and its application ended well.
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
from debian import complain, say


@dataclass(slots=True)
class Tally:
    """What came up."""

    boots: int = 0
    heartbeats: int = 0
    nsm_answers: int = 0
    good_ends: int = 0
    random: set[str] = field(default_factory=set)


def boot(image: Path, pcrs: list[str], tally: Tally, vmm_options: list[str]) -> bool:
    """One boot; whether all was as it should be."""
    command = [images.command("vmm"), "run", str(image), *vmm_options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    console = done.stdout.decode(errors="replace").replace("\r", "")
    random = re.findall(r"NSM: 256 random bytes, the first are ([0-9a-f]{16})$", console, re.MULTILINE)
    heartbeat = "heartbeat after" in done.stderr.decode(errors="replace")
    answered = (
        re.findall(r"NSM: PCR\d ([0-9a-f]{96})$", console, re.MULTILINE) == pcrs
        and len(random) == 1
        and random[0] not in tally.random
    )
    ended = done.returncode == 0 and "init: the application exited with 0" in console
    tally.boots += 1
    tally.heartbeats += heartbeat
    tally.nsm_answers += answered
    tally.good_ends += ended
    tally.random.update(random)
    if not (heartbeat and answered and ended):
        say(f"{console}{done.stderr.decode(errors='replace')}exit code {done.returncode}")
    return heartbeat and answered and ended


def main() -> int:
    """Boot and count; 0 when every boot counts."""
    parser = argparse.ArgumentParser(
        description="Boot the hello image again and again, and count what comes up.",
        epilog="example: nox -s soak -- --kernel nitro --boots 100",
    )
    parser.add_argument("--kernel", choices=images.KERNELS, default="nitro", help="default: %(default)s")
    parser.add_argument("--boots", type=int, default=100, help="default: %(default)s")
    options, vmm_options = parser.parse_known_args()
    try:
        image = images.hello(options.kernel)
    except images.ERRORS as error:
        return complain(error)
    described = subprocess.run(
        [images.command("eif"), "describe", "--json", str(image)], stdout=subprocess.PIPE, check=True
    )
    measurements = json.loads(described.stdout)["Measurements"]
    pcrs = [measurements[f"PCR{index}"] for index in range(3)]
    tally = Tally()
    started = time.monotonic()
    good = 0
    for number in range(options.boots):
        good += boot(image, pcrs, tally, vmm_options)
        if sys.stderr.isatty() or (number + 1) % 10 == 0:
            say(f"{number + 1}/{options.boots}: {good} good, {time.monotonic() - started:.0f} s")
    print(
        f"{image.name}: {tally.boots} boots, {tally.heartbeats} heartbeats, {tally.nsm_answers} with answers "
        f"of the security module, {tally.good_ends} ended well"
    )
    return 0 if good == options.boots else 1


if __name__ == "__main__":
    sys.exit(main())
