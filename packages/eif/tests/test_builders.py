"""Two builders with nothing in common make the same files of the same inputs, whatever these are.

A builder is a process that stays: starting Python for each of some hundred builds would take minutes.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containers import Container
from debian_packages import module, package
from nitro_eif import Eif
from nitro_eif.testing import tar_member

BUILDER = """
import contextlib, io, json, os, sys
import nitro_eif, nitro_eif.cli, nitro_eif.commands.build
from nitro_eif.filesystem.compression import zstd_module
from nitro_eif.image.metadata import tool_version
zstd_module()
tool_version()
for name in nitro_eif.__all__:
    getattr(nitro_eif, name)
user = int(sys.argv[1])
if user:
    # Only now: another user may not be allowed to read this interpreter's files.
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()):
        code = nitro_eif.cli.main(json.loads(line))
    print(code, flush=True)
"""


class Builder:
    """A user on a machine: a place, a time zone, a locale, a umask."""

    def __init__(self, place: Path, user: int, umask: int, stack: ExitStack, **environment: str) -> None:
        self.place = place
        self.user = user
        place.mkdir()
        if user:
            os.chown(place, user, user)
        self.process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", BUILDER, str(user)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=place,
                umask=umask,
                env=os.environ | {"SOURCE_DATE_EPOCH": "1769860800", "HOME": str(place)} | environment,
            )
        )
        stack.callback(self.process.kill)

    def build(self, arguments: list[str]) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        output = self.place / "out.eif"
        self.process.stdin.write(json.dumps(["build", *arguments, "--output", str(output)]) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "0\n"
        return output.read_bytes()


@pytest.fixture(scope="module")
def builders() -> Iterator[list[Builder]]:
    other_user = 65534 if os.getuid() == 0 else 0
    with tempfile.TemporaryDirectory(prefix="eif-builders-") as name, ExitStack() as stack:
        root = Path(name)
        root.chmod(0o755)
        first = Builder(root / "one", 0, 0o022, stack, TZ="UTC", LC_ALL="C", USER="ann")
        second = Builder(
            *(root / "another place", other_user, 0o077, stack),
            TZ="Pacific/Chatham",
            LC_ALL="C.UTF-8",
            PYTHONHASHSEED="7",
            USER="bob",
            HOSTNAME="elsewhere",
        )
        for builder in (first, second):
            package(builder.place / "linux.deb", {"vsock.ko": module(), "nsm.ko": module()})
            (builder.place / "init").write_bytes(b"init")
            (builder.place / "kernel").write_bytes(bytes(0x202) + b"HdrS")
        yield [first, second]


names = st.text("abcdefgh.-_\u00e9", min_size=1, max_size=6).filter(lambda name: name not in {".", ".."})
texts = st.text("ab c=/\u00e9", max_size=8)
configs = st.fixed_dictionaries(
    {},
    optional={
        "Cmd": st.lists(texts, max_size=2),
        "Env": st.lists(names.map("{}=1".format), max_size=2),
        "WorkingDir": names.map("/{}".format),
        "User": st.sampled_from(["", "app", "1000:7"]),
        "Labels": st.dictionaries(names, texts, max_size=2),
    },
)
trees = st.dictionaries(names, st.binary(max_size=40) | st.integers(0o600, 0o777), max_size=5)
forms = st.sampled_from(["layout", "oci_archive", "docker_archive", "directory", "tar", "parts"])
packings = st.sampled_from(["gzip", "zstd", "none"])
options = st.fixed_dictionaries(
    {},
    optional={
        "--compress": st.sampled_from(["gzip", "xz", "zstd"]),
        "--name": names,
        "--env": names.map("{}=2".format),
    },
)


def inputs(place: Path, form: str, config: dict[str, Any], tree: dict[str, Any], compress: str) -> list[str]:
    """Write the inputs below a place, and give the arguments that name them."""
    root = place / "inputs"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if form == "parts":
        (root / "ramdisk").write_bytes(repr(sorted(tree)).encode())
        return ["--kernel", str(place / "kernel"), "--cmdline", "c", "--ramdisk", str(root / "ramdisk")]
    base = ["--kernel-package", str(place / "linux.deb"), "--init", str(place / "init")]
    if form in {"directory", "tar"}:
        files = root / "files"
        files.mkdir()
        for name, content in tree.items():
            (files / name).write_bytes(content if isinstance(content, bytes) else b"")
            (files / name).chmod(0o755 if isinstance(content, bytes) else content)
        if form == "directory":
            return [*base, "--rootfs", str(files), "--cmd", "/app"]
        with tarfile.open(root / "files.tar", "w") as tar:
            for name in sorted(tree):
                tar.addfile(tar_member(name))
        return [*base, "--rootfs", str(root / "files.tar"), "--cmd", "/app"]
    path = getattr(Container(compress, **config), form)(root / "image")
    return [*base, "--image", str(path)]


def readable(place: Path) -> None:
    for path in (place / "inputs").rglob("*"):
        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    form=forms,
    config=configs,
    tree=trees,
    options=options,
    compress=packings,
)
def test_builders_with_nothing_in_common_make_equal_files(
    builders: list[Builder],
    *,
    form: str,
    config: dict[str, Any],
    tree: dict[str, Any],
    options: dict[str, str],
    compress: str,
) -> None:
    # What is built of parts has no environment.
    extra = [f"{name}={value}" for name, value in options.items() if form != "parts" or name != "--env"]
    built = []
    for builder in builders:
        arguments = inputs(builder.place, form, config, tree, compress)
        readable(builder.place)
        built.append(builder.build([*arguments, *extra]))

    assert built[0] == built[1]
    for builder in builders:
        for trace in (str(builder.place), builder.place.name, "eif-builders-"):
            assert trace.encode() not in bytes(Eif.parse(built[0]).metadata or b"")
