"""The cache: entries that are whole or not there, a bound, and what killed writers leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nitro_vmm.cache import Cache
from nitro_vmm.errors import HostError, UsageError

ONE, TWO, THREE = "kernel-00000001", "kernel-00000002", "image-00000003"
LONG_AGO_S = 1_000_000.0
PATIENCE_S = 30


def put(cache: Cache, name: str, content: bytes, *, used_at: float | None = None) -> None:
    with cache.making(name) as file:
        assert file is not None
        file.write(content)
    if used_at is not None:
        os.utime(cache.directory / name, (used_at, used_at))


def get(cache: Cache, name: str) -> bytes | None:
    file = cache.open(name)
    if file is None:
        return None
    with file:
        return file.read()


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.directory.iterdir())


def names(cache: Cache) -> list[str]:
    return [entry.name for entry in cache.entries()]


def test_what_was_made_is_there_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "made" / "cache")

    put(cache, ONE, b"content")

    assert get(cache, ONE) == b"content"
    assert (cache.directory / ONE).stat().st_mode & 0o777 == 0o600
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert files(cache) == [ONE]


def test_a_cache_that_was_never_used_is_empty(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")

    assert cache.entries() == []
    assert cache.open(ONE) is None
    assert cache.clear() == []


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def fail() -> None:
        with cache.making(ONE) as file:
            assert file is not None
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert files(cache) == []


def test_a_full_disk_is_an_error_with_a_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path; from nitro_vmm.cache import Cache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with Cache(Path(sys.argv[1])).making('kernel-00000001') as file: file.write(bytes(8192))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "cache"], capture_output=True, text=True, check=False
    )

    assert "HostError: the cache" in done.stderr
    assert "File too large" in done.stderr
    assert files(Cache(tmp_path / "cache")) == []


def test_an_entry_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    with cache.making(ONE) as first, cache.making(ONE) as second, cache.making(TWO) as other:
        assert first is not None
        assert other is not None
        nobody_else = second is None
    with cache.making(ONE) as again:
        already_there = again is None

    assert nobody_else
    assert already_there


def test_what_a_killed_writer_left_goes_with_the_next_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    program = (
        "import sys, time; from pathlib import Path; from nitro_vmm.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).making('kernel-00000001') as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, cache.directory], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        put(cache, TWO, b"meanwhile")
        kept_meanwhile = files(cache)
        writer.send_signal(signal.SIGKILL)
        writer.wait(PATIENCE_S)

    put(cache, THREE, b"after")

    assert kept_meanwhile == [".new-kernel-00000001", TWO]
    assert files(cache) == [THREE, TWO]
    put(cache, ONE, b"whole")
    assert get(cache, ONE) == b"whole"


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", bytes_max=3 * 4096)
    put(cache, ONE, bytes(4096), used_at=LONG_AGO_S)
    put(cache, TWO, bytes(4096), used_at=LONG_AGO_S + 1)
    assert get(cache, ONE) is not None

    put(cache, THREE, bytes(8192))

    assert sorted(names(cache)) == sorted([THREE, ONE])


def test_an_entry_larger_than_the_cache_is_alone_in_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", bytes_max=4096)
    put(cache, ONE, bytes(4096))

    put(cache, TWO, bytes(1 << 20))

    assert names(cache) == [TWO]


def test_only_so_many_entries_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", entries_max=3)

    for number in range(10):
        put(cache, f"kernel-{number:08x}", b"x", used_at=LONG_AGO_S + number)

    assert names(cache) == ["kernel-00000009", "kernel-00000008", "kernel-00000007"]


def test_using_an_entry_does_not_change_when_it_was_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    put(cache, ONE, b"x", used_at=LONG_AGO_S)

    get(cache, ONE)

    (entry,) = cache.entries()
    assert entry.made_at == LONG_AGO_S
    assert entry.used_at > time.time() - PATIENCE_S
    assert entry.kind == "kernel"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_may_write_is_not_used(tmp_path: Path, mode: int) -> None:
    cache = Cache(tmp_path / "cache")
    put(cache, ONE, b"x")
    (cache.directory / ONE).chmod(mode)

    assert cache.open(ONE) is None


def test_an_entry_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kernel-0123abcd")

    assert Cache(tmp_path).open("kernel-0123abcd") is None


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    tmp_path.chmod(0o755)

    with pytest.raises(HostError, match="only you") as caught, cache.making(ONE):
        pass

    assert "chmod" in caught.value.hint


@pytest.mark.parametrize("name", ["../escape-00000000", "kernel-", "kernel-XYZ", ".new-kernel-00000001", ""])
def test_names_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    cache = Cache(tmp_path / "cache")

    with pytest.raises(UsageError):
        cache.open(name)
    with pytest.raises(UsageError):
        cache.remove(name)


def test_the_bound_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMM_CACHE_MIB", "7")
    chosen = Cache().bytes_max
    monkeypatch.setenv("VMM_CACHE_MIB", "2048")
    largest = Cache().bytes_max
    monkeypatch.setenv("VMM_CACHE_MIB", "")
    unchosen = Cache().bytes_max
    monkeypatch.setenv("VMM_CACHE_MIB", "much")

    with pytest.raises(UsageError, match="VMM_CACHE_MIB"):
        Cache()

    assert chosen == 7 << 20
    assert unchosen == largest, "as docs/snapshots.md says"


def test_two_hundred_files_are_kept_and_no_more(tmp_path: Path) -> None:
    """As docs/snapshots.md says."""
    cache = Cache(tmp_path / "cache")

    for number in range(201):
        put(cache, f"kernel-{number:08x}", b"x", used_at=LONG_AGO_S + number)

    assert sorted(names(cache)) == [f"kernel-{number:08x}" for number in range(1, 201)]
