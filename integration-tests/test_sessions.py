"""What runs at length by hand (`nox -s soak`, `nox -s userland`), as far as every change can wait for it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nitro_vmm.cli", reason="there is no `vmm run`; install nitro-vmm")

TOOLS = Path(__file__).resolve().parent.parent / "tools"
HOST_LACKS = 4
TIMEOUT_S = 300


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool; skips the test where something cannot be fetched or compiled."""
    command = [sys.executable, str(TOOLS / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    print(done.stdout, done.stderr, sep="\n")
    if done.returncode == HOST_LACKS:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    return done


@pytest.mark.parametrize("kind", ["nitro", "debian"])
def test_boots_in_a_row_all_come_up(kind: str) -> None:
    done = run("soak.py", "--kind", kind, "--boots", "3")

    assert done.stdout == (
        f"{kind}: 3 boots, 3 heartbeats, 3 with answers of the security module, 3 ended well\n"
    )
    assert done.returncode == 0


def test_a_debian_user_space_computes_what_the_host_computes() -> None:
    done = run("userland.py")

    assert "the guest computes what this machine computes" in done.stderr
    assert done.returncode == 0
