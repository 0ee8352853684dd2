"""Try saved machines in numbers: ``python tools/saved_machines.py many`` and ``... mixed --starts 200``.

``many`` launches enclaves from one saved machine at once, each by a command of its own, and says how long all
of them took to their heartbeats, and how much memory each has of its own. ``together`` does the same in one
program, as tests do, after a first enclave that has loaded what all need. ``mixed`` starts images with two
kernels in turns, by boot, from the kernel's machine and from the image's, and checks each start as the soak
test does.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import trio

import images
from debian import say
from nitro_vmm import Enclave, EnclaveConfig

HEARTBEAT = "heartbeat after"
PATIENCE_S = 600
SETTLED_S = 1
COMPLAINT = re.compile(r"rcu.*stall|soft lockup|hung_task|\bBUG:|Oops|Call Trace", re.IGNORECASE)


def save(image: Path, path: Path, *more: str) -> Path:
    """Save a machine of an image."""
    command = [images.command("vmm"), "snapshot", str(image), "-o", str(path), "--quiet", *more]
    subprocess.run(command, check=True)
    return path


def own_kib(pid: int) -> tuple[int, int]:
    """What a process has of its own, and its share of all that it uses."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Pss"]


def many(count: int, image: Path) -> int:
    """Launch enclaves at once from one machine; 0 if all come up."""
    with tempfile.TemporaryDirectory() as scratch:
        path = save(image, Path(scratch, "saved"))
        command = [images.command("vmm"), "run", "--from", str(path)]
        started = time.monotonic()
        enclaves = [
            subprocess.Popen([*command, "--cid", str(100 + number)], stderr=subprocess.PIPE, text=True)
            for number in range(count)
        ]
        beats, sizes = 0, []
        for enclave in enclaves:
            assert enclave.stderr is not None  # noqa: S101 - a pipe
            for line in enclave.stderr:
                if HEARTBEAT in line:
                    beats += 1
                    with suppress(ProcessLookupError):  # it may have ended while we waited for another one
                        sizes.append(own_kib(enclave.pid))
                    break
        took_s = time.monotonic() - started
        for enclave in enclaves:
            enclave.terminate()
            enclave.wait(PATIENCE_S)
            assert enclave.stderr is not None  # noqa: S101 - a pipe
            enclave.stderr.close()
    own, shares = zip(*sizes, strict=True)
    print(
        f"{beats} of {count} at the heartbeat after {took_s:.2f} s; "
        f"each has {sorted(own)[len(own) // 2] / 1024:.0f} MiB of its own (at most {max(own) / 1024:.0f}), "
        f"and {sorted(shares)[len(shares) // 2] / 1024:.0f} MiB with its share"
    )
    return 0 if beats == count else 1


async def together(count: int, image: Path) -> int:
    """Launch enclaves at once from one machine in this process; 0 when all have come up."""

    async def launch(
        path: Path, stopped: trio.Event, task_status: trio.TaskStatus[float] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with Enclave(EnclaveConfig(eif_path=path, snapshot_path=path, cid=0)) as enclave:
            task_status.started(await enclave.booted())
            await stopped.wait()

    with tempfile.TemporaryDirectory() as scratch:
        path = save(image, Path(scratch, "saved"))
        async with trio.open_nursery() as nursery:
            stopped = trio.Event()
            first_s = await nursery.start(launch, path, stopped)
            await trio.sleep(SETTLED_S)
            before_kib = own_kib(os.getpid())
            started, cpu_started_s = time.monotonic(), time.process_time()
            async with trio.open_nursery() as starting:
                for _ in range(count):
                    starting.start_soon(nursery.start, launch, path, stopped)
            took_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_started_s
            after_kib = own_kib(os.getpid())
            stopped.set()
    own_mib, share_mib = ((a - b) / count / 1024 for a, b in zip(after_kib, before_kib, strict=True))
    print(f"the first one, with imports done: {first_s:.2f} s to its heartbeat")
    print(f"{count} more: {took_s:.2f} s to the last heartbeat, processor {cpu_s:.2f} s")
    print(
        f"memory of each: {own_mib:.1f} MiB of its own, {share_mib:.1f} MiB with its share of what is common"
    )
    return 0


def mixed(starts: int) -> int:
    """Start images in turns, in three ways; 0 if all are right."""
    good = 0
    random_numbers: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        ways: list[tuple[str, Path, list[str]]] = []
        for kernel in images.KERNELS:
            machine = Path(scratch, f"{kernel}.kernel")
            for number in range(3 if kernel == "nitro" else 2):
                image = images.hello(kernel, "--env", f"NUMBER={number}")
                copy = Path(scratch, f"{kernel}{number}.eif")
                copy.write_bytes(image.read_bytes())
                if number == 0:
                    save(copy, machine, "--kernel")
                saved = save(copy, copy.with_suffix(".image"))
                ways.append(("boot", copy, []))
                ways.append(("kernel", copy, ["--from", str(machine)]))
                ways.append(("image", copy, ["--from", str(saved)]))
        for number in range(starts):
            way, image, options = ways[number % len(ways)]
            good += start(way, image, options, random_numbers)
            if (number + 1) % 10 == 0:
                say(f"{number + 1}/{starts}: {good} good")
    print(f"{good} of {starts} starts of {len(ways) // 3} images in {len(ways)} ways were right")
    return 0 if good == starts else 1


def start(way: str, image: Path, options: list[str], random_numbers: set[str]) -> bool:
    """One start; whether all was as it should be."""
    described = subprocess.run(
        [images.command("eif"), "describe", "--json", str(image)], stdout=subprocess.PIPE, check=True
    )
    measurements = json.loads(described.stdout)["Measurements"]
    command = images.launch(image, *options)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    console = done.stdout.decode(errors="replace").replace("\r", "")
    said = done.stderr.decode(errors="replace")
    random = re.findall(r"NSM: 256 random bytes, the first are ([0-9a-f]{16})$", console, re.MULTILINE)
    pcrs = re.findall(r"NSM: PCR\d ([0-9a-f]{96})$", console, re.MULTILINE)
    right = (
        done.returncode == 0
        and HEARTBEAT in said
        and ("going on from" in said) == bool(options)
        and pcrs == [measurements[f"PCR{index}"] for index in range(3)]
        and len(random) == 1
        and random[0] not in random_numbers
        and "init: the application exited with 0" in console
        and COMPLAINT.search(console) is None
    )
    random_numbers.update(random)
    if not right:
        say(f"{way} of {image.name}: {console}{said}exit code {done.returncode}")
    return right


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description="Try saved machines in numbers.")
    parser.add_argument("what", choices=["many", "together", "mixed"])
    parser.add_argument("--starts", type=int, help="how many (default: 20 at once, 200 in turns)")
    parser.add_argument("--image", type=Path, help="not for mixed (default: hello)")
    options = parser.parse_args()
    try:
        if options.what == "many":
            return many(options.starts or 20, options.image or images.hello("nitro"))
        if options.what == "together":
            return trio.run(together, options.starts or 20, options.image or images.hello("nitro"))
        return mixed(options.starts or 200)
    except images.ERRORS as error:
        say(f"error: {error}")
        return 4


if __name__ == "__main__":
    sys.exit(main())
