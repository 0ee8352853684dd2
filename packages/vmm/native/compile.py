"""Compile the library that is loaded in front of Unicorn: ``python compile.py OUTPUT``.

It needs a compiler and the C library's headers, on Linux on x86-64. It uses only functions of the C library
that glibc has had since 2.17, so that one build serves every distribution that Python wheels are made for.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = [
    *("-std=gnu11", "-Wall", "-Wextra", "-Werror"),
    *("-O2", "-march=x86-64", "-fno-math-errno", "-ffp-contract=off", "-foptimize-sibling-calls"),
    *("-fPIC", "-shared", "-fvisibility=hidden", "-fno-ident"),
    *("-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack", "-Wl,-z,now"),
]


class CompileError(Exception):
    """The library could not be compiled; the message shows the compiler's words."""


def obstacle() -> str:
    """Why it cannot be compiled here, for people; empty if it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"it is for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if shutil.which(_compiler()[0]) is None:
        return f"there is no C compiler {_compiler()[0]!r} (Debian: apt install gcc, or name yours in CC)"
    return ""


def compile_library(output: Path) -> None:
    """Make the shared library ``output`` of all C files beside this script.

    Raises:
        CompileError: The compiler refuses.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(path.relative_to(SOURCES)) for path in sorted(SOURCES.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        result = Path(scratch, output.name)
        command = [*_compiler(), *FLAGS, *sources, "-o", str(result.absolute())]
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"cannot compile {SOURCES}:\n{done.stderr.strip()}")
        # In place at once: a running process keeps the file that it has mapped.
        result.replace(output)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


if __name__ == "__main__":
    try:
        compile_library(Path(sys.argv[1]))
    except CompileError as error:
        sys.exit(f"error: {error}")
