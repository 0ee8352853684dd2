"""The command as users run it, with a runtime directory of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VMM: Final = [sys.executable, "-P", "-m", "nitro_vmm"]
NOTING_MODULES: Final = """
import sys
from nitro_vmm.enclave.launch import Launch
run = Launch.run
def noted(*arguments):
    print(*sys.modules, sep='\\n', file=sys.stderr, flush=True)
    run(*arguments)
Launch.run = noted
from nitro_vmm.cli import main
main(sys.argv[1:])
"""


def modules_when_the_guest_begins(*arguments: str | Path) -> set[str]:
    """What the command has imported when its guest begins to run, and whatever else it says."""
    return _noted_by(NOTING_MODULES, arguments)


def modules_at_the_end(*arguments: str | Path) -> set[str]:
    """What the command has imported when it has done what it does, and whatever else it says to stderr."""
    program = (
        "import sys\n"
        "from nitro_vmm.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    return _noted_by(program, arguments)


def _noted_by(program: str, arguments: Sequence[str | Path]) -> set[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines())


@dataclass
class Vmm:
    """The command, with a runtime directory of its own."""

    runtime: Path

    def __call__(self, *arguments: str | Path, typed: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            [*VMM, *map(str, arguments)], input=typed, capture_output=True, check=False, timeout=120
        )
        err = done.stderr.decode(errors="replace")
        assert "Traceback" not in err
        assert "bug of vmm" not in err
        out = done.stdout.decode(errors="replace")
        if "--json" in arguments and out:
            value = json.loads(out)
            assert out.removesuffix("\n") in {json.dumps(value), json.dumps(value, indent=2)}
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def entries(self) -> dict[str, Any]:
        """All enclaves by name, as ``vmm ps`` tells them."""
        return {entry["Name"]: entry for entry in json.loads(self("ps", "--all", "--json").stdout)}
