"""Put Python with boto3 and nitro-nsm into an enclave's root directory: ``python tools/kms_boto3.py root``.

Python is Debian's, and the libraries are wheels that pip gets for it. Both are kept in ``.cache``. Of the
descriptions of AWS's services, which are most of boto3, only that of KMS is taken.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import images
import userland
from debian import CACHE, DebianError, say

SITE = CACHE / "kms-boto3-site"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")
KEPT = ("lib64", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/python3*", "usr/bin/python3*", "lib")
"""What Python needs of the user space."""
UNNEEDED = ("perl*", "gconv", "audit", "security", "lib*san.so*", "python3.*/ensurepip", "python3.*/test")
SERVICES = {"kms"}


def site() -> Path:
    """The directory with boto3 and nitro-nsm, for Debian's Python; made once.

    Raises:
        DebianError: Debian's packages cannot be fetched.
        ImageError: pip cannot get the libraries.
    """
    if SITE.is_dir():
        return SITE
    python = next((userland.unpack() / "usr/bin").glob("python3.*[0-9]"))
    with TemporaryDirectory(dir=CACHE) as scratch:
        wheels, unfinished = Path(scratch, "wheels"), Path(scratch, "site")
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(images.ROOT / "packages/nsm"))
        platforms = [option for name in PLATFORMS for option in ("--platform", name)]
        _pip(
            *("install", "--target", str(unfinished), "--only-binary", ":all:", *platforms),
            *("--python-version", python.name.removeprefix("python"), "--implementation", "cp"),
            *("boto3>=1.40,<2", *map(str, wheels.iterdir())),
        )
        for service in (unfinished / "botocore/data").iterdir():
            if service.is_dir() and service.name not in SERVICES:
                shutil.rmtree(service)
        unfinished.rename(SITE)
    return SITE


def install(root: Path) -> None:
    """Put all of it into a directory.

    Raises:
        DebianError: Debian's packages cannot be fetched.
        ImageError: pip cannot get the libraries.
    """
    libraries, system = site(), userland.unpack()
    for pattern in KEPT:
        for found in system.glob(pattern):
            target = root / found.relative_to(system)
            target.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir() and not found.is_symlink():
                shutil.copytree(
                    found,
                    target,
                    symlinks=True,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(*UNNEEDED, "__pycache__"),
                )
            else:
                shutil.copy2(found, target, follow_symlinks=False)
    shutil.copytree(libraries, root / "site", dirs_exist_ok=True)
    shutil.copytree(images.ROOT / "packages/nsm/src", root / "site", dirs_exist_ok=True)  # as it is now
    _compile(root.absolute())
    for directory in ("etc", "tmp"):
        (root / directory).mkdir(exist_ok=True)


def _compile(root: Path) -> None:
    """Compile all modules, because an emulated processor takes a minute to do so at each start."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    python = next((root / "usr/bin").glob("python3.*[0-9]"))
    loader = [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(python)]
    # Not by the time of the sources, so that the same packages make the same image.
    options = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    places = [str(path) for path in (root / "usr/lib" / python.name, root / "usr/lib/python3", root / "site")]
    subprocess.run(
        [*loader, *options, *places],
        env={"PYTHONHOME": str(root / "usr")},
        stdout=subprocess.DEVNULL,  # some of the sources are templates, and no Python
        check=False,
    )


def _pip(*arguments: str) -> None:
    say(f"pip {arguments[0]}, once")
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise images.ImageError("pip failed, see its message above")


def main() -> int:
    """Fill the directory; 0 when that is done."""
    parser = argparse.ArgumentParser(description="Put Python with boto3 into an enclave's root directory.")
    parser.add_argument("root", type=Path, help="the directory")
    options = parser.parse_args()
    try:
        install(options.root)
    except (DebianError, images.ImageError) as error:
        say(f"error: {error}")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
