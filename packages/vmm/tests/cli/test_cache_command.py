"""``vmm cache``, as users run it."""

import json
from pathlib import Path

import pytest

from nitro_vmm.cache import Cache
from vmm_command import Vmm

ENTRIES = ("kernel-00000001", "kernel-00000002", "image-00000003")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache with three entries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = Cache()
    for name in ENTRIES:
        with cache.making(name) as file:
            assert file is not None
            file.write(bytes(1 << 20))
    return cache


def test_it_lists_what_there_is(cache: Cache, vmm: Vmm) -> None:
    plain = vmm("cache").stdout
    listed = json.loads(vmm("cache", "list", "--json").stdout)

    assert all(name in plain for name in ENTRIES)
    assert f"3.0 of 2048 MiB in {cache.directory}" in plain
    assert {entry["name"] for entry in listed["Entries"]} == set(ENTRIES)
    assert listed["Bytes"] == 3 << 20


def test_it_removes_what_is_named_by_how_it_begins(cache: Cache, vmm: Vmm) -> None:
    done = vmm("cache", "rm", "image", "kernel-00000002")

    assert done.returncode == 0
    assert "removed 2, 2.0 MiB" in done.stdout
    assert [entry.name for entry in cache.entries()] == ["kernel-00000001"]


def test_it_removes_all(cache: Cache, vmm: Vmm) -> None:
    done = vmm("cache", "clear", "--json")

    assert {entry["name"] for entry in json.loads(done.stdout)["Entries"]} == set(ENTRIES)
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rm",), "say which"),
        (("rm", "kernel"), "several entries begin with 'kernel'"),
        (("rm", "vmlinux-1"), "the cache has no 'vmlinux-1'"),
        (("clear", "kernel"), "clear takes no names"),
    ],
)
def test_what_cannot_be_is_told_and_removes_nothing(
    cache: Cache, vmm: Vmm, arguments: tuple[str, ...], message: str
) -> None:
    done = vmm("cache", *arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert "hint: vmm cache" in done.stderr
    assert len(cache.entries()) == len(ENTRIES)
