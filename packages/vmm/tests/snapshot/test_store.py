"""Files of saved machines: the memory comes back page by page, and what is damaged is never used."""

import io
import os
import random
import stat
import tempfile
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitro_vmm.accel.kvm.state import KvmState
from nitro_vmm.accel.unicorn.vm import UnicornState
from nitro_vmm.address_map import GIB, HOLE_END, HOLE_START, MIB
from nitro_vmm.errors import HostError, StateError
from nitro_vmm.machine.memory import Memory
from nitro_vmm.snapshot.digest import FileDigest
from nitro_vmm.snapshot.layout import HEADER, MAGIC, PAGE_BYTES, pieces
from nitro_vmm.snapshot.store import Saved, new_file, read, write
from saved_states import changed
from states import MEMORY_BYTES, description, parameters

PAGES = MEMORY_BYTES // PAGE_BYTES


def fill(memory: Memory, pages: list[int]) -> None:
    for page in pages:
        memory.guest.slice(page * PAGE_BYTES, 8)[:] = (page + 1).to_bytes(8, "little")


def content(memory: Memory) -> bytes:
    return bytes(memory.guest.slice(0, MEMORY_BYTES))


def saved_file(memory: Memory) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its users keep it open
    write(file, description(), memory)
    file.flush()
    return file


def reread(file: BinaryIO) -> Saved:
    return read(file, "unicorn", UnicornState)


def test_a_machine_of_another_accelerator_is_named() -> None:
    with (
        saved_file(Memory(MEMORY_BYTES)) as file,
        pytest.raises(StateError, match="ran on unicorn, not kvm") as caught,
    ):
        read(file, "kvm", KvmState)

    assert caught.value.hint == "--accel unicorn"


def test_a_digest_of_a_file_that_has_changed_since_is_not_used() -> None:
    memory = Memory(MEMORY_BYTES)
    with saved_file(memory) as before:
        fill(memory, [1, 2, 3])
        with (
            saved_file(memory) as file,
            closing(FileDigest(before, os.fstat(before.fileno()).st_size)) as old,
        ):
            saved = read(file, "unicorn", UnicornState, digest=old)

    assert saved.description == changed(description(), extents=((1, 3),))


def test_a_digest_that_was_begun_is_used() -> None:
    with (
        saved_file(Memory(MEMORY_BYTES)) as file,
        closing(FileDigest(file, os.fstat(file.fileno()).st_size)) as begun,
    ):
        os.pwrite(file.fileno(), b"?", HEADER.size)
        begun.help()
        os.pwrite(file.fileno(), b"!", HEADER.size)
        with pytest.raises(StateError, match="damaged"):
            read(file, "unicorn", UnicornState, digest=begun)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, PAGES - 1), max_size=60))
def test_memory_comes_back_as_it_was(pages: list[int]) -> None:
    before = Memory(MEMORY_BYTES)
    fill(before, pages)
    with saved_file(before) as file:
        after = Memory(MEMORY_BYTES, huge=False)

        saved = reread(file)
        saved.load(after)

        assert content(after) == content(before)
        assert saved.description.console == b"booting\n"
        assert sum(count for _, count in saved.description.extents) <= 17 * len(pages)


@pytest.mark.parametrize(
    ("pages", "extents"),
    [
        ([0], ((0, 1),)),
        ([0, 1, 2], ((0, 3),)),
        ([5, 22], ((5, 18),)),
        ([5, 23], ((5, 1), (23, 1))),
        ([0, 17, 34, 52, PAGES - 1], ((0, 35), (52, 1), (PAGES - 1, 1))),
    ],
)
def test_sixteen_empty_pages_are_kept_between_others(
    pages: list[int], extents: tuple[tuple[int, int], ...]
) -> None:
    """Each stretch takes a mapping of its own, of which a process has not many."""
    memory = Memory(MEMORY_BYTES)
    fill(memory, pages)

    with saved_file(memory) as file:
        assert reread(file).description.extents == extents


def test_two_guests_of_one_file_do_not_see_each_other() -> None:
    before = Memory(MEMORY_BYTES)
    fill(before, [0, 1, 500])
    with saved_file(before) as file:
        one, other = Memory(MEMORY_BYTES, huge=False), Memory(MEMORY_BYTES, huge=False)
        for memory in (one, other):
            reread(file).load(memory)

        one.guest.slice(500 * PAGE_BYTES, 4)[:] = b"mine"
        one.guest.slice(700 * PAGE_BYTES, 4)[:] = b"mine"

        assert content(other) == content(before)
        reread(file)  # the file is as it was


def test_an_empty_memory_takes_no_page() -> None:
    with saved_file(Memory(MEMORY_BYTES)) as file:
        saved = reread(file)

        assert saved.description.extents == ()
        assert saved.header.file_bytes == saved.header.pages_offset


