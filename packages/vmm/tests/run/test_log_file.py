"""The log of an enclave in the background is bounded, and keeps the end."""

import subprocess
import sys
from pathlib import Path

from nitro_vmm.run.log_file import LogFile, read_log

# The bounds as they are promised, so that those of the program are held against them.
LOG_BYTES_MAX = 4 << 20


def test_what_is_printed_is_read_back(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "console.log")

    log.write(b"one ")
    log.write(b"two")
    log.close()

    assert read_log(tmp_path / "console.log") == b"one two"
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


def test_a_log_from_before_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"a log from before")

    log = LogFile(tmp_path / "console.log")
    log.write(b"new")
    log.close()

    assert read_log(tmp_path / "console.log") == b"new"


def test_a_full_file_is_put_aside_and_read_first(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "console.log")

    log.write(b"a" * (LOG_BYTES_MAX - 1))
    log.write(b"b")
    assert not (tmp_path / "console.log.1").exists()
    log.write(b"c")
    log.write(b"d")

    assert (tmp_path / "console.log.1").stat().st_size == LOG_BYTES_MAX
    assert read_log(tmp_path / "console.log").endswith(b"abcd")
    log.close()


def test_at_most_twice_as_much_is_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "console.log")

    for letter in b"abcd":
        log.write(bytes((letter,)) * LOG_BYTES_MAX)
    log.close()

    assert read_log(tmp_path / "console.log") == b"c" * LOG_BYTES_MAX + b"d" * LOG_BYTES_MAX


def test_a_new_file_has_as_much_room_as_the_one_before(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "console.log")

    for letter, mib in ((b"a", 3), (b"b", 2), (b"c", 2)):
        log.write(letter * (mib << 20))
    log.close()

    assert (tmp_path / "console.log.1").read_bytes() == b"a" * (3 << 20)
    assert (tmp_path / "console.log").stat().st_size == LOG_BYTES_MAX


def test_a_directory_that_is_gone_loses_output_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "enclave"
    directory.mkdir()
    log = LogFile(directory / "console.log")
    (directory / "console.log").unlink()
    directory.rmdir()

    for _ in range(3):
        log.write(bytes(LOG_BYTES_MAX))
    log.close()
    log.close()

    assert read_log(directory / "console.log") == b""


def test_a_log_is_closed_even_where_it_took_the_place_of_standard_input(tmp_path: Path) -> None:
    program = """
import os, sys
import subprocess
import sys
from pathlib import Path
from nitro_vmm.run.log_file import LogFile
os.close(0)
log = LogFile(Path(sys.argv[1]))
os.fstat(0)
log.close()
try:
    os.fstat(0)
except OSError:
    print("closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )

    assert done.stdout == "closed\n"
