"""The guest's init: what is shipped is what its source gives, on any machine with the same compiler."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nitro_eif import HostError, guest_init
from nitro_eif.build import init as guest

SOURCES = Path(__file__).parents[1] / "init"
PT_INTERP, ET_EXEC, EM_X86_64 = 3, 2, 62

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")


def compiled(sources: Path, output: Path) -> bytes:
    subprocess.run([sys.executable, sources / "compile.py", sources / "init.c", output], check=True)
    return output.read_bytes()


def test_it_is_a_static_executable_for_x86_64() -> None:
    init = guest_init()

    kind, machine = struct.unpack_from("<HH", init, 16)
    (table,) = struct.unpack_from("<Q", init, 32)
    size, count = struct.unpack_from("<HH", init, 54)
    segments = [struct.unpack_from("<I", init, table + index * size)[0] for index in range(count)]
    assert init.startswith(b"\x7fELF\x02\x01")
    assert (kind, machine) == (ET_EXEC, EM_X86_64)
    assert PT_INTERP not in segments


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

    with pytest.raises(HostError, match="no init for x86_64 enclaves") as caught:
        guest_init()
    assert "--init" in caught.value.hint
