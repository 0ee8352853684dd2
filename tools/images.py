"""The image that the tools boot: a small application on busybox, with one of two kernels."""

import io
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import guest_kernel
from debian import DEBIAN, DebianError, say
from nitro_eif import Node, write_cpio

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "images"
GUEST_SOURCES = Path(__file__).resolve().parent / "guest"
SHARED_KERNEL = ROOT.parent / "shared" / "guest" / "bzImage-nitro"
GUEST_PROGRAMS = ROOT / "integration-tests" / "guest"
AGENT_SOURCE = GUEST_PROGRAMS / "vsock_agent.c"
NSM_CHECK_SOURCE = GUEST_PROGRAMS / "nsm_check.c"
AGENT_PORT = 9999
KERNELS = ("debian", "nitro")
# The names that busybox gets: the application's, and those that one wants when changing it.
COMMANDS = ("cat", "echo", "env", "id", "ls", "mount", "ps", "sh", "sleep", "uname")


class ImageError(Exception):
    """The image cannot be built; the message says why and what to do."""


EMULATED = ("--accel", "unicorn")
"""Has `vmm` emulate the processor, also where there is KVM, because peers that it is measured against do."""


def command(name: str) -> str:
    """The path of one of this project's commands, installed beside the Python that runs us."""
    return str(Path(sys.executable).parent / name)


def nitro_kernel() -> Path:
    """A kernel like AWS's: the one that was built here, or one that lies beside the repository.

    Raises:
        ImageError: there is none.
    """
    for kernel in (guest_kernel.KERNEL, SHARED_KERNEL):
        if kernel.exists():
            return kernel
    raise ImageError("there is no kernel like AWS's yet: build one with `nox -s guest-kernel`, once")


def kernel_options(kernel: str) -> list[str]:
    """The options of ``eif build`` for one of `KERNELS`.

    Raises:
        DebianError: the distribution's kernel cannot be fetched.
        ImageError: there is no kernel like AWS's.
    """
    if kernel == "debian":
        return ["--kernel-package", str(DEBIAN.package("linux-image-cloud-amd64"))]
    return ["--kernel", str(nitro_kernel())]


def build(name: str, kernel: str, root_directory: Path, *options: str) -> Path:
    """Build an image of a directory with the project's own command.

    Args:
        name: of the image in the cache.
        kernel: one of `KERNELS`.
        root_directory: what the application sees as its root.
        options: more for ``eif build``, such as what to run.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: ``eif build`` refuses; it has said why.
    """
    image = CACHE / f"{name}-{kernel}.eif"
    image.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--rootfs", str(root_directory), *kernel_options(kernel), *options, "--output", str(image)]
    say(f"building {image}")
    if subprocess.run([command("eif"), "build", *arguments], stdout=sys.stderr, check=False).returncode != 0:
        raise ImageError("eif build failed, see its message above")
    return image


def boot(image: Path, memory_mib: int) -> str:
    """Boot an image and see it through to its end; returns what was on its console."""
    say(f"booting {image.stat().st_size / 2**20:.0f} MiB in {memory_mib} MiB")
    machine = [command("vmm"), "run", "--console", str(image), "--memory-mib", str(memory_mib)]
    return subprocess.run(machine, stdout=subprocess.PIPE, check=False).stdout.decode(errors="replace")


def hello(kernel: str, *options: str) -> Path:
    """The hello image: a script that says hello and asks the security module for its measurements.

    Where the cache can only be read, as in `kvm`, it is the one that was made before.

    Args:
        kernel: one of `KERNELS`.
        options: more for ``eif build``.

    Raises:
        DebianError: a package cannot be fetched.
        ImageError: a part cannot be built.
    """
    image = CACHE / f"hello-{kernel}.eif"
    if must_stay(image):
        return image
    package = DEBIAN.package("busybox-static")
    with TemporaryDirectory() as scratch:
        unpacked, root = Path(scratch, "busybox"), Path(scratch, "hello")
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        programs = root / "bin"
        programs.mkdir(parents=True)
        shutil.copy(next(unpacked.glob("**/bin/busybox")), programs / "busybox")
        for name in COMMANDS:
            (programs / name).symlink_to("busybox")
        shutil.copy(GUEST_SOURCES / "hello.sh", programs / "hello")
        compile_program(GUEST_SOURCES / "nsm.c", programs / "nsm")
        return build("hello", kernel, root, "--cmd", "/bin/hello", *options)


def launch(image: Path, *options: str) -> list[str]:
    """The command that runs an image and shows its console."""
    return [command("vmm"), "run", "--console", str(image), *options]


def must_stay(kept: Path) -> bool:
    """Whether what was made before is all that can be had, because the cache can only be read."""
    return kept.exists() and not os.access(CACHE, os.W_OK)


