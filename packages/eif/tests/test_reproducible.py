"""The same inputs make the same file, whoever builds it, where and when."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containers import Container
from debian_packages import module, package
from nitro_eif.testing import tar_member, tar_of

BUILDER = """
import contextlib, io, json, os, sys
import nitro_eif, nitro_eif.cli, nitro_eif.commands.build
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
"""Runs `eif` once for each line of its input, a list of arguments, and says the exit codes."""
OTHER_USER = 65534 if os.getuid() == 0 else 0
"""Who builds as well; 0 where nobody else can be had."""


class Builder:
    """Somebody who builds images, with a place, a user, a mask for new files and an environment.

    Args:
        place: The current directory, which need not exist yet.
        umask: What new files do not allow.
        user: The numeric user, or 0 for whoever runs the tests.
        env: More for the environment, or other values.
    """

    def __init__(self, place: Path, *, umask: int, user: int, **env: str) -> None:
        place.mkdir()
        if user:
            os.chown(place, user, user)
        self.place = place
        self._process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(user)],
            cwd=place,
            umask=umask,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1769860800", "HOME": str(place)} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def build(self, source: list[str], deb: Path, output: Path) -> bytes:
        """Build one image, and read it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        inputs = ["--kernel-package", str(deb), "--init", str(deb.parent / "init"), "--compress", "gzip"]
        arguments = ["build", *source, *inputs, "--build-tool-version", "1", "--output", str(output)]
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "0\n"
        return output.read_bytes()

    def close(self) -> None:
        """Send it home."""
        self._process.communicate()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that another user may enter; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory(prefix="eif-builds-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def builders(open_path: Path) -> Iterator[tuple[Builder, Builder]]:
    """Two who have nothing in common: not place, user, mask, time zone, language or hash seed."""
    one = Builder(open_path / "one", umask=0o022, user=0, TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")
    two = Builder(
        open_path / "two",
        umask=0o077,
        user=OTHER_USER,
        TZ="Pacific/Chatham",
        LC_ALL="C.UTF-8",
        PYTHONHASHSEED="7",
    )
    yield one, two
    one.close()
    two.close()


def kernel_in(directory: Path) -> Path:
    (directory / "init").write_bytes(b"init")
    return package(directory / "linux.deb", {"vsock.ko": module(), "nsm.ko": module()})


@pytest.mark.parametrize("kind", ["image", "archive", "directory"])
def test_builds_are_the_same_in_any_place_zone_locale_umask_and_for_any_user(
    open_path: Path, builders: tuple[Builder, Builder], kind: str
) -> None:
    container = Container()
    layout = container.layout(open_path / "layout")
    deb = kernel_in(open_path)
    root = open_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/app").write_bytes(b"app")
    (open_path / "root.tar").write_bytes(container.layers[0])
    source = {
        "image": ["--image", f"oci:{layout}"],
        "archive": ["--rootfs", str(open_path / "root.tar"), "--cmd", "/bin/app"],
        "directory": ["--rootfs", str(root), "--cmd", "/bin/app"],
    }[kind]
    (root / "bin/app").chmod(0o755)
    one, two = builders

    first = one.build(source, deb, one.place / "x.eif")
    os.utime(root / "bin/app", (1, 1))
    second = two.build(source, deb, two.place / "y.eif")

    assert first == second


NAMES = st.text("abXYZ09._-é", min_size=1, max_size=12).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".wh.")
)
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.tuples(
        st.sampled_from([0o755, 0o644, 0o4755, 0o600]),
        st.integers(0, 70000),
        st.integers(0, 2**31),
        st.binary(max_size=200),
    ),
    max_size=5,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
CONFIGS = st.fixed_dictionaries(
    {
        "Entrypoint": st.lists(TEXTS.filter(bool), min_size=1, max_size=3),
        "User": st.just("") | st.integers(0, 70000).map(str),
    },
    optional={
        "Cmd": st.lists(TEXTS, max_size=3),
        "Env": st.dictionaries(NAMES, TEXTS, max_size=3).map(
            lambda variables: [f"{name}={value}" for name, value in variables.items()]
        ),
        "WorkingDir": NAMES.map(lambda name: f"/{name}"),
        "Labels": st.dictionaries(NAMES, TEXTS, max_size=3),
    },
)


def layer_of(files: dict[str, tuple[int, int, int, bytes]], names: set[str]) -> bytes:
    members = []
    for name, (mode, owner, time_s, content) in files.items():
        # A file that others have as their directory is left out, because no file system has both.
        if not any(other.startswith(f"{name}/") for other in names):
            member = tar_member(name, mode=mode, uid=owner, gid=owner)
            member.mtime = time_s
            members.append((member, content))
    return tar_of(members)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(FILES, min_size=1, max_size=3), config=CONFIGS)
def test_any_image_is_built_alike_at_two_paths_by_two_users_in_two_zones(
    open_path: Path,
    builders: tuple[Builder, Builder],
    layers: list[dict[str, tuple[int, int, int, bytes]]],
    config: dict[str, Any],
) -> None:
    names = {name for files in layers for name in files}
    container = Container(layers=[layer_of(files, names) for files in layers], **config)
    deb = kernel_in(open_path)
    built = []

    for builder in builders:
        place = builder.place / "inputs"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o755)
        container.layout(place / builder.place.name)
        source = ["--image", f"oci:{place / builder.place.name}"]
        built.append(builder.build(source, deb, builder.place / f"{builder.place.name}.eif"))

    assert built[0] == built[1]
