"""Build nitro-vmm: hatchling, and two parts in C wherever they can be compiled.

The library in front of Unicorn (the folder ``native``) makes a wheel one for Linux on x86-64. What a guest's
accesses to its vsock device pass through is compiled with mypyc, as nitro-vsock's data path is, which makes a
wheel one for one Python as well. Without a compiler the wheel is for any machine: vmm is slower then, and
offers fewer instructions to the guest.

Editable installs have the library, and run Python's sources as they are. mypyc works in a temporary
directory, so that a build leaves nothing in a checkout that such an install would load.

``VMM_COMPILE`` chooses for mypyc: ``1`` compiles or fails, ``0`` does not compile. Without it a wheel
is compiled if there are a C compiler and Python's headers, and if that fails its Python is as it was. (Names
that begin with ``NITRO_VMM_`` are settings of vmm's.)
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import *  # noqa: F403 (the other hooks of a back-end)
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "native"))
from compile import CompileError, compile_library, obstacle

OUTPUT = "src/nitro_vmm/accel/unicorn/libnitro.so"
TAG = "py3-none-manylinux_2_17_x86_64"

MODULES = (
    "accel/unicorn/cpu",
    "accel/unicorn/interrupts",
    "accel/unicorn/locked_bus",
    "accel/unicorn/native_engine",
    "accel/unicorn/vcpu",
    "devices/io_apic",
    "devices/local_apic",
    "devices/virtio_mmio",
    "devices/vsock",
    "machine/bus",
)
"""What is called for each packet that a guest sends or receives, besides `nitro_vsock`."""

REQUIREMENTS = ("mypy>=2.0,<3", "setuptools>=77,<90")
"""What mypyc needs. What the package itself needs is not there, and its types are checked elsewhere."""

SETTINGS = """
[mypy]
ignore_missing_imports = True
follow_imports = silent
[mypy-unicorn.*]
follow_imports = skip
"""

SETUP = """
import sys
from setuptools import setup
from mypyc.build import mypycify
setup(
    name="nitro_vmm",
    ext_modules=mypycify(["--config-file=mypy.ini", *sys.argv[1:]], group_name="nitro_vmm"),
    script_args=["build_ext", "--inplace"],
)
"""


def to_be_compiled() -> bool:
    """Whether to try mypyc."""
    choice = os.environ.get("VMM_COMPILE", "")
    if choice not in {"", "0", "1"}:
        sys.exit(f"error: VMM_COMPILE is {choice!r}: choose 0 or 1, or leave it out")
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    possible = sys.implementation.name == "cpython" and headers and not obstacle()
    return choice == "1" or (not choice and possible)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a wheel requires to be built (PEP 517)."""
    requirements: list[str] = build.get_requires_for_build_wheel(config_settings)
    return [*requirements, *REQUIREMENTS] if to_be_compiled() else requirements


class CompileHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the results packed although git ignores them.

        Args:
            version: "standard" or "editable"; both want the library.
            build_data: What hatchling is told.
        """
        # Manual pages are there if tools/man_pages.py has written them.
        pages = sorted((Path(self.root) / "man").glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})
        library = Path(self.root, OUTPUT)
        if reason := obstacle() or self._compile_library(library):
            self.app.display_warning(f"building without the native part: {reason}")
            library.unlink(missing_ok=True)
        else:
            build_data["artifacts"].append(OUTPUT)
            build_data["pure_python"] = False
            build_data["tag"] = TAG
        if version != "editable" and to_be_compiled():
            self._compile_modules(build_data)

    def _compile_library(self, library: Path) -> str:
        """Make it; returns why that failed, or nothing."""
        try:
            compile_library(library)
        except CompileError as error:
            return str(error)
        return ""

    def _compile_modules(self, build_data: dict[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="nitro-vmm-")
        directory = Path(self._directory.name)
        try:
            compile_modules(Path(self.root, "src/nitro_vmm"), directory)
        except CompileError as error:
            if os.environ.get("VMM_COMPILE"):
                sys.exit(f"error: {error}")
            self.app.display_warning(f"nitro-vmm's devices will run interpreted, which is slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data.pop("tag", None)
        for module in directory.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            build_data["force_include"][str(module)] = str(module.relative_to(directory))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """The wheel is written: remove what it was made from."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def compile_modules(package: Path, directory: Path) -> None:
    """Compile a copy of the package in ``directory``, and leave what comes of it there.

    Raises:
        CompileError: That failed.
    """
    copy = directory / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "mypy.ini").write_text(SETTINGS)
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
