"""``nsm device`` makes a real device, in an enclave of Debian's kernel: ``nox -s python-guests``."""

import errno
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import images
import kms_boto3
from debian import DEBIAN

pytestmark = pytest.mark.skipif(
    "PYTHON_GUESTS" not in os.environ,
    reason="takes a minute: nox -s python-guests",
)

CHECK = Path(__file__).parent / "guest" / "cuse_check.py"


def cuse_module(kernel: Path, directory: Path) -> bytes:
    """The module of a kernel's package."""
    subprocess.run(["dpkg-deb", "--extract", kernel, directory], check=True)
    return lzma.decompress(next(directory.rglob("cuse.ko.xz")).read_bytes())


def test_programs_in_a_guest_ask_a_module_that_is_a_program(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "check").mkdir(parents=True)
    try:
        kms_boto3.install(root)
        kernel = DEBIAN.package("linux-image-cloud-amd64")
    except images.ERRORS as error:
        pytest.skip(str(error))
    (root / "check/cuse.ko").write_bytes(cuse_module(kernel, tmp_path / "kernel"))
    shutil.copy(CHECK, root / "check")
    image = tmp_path / "cuse.eif"
    build = [images.command("eif"), "build", "--kernel-package", str(kernel), "--rootfs", str(root)]
    build += [
        "--output",
        str(image),
        "--cmd",
        "/usr/bin/python3 /check/cuse_check.py",
        "--env",
        "PYTHONPATH=/site",
    ]
    subprocess.run([*build, "--env", "XDG_DATA_HOME=/tmp"], check=True, stdout=subprocess.DEVNULL)

    console = images.boot(image, max(1024, 4 * image.stat().st_size >> 20)).replace("\r", "")

    print(console)
    assert " at /dev/nsm2\nmode 666\n4 documents\n" in console
    assert f"long {errno.EMSGSIZE}\nnowhere {errno.EFAULT}\nanother {errno.EINVAL}\n" in console
    assert "server 0, device False\n" in console
