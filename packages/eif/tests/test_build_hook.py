"""Building the package: with a compiler it carries the guest's init, without one it is built all the same."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
INIT, OTHER_INIT = "nitro_eif/_guest/init-x86_64", "nitro_eif/_guest/init-aarch64"

pytest.importorskip("hatchling", reason="needs hatchling, which builds the package")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    copy = tmp_path / "eif"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_guest", "__pycache__", "tests", ".*"))
    return copy


def build(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"]
    return subprocess.run(
        command, cwd=sources, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def files_of(sources: Path) -> list[str]:
    (wheel,) = (sources / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_with_a_compiler_the_wheel_has_the_init(sources: Path) -> None:
    done = build(sources)

    assert done.returncode == 0, done.stderr
    assert INIT in files_of(sources)
    assert (OTHER_INIT in files_of(sources)) is (shutil.which("aarch64-linux-gnu-gcc") is not None)


def test_without_a_compiler_the_wheel_has_all_but_the_init(sources: Path) -> None:
    stale = sources / "src" / INIT
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier build")

    done = build(sources, CC="no-such-cc", CC_AARCH64="no-such-cross-cc")

    assert done.returncode == 0, done.stderr
    assert not {INIT, OTHER_INIT} & set(files_of(sources))
    assert "nitro_eif/cli.py" in files_of(sources)
    assert "built without the init for x86_64" in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_a_release_is_not_built_without_the_other_processors_init(sources: Path) -> None:
    done = build(sources, CC_AARCH64="no-such-cross-cc", NITRO_EIF_REQUIRE_INIT="1")

    assert done.returncode == 1
    assert "gcc-aarch64-linux-gnu" in done.stderr


def test_a_release_is_not_built_without_the_init(sources: Path) -> None:
    done = build(sources, CC="no-such-cc", NITRO_EIF_REQUIRE_INIT="1")

    assert done.returncode == 1
    assert "no-such-cc" in done.stderr
    assert not (sources / "out").exists() or not list((sources / "out").glob("*.whl"))
