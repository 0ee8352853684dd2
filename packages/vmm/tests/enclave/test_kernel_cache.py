"""Kernels that are kept unpacked: the same contents, and no trouble of the cache's is the launch's."""

import gzip
import os
import random
from pathlib import Path

import pytest

from nitro_vmm.cache import Cache
from nitro_vmm.enclave import kernel_cache
from nitro_vmm.enclave.kernel_cache import KernelCache
from nitro_vmm.errors import ImageError

CONTENTS = random.Random(1).randbytes(3 << 20) + bytes(1 << 20)
PAYLOAD = memoryview(gzip.compress(CONTENTS, compresslevel=1) + b"what follows")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def unpacked(cache: Cache, payload: memoryview = PAYLOAD, *, bytes_max: int = 1 << 30) -> bytes:
    return b"".join(KernelCache(cache).contents(payload, offset=0, bytes_max=bytes_max))


def no_decompression(*_: object, **__: object) -> None:
    raise AssertionError("it was unpacked again")


def only_entry(cache: Cache) -> Path:
    (entry,) = cache.entries()
    return cache.directory / entry.name


def test_the_second_launch_finds_it_unpacked(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = unpacked(cache)
    monkeypatch.setattr(kernel_cache, "decompress", no_decompression)

    second = unpacked(cache)

    assert first == second == CONTENTS
    assert only_entry(cache).stat().st_mode & 0o777 == 0o600


def test_another_kernel_has_another_entry(cache: Cache) -> None:
    unpacked(cache)

    assert unpacked(cache, memoryview(gzip.compress(b"another"))) == b"another"
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("size", [0, 1, 11, 12, 100, len(CONTENTS), len(CONTENTS) + 11])
def test_one_that_was_cut_short_is_made_again(cache: Cache, size: int) -> None:
    unpacked(cache)
    os.truncate(only_entry(cache), size)

    assert unpacked(cache) == CONTENTS
    assert only_entry(cache).stat().st_size == len(CONTENTS) + kernel_cache.TRAILER.size


@pytest.mark.parametrize("at", [0, len(CONTENTS) - 1, len(CONTENTS), len(CONTENTS) + 11])
def test_one_with_a_wrong_byte_is_made_again(cache: Cache, at: int) -> None:
    unpacked(cache)
    with only_entry(cache).open("r+b") as file:
        file.seek(at)
        wrong = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([wrong]))

    assert unpacked(cache) == CONTENTS


def test_a_kernel_that_is_too_large_is_refused_whether_it_is_kept_or_not(cache: Cache) -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match="more than the"):
            unpacked(cache, bytes_max=len(CONTENTS) - 1)
        assert unpacked(cache, bytes_max=len(CONTENTS)) == CONTENTS


def test_a_broken_payload_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(ImageError):
        unpacked(cache, PAYLOAD[: len(PAYLOAD) // 2])

    assert list(cache.directory.iterdir()) == []


def test_one_that_is_not_read_to_its_end_leaves_nothing(cache: Cache) -> None:
    pieces = iter(KernelCache(cache).contents(PAYLOAD, offset=0, bytes_max=1 << 30))
    next(pieces)
    del pieces

    assert list(cache.directory.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert unpacked(Cache(tmp_path / "file")) == CONTENTS


def test_a_full_disk_is_no_obstacle(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    class FullCache(Cache):
        def making(self, name: str) -> object:  # type: ignore[override]
            self.made = super().making(name)
            self.made.__enter__()

            class Made:
                def __enter__(self) -> Full:
                    return Full()

                def __exit__(made, *details: object) -> object:  # noqa: N805
                    return self.made.__exit__(*details)  # type: ignore[arg-type]

            return Made()

    full = FullCache(cache.directory)

    assert unpacked(full) == CONTENTS
    assert list(cache.directory.iterdir()) == []


def test_a_cache_of_no_size_is_left_alone(tmp_path: Path) -> None:
    assert unpacked(Cache(tmp_path / "none", bytes_max=0)) == CONTENTS
    assert not (tmp_path / "none").exists()
