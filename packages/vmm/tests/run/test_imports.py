"""What a launch does not wait for: modules that take long to import, and that its guest has no need of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nitro_nsm import ensure_test_root
from nitro_vmm.accel.unicorn import native

BINDING = {} if native.LIBRARY is not None else {"unicorn.unicorn_py3": False}
"""Unicorn's own binding is needed where the native part is absent."""

LAUNCH = """
import json, sys, threading

class Watcher:
    'Says of some packages whether the guest had its devices, or was started, when they were imported.'

    found, started = {}, set()

    def find_spec(self, name, path=None, target=None):
        if name == "trio":
            self.found[name] = launch.assembly is not None
        elif name in {"cryptography", "pydantic", "unicorn.unicorn_py3"}:
            self.found[name] = "guest" in self.started

def start(thread, real=threading.Thread.start):
    Watcher.started.add(thread.name)
    real(thread)

threading.Thread.start = start
sys.meta_path.insert(0, Watcher())
from nitro_vmm.cli import main
from nitro_vmm.enclave.launch import Launch

def note(self, *arguments, real=Launch.__init__, **options):
    global launch
    launch = self
    real(self, *arguments, **options)

Launch.__init__ = note

assert main(sys.argv[1:]) == 0
print(json.dumps(Watcher.found), file=sys.stderr)
"""


def imported(*words: str) -> dict[str, bool]:
    """Which packages a command has imported, and whether its guest was started before.

    For trio: whether the guest had all its devices.
    """
    ensure_test_root()  # the first launch of all makes it
    done = subprocess.run([sys.executable, "-c", LAUNCH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, bool] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--memory-mib", "64", "--cid", "20", "--console", "--quiet-kernel", "--vsock-path"],
        ["--debug-mode", "--accel", "unicorn", "--warm", "off", "--json"],
    ],
)
def test_a_plain_launch_loads_what_its_guest_does_not_need_later_or_never(
    image: Path, tmp_path: Path, options: list[str]
) -> None:
    last = [str(tmp_path / "vsock")] if options[-1:] == ["--vsock-path"] else []

    assert imported("run", str(image), *options, *last) == {"trio": True} | BINDING


def test_other_launches_are_checked_before_the_guest_runs(image: Path) -> None:
    assert imported("run", str(image), "--name", "named") == {"pydantic": False, "trio": True} | BINDING
