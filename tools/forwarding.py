"""Try the daemon on a kernel's own vsock (``--forward-cid``, ``--forward-listen``).

Few machines have AF_VSOCK with a loopback. The guest kernel has, so the tests that need one run in an
enclave of our own, in a Debian user space with this machine's wheels.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import images
import userland
from debian import complain, say

VSOCK = images.ROOT / "packages" / "vsock"
TESTS = ("test_daemon_forward.py", "vhost_user_guest.py")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
MEMORY_MIB = 2048


def add_package(root: Path) -> None:
    """Put nitro-vsock, its tests and what both require into the user space.

    Raises:
        ImageError: pip has no wheels for the user space's Python; it has said why.
    """
    version = next((root / "usr/bin").glob("python3.*")).name.removeprefix("python")
    library = root / "usr/local/lib" / f"python{version}" / "dist-packages"
    tests = root / "forwarding" / "tests"
    requirements = tomllib.loads((VSOCK / "pyproject.toml").read_text())["project"]["dependencies"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary",
        ":all:",
        "--target",
        str(library),
    ]
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    install = [*pip, "--python-version", version, *platforms, *requirements, "pytest"]
    if subprocess.run(install, check=False).returncode != 0:
        raise images.ImageError(f"pip found no wheels for Python {version}, see its message above")
    cached = shutil.ignore_patterns("__pycache__")
    shutil.copytree(VSOCK / "src" / "nitro_vsock", library / "nitro_vsock", ignore=cached)
    metadata = library / "nitro_vsock-0.dist-info"  # which the command asks for its version
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nitro-vsock\nVersion: 0\n")
    tests.mkdir(parents=True)
    for name in TESTS:
        shutil.copy(VSOCK / "tests" / name, tests)
    shutil.copy(images.GUEST_SOURCES / "forwarding.sh", root / "forwarding")


def main() -> int:
    """Boot, and see that all tests ran in the guest, and passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    try:
        with TemporaryDirectory() as scratch:
            root = Path(scratch, "root")
            shutil.copytree(userland.unpack(), root, symlinks=True)
            add_package(root)
            image = images.build("forwarding", "nitro", root, "--cmd", "/bin/sh /forwarding/forwarding.sh")
    except images.ERRORS as error:
        return complain(error)
    console = images.boot(image, MEMORY_MIB)
    summary = re.search(r"=+ (\d+ passed) in .* =+", console)  # nothing failed, nothing was skipped
    if summary is None:
        say(f"{console}\nerror: not all tests passed in the guest, see its console above")
        return 1
    print(f"in the guest: {summary[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
