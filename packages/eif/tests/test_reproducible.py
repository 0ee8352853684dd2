"""The same inputs make the same file, whoever builds it, where and when."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import Container
from debian_packages import module, package

BUILD = """
import os, sys
import nitro_eif, nitro_eif.cli, nitro_eif.commands.build
for name in nitro_eif.__all__:
    getattr(nitro_eif, name)
user = int(sys.argv[1])
if user:
    # Only now: another user may not be allowed to read this interpreter's files.
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
sys.exit(nitro_eif.cli.main(sys.argv[2:]))
"""


def build(
    source: list[str], deb: Path, output: Path, *, cwd: Path, umask: int, user: int, **env: str
) -> bytes:
    inputs = [
        "--kernel-package",
        str(deb),
        "--init",
        str(deb.parent / "init"),
        "--build-tool-version",
        "1",
        "--compress",
        "gzip",
    ]
    subprocess.run(
        [sys.executable, "-c", BUILD, str(user), "build", *source, *inputs, "--output", str(output)],
        cwd=cwd,
        umask=umask,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1769860800", "HOME": str(cwd)} | env,
        check=True,
    )
    return output.read_bytes()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that another user may enter; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory(prefix="eif-builds-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("kind", ["image", "archive", "directory"])
def test_builds_are_the_same_in_any_place_zone_locale_umask_and_for_any_user(
    open_path: Path, kind: str
) -> None:
    container = Container()
    layout = container.layout(open_path / "layout")
    deb = package(open_path / "linux.deb", {"vsock.ko": module(), "nsm.ko": module()})
    (open_path / "init").write_bytes(b"init")
    root = open_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/app").write_bytes(b"app")
    (open_path / "root.tar").write_bytes(container.layers[0])
    source = {
        "image": ["--image", f"oci:{layout}"],
        "archive": ["--rootfs", str(open_path / "root.tar"), "--cmd", "/bin/app"],
        "directory": ["--rootfs", str(root), "--cmd", "/bin/app"],
    }[kind]
    places = [open_path / "one", open_path / "two"]
    for place in places:
        place.mkdir()
    other_user = 65534 if os.getuid() == 0 else 0
    if other_user:
        os.chown(places[1], other_user, other_user)
    (root / "bin/app").chmod(0o755)

    first = build(source, deb, places[0] / "x.eif", cwd=open_path, umask=0o022, user=0, TZ="UTC", LC_ALL="C")
    os.utime(root / "bin/app", (1, 1))
    second = build(
        *(source, deb, places[1] / "y.eif"),
        cwd=places[1],
        umask=0o077,
        user=other_user,
        TZ="Pacific/Chatham",
        LC_ALL="C.UTF-8",
        PYTHONHASHSEED="7",
    )

    assert first == second
