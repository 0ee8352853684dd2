"""Run a benchmark, and keep what it finds: ``python tools/bench.py launch tools/bench_boot.py --runs 5``.

Its rows go to ``.cache/bench/NAME.json``, with the machine, kernel and versions that they were measured on,
and the picture of all that is kept there is drawn anew.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from debian import ROOT, say
from figures import FiguresError, read, report, sheet, svg

KEPT = ROOT / ".cache" / "bench"
PICTURE = KEPT / "figures.svg"
QEMU = "qemu-system-x86_64"


def first_line(*command: str) -> str:
    """What a program says first; empty if it does not run."""
    if shutil.which(command[0]) is None:
        return ""
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0]


def circumstances() -> dict[str, str]:
    """When and where this is measured: what figures depend on."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    try:
        own = f"nitro-vmm {version('nitro-vmm')}"
    except PackageNotFoundError:
        own = ""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{len(os.sched_getaffinity(0))} processors, {processor}",
        "load": f"load {os.getloadavg()[0]:.1f} before it began",
        "kernel": f"Linux {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "ours": own,
        "qemu": first_line(QEMU, "--version").replace(" emulator version", ""),
    }
    return {name: text for name, text in found.items() if text}


def main() -> int:
    """Run it; the exit code is the benchmark's, 0 if all was measured."""
    if len(sys.argv) < 3:
        say("usage: bench.py NAME SCRIPT [OPTION...]")
        return 2
    name, script, *options = sys.argv[1:]
    if {"-h", "--help"} & set(options):
        return subprocess.run([sys.executable, script, *options], check=False).returncode
    on = circumstances()
    command = [sys.executable, script, *options, "--json"]
    # QEMU is measured without KVM, so ours is, too.
    environment = os.environ | {"NITRO_VMM_ACCELERATOR": "unicorn"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if ended.returncode:
        return ended.returncode
    try:
        data = json.loads(ended.stdout)
        found = sheet(data, name)
        KEPT.mkdir(parents=True, exist_ok=True)
        path = KEPT / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps({"on": on, **data}, indent=2) + "\n")
        PICTURE.write_text(svg(read(KEPT)))
    except (FiguresError, ValueError, OSError) as error:
        say(f"error: {error}")
        return 1
    report(found.rows, found.skipped, as_json=False)
    print(f"kept in {path.relative_to(ROOT)}, drawn in {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
