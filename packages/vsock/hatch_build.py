"""Build nitro-vsock: hatchling, and for wheels the data path compiled with mypyc wherever that is possible.

This is both the package's build back-end (PEP 517), for only wheels should require what compiles, and
hatchling's hook that compiles. Everything happens in a temporary directory, so that a build leaves a checkout
as it was; editable installs run the sources as they are.

``NITRO_VSOCK_COMPILE`` chooses: ``1`` compiles or fails, ``0`` does not compile. Without it a wheel is
compiled if there are a C compiler and Python's headers, and if that fails it is pure Python.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import *  # noqa: F403 (the other hooks of a back-end)
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = (
    "device/coalescing",
    "device/connection",
    "device/connection_table",
    "device/connections",
    "device/counters",
    "device/credit_wait",
    "device/delivery",
    "device/dialing",
    "device/endings",
    "device/engine",
    "device/events",
    "device/front_door",
    "device/lane",
    "device/packet",
    "device/receive",
    "device/receive_ring",
    "device/rings",
    "device/sibling_credit",
    "device/socket_connection",
    "device/timers",
    "device/transmit",
    "host/handshake",
    "host/unix",
    "virtio/barrier",
    "virtio/guest_memory",
    "virtio/split_queue",
)
"""What every packet passes through; the rest is as fast as it needs to be."""

REQUIREMENTS = ("mypy>=2.0,<3", "setuptools>=77,<90")
"""What compiling needs besides what the package itself does, whose types count."""

SETUP = """
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(
    name="nitro_vsock",
    ext_modules=mypycify(["--strict", *sys.argv[1:]], group_name="nitro_vsock"),
    script_args=["build_ext", "--inplace"],
)
"""


class CompileError(Exception):
    """The data path cannot be compiled; the message says why."""


def to_be_compiled() -> bool:
    """Whether to try."""
    choice = os.environ.get("NITRO_VSOCK_COMPILE", "")
    if choice not in {"", "0", "1"}:
        sys.exit(f"error: NITRO_VSOCK_COMPILE is {choice!r}: choose 0 or 1, or leave it out")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    possible = (
        sys.implementation.name == "cpython"
        and shutil.which(compiler) is not None
        and Path(sysconfig.get_path("include"), "Python.h").exists()
    )
    return choice == "1" or (not choice and possible)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a wheel requires to be built (PEP 517)."""
    requirements: list[str] = build.get_requires_for_build_wheel(config_settings)
    if to_be_compiled():
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        requirements += [*REQUIREMENTS, *project["dependencies"]]
    return requirements


class CompileHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the results packed beside the sources.

        Args:
            version: "standard" or "editable"; the latter stays as it is.
            build_data: what hatchling is told.
        """
        # Manual pages are there if tools/man_pages.py has written them.
        pages = sorted((Path(self.root) / "man").glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})
        if version == "editable" or not to_be_compiled():
            return
        self._directory = tempfile.TemporaryDirectory(prefix="nitro-vsock-")
        directory = Path(self._directory.name)
        try:
            compile_modules(Path(self.root, "src/nitro_vsock"), directory)
        except CompileError as error:
            if os.environ.get("NITRO_VSOCK_COMPILE"):
                sys.exit(f"error: {error}")
            print(f"warning: nitro-vsock will run interpreted, which is slower: {error}", file=sys.stderr)
            return
        build_data["infer_tag"] = True
        build_data["pure_python"] = False
        for library in directory.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            build_data["force_include"][str(library)] = str(library.relative_to(directory))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """The wheel is written: remove what it was made from."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def compile_modules(package: Path, directory: Path) -> None:
    """Compile a copy of the package in ``directory``, and leave the libraries there.

    Raises:
        CompileError: That failed.
    """
    copy = directory / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    modules = [str(Path(package.name, f"{name}.py")) for name in MODULES]
    process = subprocess.run(
        [sys.executable, "-c", SETUP, *modules],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if process.returncode:
        raise CompileError("compiling failed:\n" + "\n".join(process.stdout.splitlines()[-20:]))
    shutil.rmtree(directory / "build", ignore_errors=True)