def build_of_ramdisk(image: Path, ramdisk: Path, cmdline: str) -> None:
    """Make an image of the kernel like AWS's and of a ramdisk that is all there is.

    Raises:
        ImageError: it cannot be built.
    """
    image.parent.mkdir(parents=True, exist_ok=True)
    parts = ["--kernel", str(nitro_kernel()), "--ramdisk", str(ramdisk), "--cmdline", cmdline]
    build = [command("eif"), "build", *parts, "--output", str(image)]
    if subprocess.run(build, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise ImageError("eif build failed, see its message above")


def agent() -> Path:
    """An image whose first process takes orders at its parent's vsock port `AGENT_PORT`.

    Where the cache can only be read, it is the one that was made before.

    Raises:
        ImageError: a part cannot be built.
    """
    image = CACHE / "agent-nitro.eif"
    if must_stay(image):
        return image
    with TemporaryDirectory() as scratch:
        ramdisk = Path(scratch, "agent.cpio")
        ramdisk.write_bytes(agent_ramdisk(compile_agent(Path(scratch)), []))
        build_of_ramdisk(image, ramdisk, "console=ttyS0 quiet panic=-1 reboot=k")
    return image


def nsm_check() -> Path:
    """An image whose application tries all that a security module can, and prints a document.

    Where the cache can only be read, it is the one that was made before.

    Raises:
        ImageError: a part cannot be built.
    """
    image = CACHE / "nsm-check-nitro.eif"
    if must_stay(image):
        return image
    with TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        compile_static(NSM_CHECK_SOURCE, root / "nsm_check")
        return build("nsm-check", "nitro", root, "--cmd", "/nsm_check")


def second_life() -> Path:
    """An image whose init tells what enclaves that go on from one saved machine must not share.

    Where the cache can only be read, it is the one that was made before.

    Raises:
        ImageError: a part cannot be built.
    """
    image = CACHE / "second-life-nitro.eif"
    if must_stay(image):
        return image
    with TemporaryDirectory() as scratch:
        program, ramdisk = Path(scratch, "init"), Path(scratch, "init.cpio")
        compile_static(GUEST_PROGRAMS / "second_life.c", program)
        with ramdisk.open("wb") as file:
            write_cpio(file, [("init", Node.file(program.read_bytes(), 0o755))])
        build_of_ramdisk(image, ramdisk, "reboot=k panic=1 console=ttyS0 loglevel=8")
    return image


def emulated_console(image: Path) -> str:
    """What an image prints on the emulated processor, with a kernel that is quiet.

    Where the cache can only be read, it is what was kept before: a processor that is emulated on one that is
    emulated takes longer than anybody wants to wait.

    Raises:
        ImageError: it does not run.
    """
    kept = image.with_suffix(".console")
    if must_stay(kept):
        return kept.read_text()
    machine = [
        command("vmm"),
        "run",
        "--console",
        "--quiet",
        "--accel",
        "unicorn",
        "--cmdline-append",
        "quiet",
        str(image),
    ]
    done = subprocess.run(machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise ImageError(f"{image.name} ended with exit code {done.returncode} on the emulated processor")
    text = done.stdout.decode(errors="replace").replace("\r", "")
    kept.write_text(text)
    return text


def compile_static(source: Path, output: Path) -> None:
    """Compile a program of the tests', with the C library in it.

    Raises:
        ImageError: there is no compiler, or it refuses; it has said why.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ImageError(f"no C compiler for {source.name}")
    options = ["-static", "-O2", "-Wall", "-Werror"]
    if subprocess.run([compiler, *options, "-o", output, source], check=False).returncode != 0:
        raise ImageError(f"{source.name} could not be compiled, see the message above")


def compile_agent(directory: Path) -> bytes:
    """The agent of `agent` as a program.

    Raises:
        ImageError: there is no compiler, or it refuses; it has said why.
    """
    program = directory / "agent"
    compile_static(AGENT_SOURCE, program)
    return program.read_bytes()


def agent_ramdisk(program: bytes, modules: list[tuple[str, bytes]]) -> bytes:
    """A ramdisk of the agent and the kernel modules that it loads, in this order."""
    files = {
        "init": Node.file(program, 0o755),
        "dev": Node.directory(),
        "proc": Node.directory(),
        "modules": Node.directory(),
        "modules/order": Node.file("".join(f"{name}\n" for name, _ in modules).encode()),
        **{f"modules/{name}": Node.file(content) for name, content in modules},
    }
    archive = io.BytesIO()
    write_cpio(archive, files.items())
    return archive.getvalue()


def compile_program(source: Path, output: Path) -> None:
    """Compile a program for the guest, as the init is.

    Raises:
        ImageError: there is no compiler, or it refuses; it has said why.
    """
    compiler = ROOT / "packages" / "eif" / "init" / "compile.py"
    if subprocess.run([sys.executable, compiler, source, output], check=False).returncode != 0:
        raise ImageError(f"{source.name} could not be compiled, see the message above")


ERRORS = (DebianError, ImageError, guest_kernel.BuildError)


def main() -> int:
    """Build every image that tests boot, for a place where nothing can be built; 4 if one cannot be."""
    code = 0
    makers: list[Callable[[], Path]] = [partial(hello, "nitro"), partial(hello, "debian"), agent]
    makers.append(second_life)
    try:
        nitro_kernel()
    except ImageError:
        makers.insert(0, guest_kernel.build)
    for make in makers:
        try:
            make()
        except ERRORS as error:
            say(f"error: {error}")
            code = 4
    try:
        emulated_console(nsm_check())
    except ERRORS as error:
        say(f"error: {error}")
        code = 4
    return code


if __name__ == "__main__":
    sys.exit(main())
