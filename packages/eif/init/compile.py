"""Compile a freestanding Linux program: ``python compile.py SOURCE OUTPUT [ARCHITECTURE]``.

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
    *("-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-mgeneral-regs-only"),
    *("-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-pie", "-fno-ident"),
]
MACHINE_FLAGS = {
    "x86_64": ["-march=x86-64", "-fcf-protection=none"],
    "aarch64": ["-march=armv8-a", "-mbranch-protection=none", "-mno-outline-atomics"],
}
CROSS_COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
"""As Debian and others call them; also in packages named ``gcc-x86-64-linux-gnu`` and the like."""
LINKER_FLAGS = [
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-s"),
    *("-Wl,-z,noexecstack", "-Wl,-z,norelro", "-Wl,-z,noseparate-code"),
]


class CompileError(Exception):
    """The program could not be compiled; the message shows the compiler's words."""


class NoCompilerError(CompileError):
    """There is no compiler on this machine; the message says what to install."""


def compiler(architecture: str) -> list[str]:
    """The command that compiles for a processor: ``CC`` on a machine of that kind, or the usual name.

    A compiler for another processor is named in ``CC_X86_64`` or ``CC_AARCH64``.

    Raises:
        NoCompilerError: There is no such command.
    """
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    native = machine == architecture
    variable = "CC" if native else f"CC_{architecture.upper()}"
    command = shlex.split(os.environ.get(variable, "")) or ["cc" if native else CROSS_COMPILERS[architecture]]
    if shutil.which(command[0]) is None:
        package = "gcc" if native else f"gcc-{architecture.replace('_', '-')}-linux-gnu"
        raise NoCompilerError(
            f"the guest's programs are in C, and there is no compiler {command[0]!r} for {architecture}: "
            f"install one (Debian: apt install {package}), or name yours in {variable}"
        )
    return command


def compile_program(source: Path, output: Path, architecture: str = "x86_64") -> None:
    """Make the executable `output` of one C file and the headers beside this script.

    Raises:
        NoCompilerError: There is no compiler.
        CompileError: The compiler refuses.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        result = Path(scratch, output.name)
        flags = [*COMPILER_FLAGS, *MACHINE_FLAGS[architecture], f"-I{Path(__file__).parent}"]
        command = [*compiler(architecture), *flags, str(source), *LINKER_FLAGS, "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"cannot compile {source}:\n{done.stderr.strip()}")
        result.chmod(0o755)
        result.replace(output)


if __name__ == "__main__":
    try:
        compile_program(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except CompileError as error:
        sys.exit(f"error: {error}")
