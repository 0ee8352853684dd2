"""Build a guest kernel like AWS's from Debian's kernel source: ``python tools/guest_kernel.py``.

It takes about nine minutes on two cores, once: the result stays in ``.cache/guest-kernel``.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from debian import DEBIAN, DebianError, say

SOURCE_PACKAGE = "linux-source-6.12"
FRAGMENT = Path(__file__).resolve().parent / "guest" / "kernel.config"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "guest-kernel"
KERNEL = CACHE / "bzImage"
NEEDED_PROGRAMS = {"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl"}
NEEDED_HEADERS = {"/usr/include/gelf.h": "libelf-dev", "/usr/include/stdio.h": "libc6-dev"}
# What the build writes into the kernel of its place and time.
REPRODUCIBLE = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "nitro", "KBUILD_BUILD_HOST": "enclave"}
DISK_BYTES = 3 << 30  # the source unpacked and its objects


class BuildError(Exception):
    """The kernel cannot be built; the message says why and what to do."""


def check_host() -> None:
    """Say at once what would be missing after minutes.

    Raises:
        BuildError: a program, a header or disk space is missing.
    """
    packages = [package for program, package in NEEDED_PROGRAMS.items() if shutil.which(program) is None]
    packages += [package for header, package in NEEDED_HEADERS.items() if not Path(header).exists()]
    if packages:
        raise BuildError(f"building a kernel needs more programs here: apt install {' '.join(packages)}")
    free = shutil.disk_usage(CACHE).free
    if free < DISK_BYTES:
        raise BuildError(
            f"building a kernel needs {DISK_BYTES >> 30} GiB in {CACHE}, {free / 2**30:.1f} are free"
        )


def unpack(package: Path, target: Path) -> None:
    """Unpack the source tree, which is a tar archive inside of the package."""
    say(f"unpacking {package.name} ({package.stat().st_size / 2**20:.0f} MiB)")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as outer:
        with tarfile.open(fileobj=outer.stdout, mode="r|") as files:
            archive = next(member for member in files if re.search(r"linux-source-.*\.tar\.xz$", member.name))
            stream = files.extractfile(archive)
            assert stream is not None  # noqa: S101 - a regular file has contents
            with tarfile.open(fileobj=stream, mode="r|xz") as source:
                source.extractall(target, filter="tar")
        outer.communicate()


def configure(source: Path) -> None:
    """Make the configuration, and see that nothing of what we ask for was dropped.

    Raises:
        BuildError: the kernel's own rules do not allow an option.
    """
    make(source, "tinyconfig")
    merge = ["scripts/kconfig/merge_config.sh", "-m", ".config", str(FRAGMENT)]
    subprocess.run(merge, cwd=source, check=True, stdout=subprocess.DEVNULL)
    make(source, "olddefconfig")
    wanted = {line for line in FRAGMENT.read_text().splitlines() if "CONFIG_" in line}
    unset = {line for line in wanted if line.endswith(" is not set")}
    settings = (source / ".config").read_text()
    dropped = {line for line in wanted - unset if line not in settings.splitlines()}
    dropped |= {line for line in unset if re.search(rf"^{line.split()[1]}=", settings, re.MULTILINE)}
    if dropped:
        raise BuildError(f"{SOURCE_PACKAGE} does not take these options: {', '.join(sorted(dropped))}")


def make(source: Path, *arguments: str) -> None:
    """Run the kernel's make quietly; its errors are shown."""
    command = ["make", "--silent", f"--jobs={os.cpu_count()}", *arguments]
    subprocess.run(
        command, cwd=source, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **REPRODUCIBLE}
    )


def build() -> Path:
    """The kernel, built if it is not there yet or the configuration is newer.

    Raises:
        BuildError: something is missing or refuses.
        DebianError: the source cannot be fetched.
    """
    if KERNEL.exists() and (CACHE / "fragment").read_bytes() == FRAGMENT.read_bytes():
        return KERNEL
    CACHE.mkdir(parents=True, exist_ok=True)
    check_host()
    package = DEBIAN.package(SOURCE_PACKAGE)
    scratch = CACHE / "build"
    shutil.rmtree(scratch, ignore_errors=True)
    started = time.monotonic()
    unpack(package, scratch)
    (source,) = scratch.iterdir()
    configure(source)
    say(f"building {source.name}: about nine minutes on two cores")
    try:
        make(source, "bzImage")
    except subprocess.CalledProcessError as error:
        raise BuildError(f"make failed, see its messages above; the tree is in {source}") from error
    shutil.copy(source / ".config", CACHE / "config")
    shutil.copy(FRAGMENT, CACHE / "fragment")
    (source / "arch/x86/boot/bzImage").rename(KERNEL)
    shutil.rmtree(scratch)
    say(f"{KERNEL}: {KERNEL.stat().st_size / 2**20:.1f} MiB, built in {time.monotonic() - started:.0f} s")
    return KERNEL


def main() -> int:
    """Build it; print where it is."""
    try:
        print(build())
    except (BuildError, DebianError) as error:
        say(f"error: {error}")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
