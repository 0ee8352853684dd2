"""Try the wheels as a user gets them: ``python tools/try_wheels.py dist``.

Each distribution is installed alone into a fresh environment outside of the checkout, where no compiler is
found, imported, and its command asked for its version; nothing may come with it that it does not declare. The
last one is the whole: it boots an image that it built itself, where a kernel for that is at hand.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
from debian import say

# What a user of one distribution types, and what must not come along.
DISTRIBUTIONS = {
    "nitro-eif": ("eif", "trio unicorn pydantic nitro_nsm nitro_vsock nitro_vmm"),
    "nitro-nsm": ("nsm", "trio unicorn nitro_eif nitro_vsock nitro_vmm"),
    "nitro-vsock": ("vhost-user-vsock", "unicorn cryptography nitro_eif nitro_nsm nitro_vmm"),
    "nitro-vmm": ("vmm", ""),
}


class WheelError(Exception):
    """The wheels do not do what they should; the message says which and what."""


class Environment:
    """A virtual environment with one distribution and what it requires.

    Args:
        directory: where to make it.
        wheels: where our own wheels are; all else comes from the index.
    """

    def __init__(self, directory: Path, wheels: Path) -> None:
        self._directory = directory
        self._wheels = wheels

    def run(self, name: str, *arguments: str) -> str:
        """Run one of its programs, away from the checkout; returns what it printed.

        Raises:
            WheelError: it fails.
        """
        program = self._directory / "bin" / name
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        # Programs of the system are found, compilers are not: what a wheel lacks must not be built here.
        environment |= {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
        done = subprocess.run(
            [program, *arguments],
            cwd=self._directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise WheelError(
                f"{name} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def install(self, distribution: str) -> None:
        """Make the environment, and install one of our distributions with those of ours that it requires.

        Ours come first and from nowhere else; then their versions are settled, so that the index is asked for
        what they require only.
        """
        venv.create(self._directory, with_pip=True)
        names = list(DISTRIBUTIONS) if distribution == "nitro-vmm" else [distribution]
        ours = ("--no-index", "--no-deps", "--only-binary", ":all:", "--find-links", str(self._wheels))
        self.run("pip", "install", "--quiet", *ours, *names)
        self.run("pip", "install", "--quiet", *names)

    def manual(self, command: str) -> Path:
        """Where a command's manual page has to be."""
        return self._directory / "share" / "man" / "man1" / f"{command}.1"

    def importable(self, module: str) -> bool:
        """Whether a module is there."""
        code = f"import importlib.util as u; print(u.find_spec({module!r}) is not None)"
        return self.run("python", "-c", code).strip() == "True"


def try_alone(distribution: str, environment: Environment) -> None:
    """Install one distribution and see that it works with only what it declares.

    Raises:
        WheelError: it does not.
    """
    program, strangers = DISTRIBUTIONS[distribution]
    environment.install(distribution)
    environment.run("python", "-W", "error", "-c", f"import {distribution.replace('-', '_')}")
    version = environment.run(program, "--version").strip()
    if not environment.manual(program).is_file():
        raise WheelError(f"{distribution} brings no manual page of {program}")
    found = [module for module in strangers.split() if environment.importable(module)]
    if found:
        raise WheelError(f"pip install {distribution} brings {', '.join(found)} along")
    say(f"{distribution}: {version}")


def boot(environment: Environment, scratch: Path) -> None:
    """Boot an image with the installed commands, away from the checkout; save a machine and go on from it.

    Raises:
        WheelError: it does not boot, or its application does not run.
    """
    try:
        kernel = images.nitro_kernel()
    except images.ImageError as error:
        say(f"no boot: {error}")
        return
    root = scratch / "root"
    images.compile_program(images.GUEST_SOURCES / "nsm.c", root / "nsm")
    image = str(scratch / "wheels.eif")
    environment.run(
        *("eif", "build", "--kernel", str(kernel), "--rootfs", str(root), "--cmd", "/nsm", "--output", image)
    )
    saved = str(scratch / "wheels.snapshot")
    environment.run("vmm", "snapshot", "--output", saved, image)
    for start in ([image], ["--from", saved]):
        console = environment.run("vmm", "run", "--console", *start)
        if "random bytes" not in console or "exited with 0" not in console:
            raise WheelError(f"vmm run {start[0]} ended well, but the application did not:\n{console}")
    say("an image boots with the installed commands, and goes on from a saved machine")


def main() -> int:
    """Try them all."""
    parser = argparse.ArgumentParser(description="Try wheels in environments of their own.")
    parser.add_argument("wheels", type=Path, help="directory with the wheels of all distributions")
    wheels = parser.parse_args().wheels.resolve()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            environments = {name: Environment(Path(scratch, name), wheels) for name in DISTRIBUTIONS}
            with ThreadPoolExecutor(max_workers=2) as pool:
                list(pool.map(try_alone, environments.keys(), environments.values()))
            boot(environments["nitro-vmm"], Path(scratch))
    except (WheelError, *images.ERRORS) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
