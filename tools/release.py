"""Build and check what a release publishes, and upload nothing: ``python tools/release.py DIRECTORY``.

From each package's source distribution, not from the checkout, come its wheels: one for all Pythons, or one
for each where it is compiled against Python. Libraries get the tag of the oldest Linux they run on. Every
wheel is then installed where there is no compiler, and used.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from debian import say

ROOT = Path(__file__).resolve().parent.parent
FOR_EACH_PYTHON = {"vsock", "vmm"}
"""Packages that are compiled against Python itself."""

COMPILE = {"NITRO_VSOCK_COMPILE": "1", "VMM_COMPILE": "1"}
"""Fails a build that would leave out what is compiled against Python."""

ELF = b"\x7fELF"


class ReleaseError(Exception):
    """This must not be published; the message says what is wrong."""


def run(*command: str | Path) -> None:
    """Run a program to its end.

    Raises:
        ReleaseError: It fails.
    """
    done = subprocess.run(command, env=os.environ | COMPILE, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(str(word) for word in command)}: exit code {done.returncode}")


def pythons() -> dict[str, str | None]:
    """The Pythons that the packages promise to run on, and where each is on this machine."""
    manifest = tomllib.loads((ROOT / "packages/vmm/pyproject.toml").read_text())
    versions = [each.rpartition(" ")[2] for each in manifest["project"]["classifiers"] if ":: 3." in each]
    return {version: shutil.which(f"python{version}") for version in versions}


def build_wheels(package: str, source: Path, interpreters: Sequence[str], scratch: Path) -> list[Path]:
    """Make a package's wheels from its source distribution.

    Raises:
        ReleaseError: A build fails.
    """
    target = scratch / "wheels" / package
    for interpreter in interpreters if package in FOR_EACH_PYTHON else [sys.executable]:
        environment = scratch / f"builds-with-{Path(interpreter).name}"
        if not environment.exists():
            run(interpreter, "-m", "venv", environment)
        pip = environment / "bin/pip"
        run(pip, "wheel", "--quiet", "--no-deps", "--no-cache-dir", "--wheel-dir", target, source)
    return sorted(target.iterdir())


def has_compiled_part(wheel: Path) -> bool:
    """Whether a wheel has a library or a program in it."""
    with zipfile.ZipFile(wheel) as archive:
        return any(archive.open(name).read(len(ELF)) == ELF for name in archive.namelist())


def finish(wheel: Path, directory: Path) -> None:
    """Put a wheel into the directory, tagged for the oldest Linux that its libraries run on.

    Raises:
        ReleaseError: A library needs something that not every Linux has.
    """
    if wheel.stem.endswith("-any"):
        shutil.copy(wheel, directory)
    else:
        # A build may have promised more than this machine's libraries keep: only what is found counts.
        plain = ("--remove", "--platform-tag", f"linux_{platform.machine()}")
        run(sys.executable, "-m", "wheel", "tags", *plain, wheel)
        (wheel,) = wheel.parent.glob(f"{wheel.stem.rpartition('-')[0]}-linux_*.whl")
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", directory, wheel)


def release(directory: Path, *, complete: bool) -> None:
    """Build and check everything.

    Args:
        directory: Where the results go; what was there is removed.
        complete: Fail if a Python that the packages promise to run on is not on this machine.

    Raises:
        ReleaseError: Something is missing or does not work.
    """
    found = pythons()
    absent = [version for version, path in found.items() if path is None]
    if absent and complete:
        raise ReleaseError(f"a release is for {', '.join(found)}, and there is no {', '.join(absent)} here")
    interpreters = [path for path in found.values() if path is not None]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for manifest in sorted(ROOT.glob("packages/*/pyproject.toml")):
            package = manifest.parent.name
            run(sys.executable, "-m", "build", "--sdist", "--outdir", directory, manifest.parent)
            (source,) = directory.glob(f"nitro_{package}-*.tar.gz")
            for wheel in build_wheels(package, source, interpreters, scratch):
                if (manifest.parent / "hatch_build.py").exists() and not has_compiled_part(wheel):
                    raise ReleaseError(
                        f"{wheel.name} lacks what its build should compile: is there a compiler?"
                    )
                finish(wheel, directory)
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(directory.iterdir()))
        for interpreter in interpreters:
            say(f"trying the wheels with {interpreter}")
            run(interpreter, ROOT / "tools/try_wheels.py", directory)
    print(*sorted(path.name for path in directory.iterdir()), sep="\n")
    for version in absent:
        say(f"incomplete: there is no python{version} here, and so none of its wheels")


def main() -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(description="Build and check what a release publishes.")
    parser.add_argument("directory", type=Path, help="where to put it; what is there is removed")
    parser.add_argument(
        "--complete",
        action="store_true",
        help="fail if a Python that the packages promise to run on is absent",
    )
    options = parser.parse_args()
    try:
        release(options.directory.resolve(), complete=options.complete)
    except ReleaseError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
