"""Compile a freestanding x86-64 Linux program: ``python compile.py SOURCE OUTPUT``.

Only a compiler and a linker are needed. Nothing of the build's place or time enters the result, so the same
compiler makes the same bytes in any directory.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER_FLAGS = [
    *("-std=c11", "-Wall", "-Wextra", "-Werror"),
    *("-Os", "-march=x86-64", "-mgeneral-regs-only"),
    *("-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-pie"),
    *("-fno-ident", "-fcf-protection=none"),
]
LINKER_FLAGS = [
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-s"),
    *("-Wl,-z,noexecstack", "-Wl,-z,norelro", "-Wl,-z,noseparate-code"),
]


class CompileError(Exception):
    """The program could not be compiled; the message shows the compiler's words."""


class NoCompilerError(CompileError):
    """There is no compiler on this machine; the message says what to install."""


def compiler() -> list[str]:
    """The command that compiles for x86-64: ``CC``, or the usual name on this machine.

    Raises:
        NoCompilerError: There is no such command.
    """
    native = platform.machine() in {"x86_64", "AMD64"}
    command = shlex.split(os.environ.get("CC", "")) or ["cc" if native else "x86_64-linux-gnu-gcc"]
    if shutil.which(command[0]) is None:
        package = "gcc" if native else "gcc-x86-64-linux-gnu"
        raise NoCompilerError(
            f"the guest's programs are in C, and there is no compiler {command[0]!r}: "
            f"install one (Debian: apt install {package}), or name yours in CC"
        )
    return command


def compile_program(source: Path, output: Path) -> None:
    """Make the executable `output` of one C file and the headers beside this script.

    Raises:
        NoCompilerError: There is no compiler.
        CompileError: The compiler refuses.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        result = Path(scratch, output.name)
        include = f"-I{Path(__file__).parent}"
        command = [*compiler(), *COMPILER_FLAGS, include, str(source), *LINKER_FLAGS, "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"cannot compile {source}:\n{done.stderr.strip()}")
        result.chmod(0o755)
        result.replace(output)


if __name__ == "__main__":
    try:
        compile_program(Path(sys.argv[1]), Path(sys.argv[2]))
    except CompileError as error:
        sys.exit(f"error: {error}")
