"""The guest's init: what is shipped is what its source gives, on any machine with the same compiler."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nitro_eif import Architecture, Eif, HostError, guest_init, read_ramdisk, require_bootable, tree_of
from nitro_eif.build import init as guest
from nitro_eif.cli import main

SOURCES = Path(__file__).parents[1] / "init"
PT_INTERP, ET_EXEC = 3, 2
MACHINES = {Architecture.X86_64: 62, Architecture.AARCH64: 183}

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")


def built(architecture: Architecture) -> bytes:
    try:
        return guest_init(architecture)
    except HostError as error:
        pytest.skip(f"{error}; {error.hint}")


def compiled(sources: Path, output: Path) -> bytes:
    subprocess.run([sys.executable, sources / "compile.py", sources / "init.c", output], check=True)
    return output.read_bytes()


@pytest.mark.parametrize("architecture", Architecture)
def test_it_is_a_static_executable_for_its_processor(architecture: Architecture) -> None:
    init = built(architecture)

    kind, machine = struct.unpack_from("<HH", init, 16)
    (table,) = struct.unpack_from("<Q", init, 32)
    size, count = struct.unpack_from("<HH", init, 54)
    segments = [struct.unpack_from("<I", init, table + index * size)[0] for index in range(count)]
    assert init.startswith(b"\x7fELF\x02\x01")
    assert (kind, machine) == (ET_EXEC, MACHINES[architecture])
    assert PT_INTERP not in segments


@pytest.mark.parametrize("architecture", Architecture)
def test_it_makes_system_calls_of_its_processor(tmp_path: Path, architecture: Architecture) -> None:
    tracer = shutil.which(f"qemu-{architecture}")
    if tracer is None:
        pytest.skip(f"no qemu-{architecture}; Debian's package is qemu-user")
    init = tmp_path / "init"
    init.write_bytes(built(architecture))
    init.chmod(0o755)
    # Nobody may mount, so this is as far as it comes; root's machine must not get its mounts.
    command = [tracer, "-strace", str(init)]
    other = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="eif-init-") as name:
        Path(name).chmod(0o755)
        copy = Path(name) / "init"
        shutil.copy(init, copy)
        command[-1] = str(copy)
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, cwd=name, **other)  # type: ignore[call-overload]

    assert done.returncode == 1
    assert b"mount(" in done.stderr
    assert b"exit_group(1)" in done.stderr
    assert b"Unknown syscall" not in done.stderr


def test_an_image_for_aarch64_is_built_on_any_host(tmp_path: Path) -> None:
    init = built(Architecture.AARCH64)
    kernel, root, output = tmp_path / "Image", tmp_path / "root", tmp_path / "x.eif"
    kernel.write_bytes(bytes(0x38) + b"ARM\x64" + bytes(64))
    root.mkdir()

    arguments = ["--arch", "aarch64", "--kernel", str(kernel), "--rootfs", str(root), "--cmd", "/app"]
    assert main(["build", *arguments, "--output", str(output)]) == 0

    with Eif.open(output) as eif:
        require_bootable(eif)
        assert eif.architecture is Architecture.AARCH64
        assert b"root=/dev/ram0" in eif.cmdline
        assert bytes(tree_of(read_ramdisk(eif.ramdisks[0]))["init"].data) == init


@needs_compiler
def test_place_and_umask_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere" / "sources"
    shutil.copytree(SOURCES, copy)
    here = compiled(SOURCES, tmp_path / "init")

    monkeypatch.chdir(copy)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    there = compiled(copy, tmp_path / "another-name")

    assert here == there
    assert str(tmp_path).encode() not in here


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, f"{SOURCES}/compile.py", f"{SOURCES}/init.c", f"{tmp_path}/init"]

    done = subprocess.run(
        command, env={"CC": "no-such-cc", "PATH": "/usr/bin"}, capture_output=True, check=False
    )

    assert done.returncode == 1
    assert b"no-such-cc" in done.stderr
    assert b"apt install gcc" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_source_that_does_not_compile_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return }")
    output = tmp_path / "out" / "init"

    done = subprocess.run(
        [sys.executable, SOURCES / "compile.py", source, output], capture_output=True, check=False
    )

    assert done.returncode == 1
    assert b"broken.c" in done.stderr
    assert not list(output.parent.iterdir())


def test_an_installation_without_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "files", lambda _package: tmp_path)

    for architecture, compiler in (
        (Architecture.X86_64, "gcc"),
        (Architecture.AARCH64, "gcc-aarch64-linux-gnu"),
    ):
        with pytest.raises(HostError, match=f"no init for {architecture} enclaves") as caught:
            guest_init(architecture)
        assert f"install {compiler} and" in caught.value.hint
        assert "--init" in caught.value.hint