def test_pages_on_both_sides_of_the_hole_are_where_they_were() -> None:
    below = HOLE_START // PAGE_BYTES
    crossing = description(
        parameters=parameters(memory_bytes=4 * GIB), extents=((1, 2), (below - 3, 5), (below + 100, 1))
    )

    found = pieces(crossing)

    assert found == [
        (PAGE_BYTES, 0, 2 * PAGE_BYTES),
        (HOLE_START - 3 * PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES),
        (HOLE_END, 5 * PAGE_BYTES, 2 * PAGE_BYTES),
        (HOLE_END + 100 * PAGE_BYTES, 7 * PAGE_BYTES, PAGE_BYTES),
    ]


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A file with three pages."""
    memory = Memory(MEMORY_BYTES)
    fill(memory, [3, 4, 900])
    with saved_file(memory) as file:
        file.seek(0)
        return file.read()


def refuse(data: bytes) -> str:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with pytest.raises(StateError) as caught:
            reread(file)
        assert caught.value.hint
        return str(caught.value)


@pytest.mark.parametrize("name", ["", "."])
def test_a_directory_is_not_written(name: str) -> None:
    with pytest.raises(HostError, match="is a directory"), new_file(Path(name)):
        pytest.fail("it was opened")


def test_a_file_that_is_cut_short_anywhere_is_refused(whole: bytes) -> None:
    rng = random.Random(1)
    lengths = {*range(HEADER.size + 2), *rng.sample(range(len(whole)), 300), len(whole) - 1}

    for length in sorted(lengths):
        refuse(whole[:length])


def test_a_file_with_something_behind_it_is_refused(whole: bytes) -> None:
    assert "bytes, not" in refuse(whole + b"\0")
    refuse(whole + bytes(PAGE_BYTES))


def test_a_bit_that_is_flipped_anywhere_is_found(whole: bytes) -> None:
    rng = random.Random(2)
    places = {*range(8 * HEADER.size), *rng.sample(range(8 * len(whole)), 1500)}

    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        refuse(bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"EIF", MAGIC, b"\x7fELF" + bytes(8192), bytes(8192)])
def test_what_is_no_saved_machine_is_told_so(data: bytes) -> None:
    assert "no saved machine" in refuse(data) or "cut short" in refuse(data)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(whole: bytes, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "saved"
    path.write_bytes(whole)
    path.chmod(mode)

    with path.open("rb") as file, pytest.raises(StateError, match="others may write"):
        reread(file)


@pytest.mark.parametrize(
    ("user", "refused"),
    [
        pytest.param(1234, False, id="its user's"),
        pytest.param(0, False, id="root's"),
        (1, True),
        (1235, True),
    ],
)
def test_a_file_is_its_users_or_roots(
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    refused: bool,  # noqa: FBT001
) -> None:
    status = SimpleNamespace(st_mode=stat.S_IFREG | 0o644, st_uid=user, st_size=len(whole))
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with tempfile.TemporaryFile() as file:
        file.write(whole)
        file.flush()
        monkeypatch.setattr(os, "fstat", lambda _fd: status)

        with pytest.raises(StateError, match="others may write") if refused else nullcontext():
            reread(file)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)

    with os.fdopen(reading, "rb") as file, pytest.raises(StateError, match="pipe"):
        reread(file)


def test_a_new_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.write_bytes(b"before")

    def fail() -> None:
        with new_file(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    kept = path.read_bytes()
    with new_file(path) as file:
        file.write(b"after")

    assert kept == b"before"
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="nowhere"), new_file(tmp_path / "nowhere" / "saved"):
        pass


def test_a_full_disk_is_an_error() -> None:
    class FullDisk(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(FullDisk(), description(), Memory(MEMORY_BYTES))


def test_memory_is_mapped_where_there_is_ram_only() -> None:
    memory = Memory(MIB)

    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="not in one stretch"):
        memory.map_private(file.fileno(), address=MIB - PAGE_BYTES, offset=0, length=2 * PAGE_BYTES)


@pytest.mark.parametrize("address", [0, HOLE_START - PAGE_BYTES, HOLE_END, HOLE_END + PAGE_BYTES])
def test_a_page_is_mapped_at_its_address_on_both_sides_of_the_hole(address: int) -> None:
    memory = Memory(HOLE_START + 2 * MIB, huge=False)
    places = (0, HOLE_START - PAGE_BYTES, HOLE_END, HOLE_END + PAGE_BYTES)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(PAGE_BYTES) + b"saved".ljust(PAGE_BYTES, b"."))
        file.flush()

        memory.map_private(file.fileno(), address=address, offset=PAGE_BYTES, length=PAGE_BYTES)

    found = {place: bytes(memory.guest.slice(place, 5)) for place in places}
    assert found == {place: b"saved" if place == address else bytes(5) for place in places}
