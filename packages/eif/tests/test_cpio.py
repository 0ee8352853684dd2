import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containers import zstd
from nitro_eif import EifFormatError, HostError, Node, UsageError, read_ramdisk, tree_of, write_cpio
from nitro_eif.filesystem.compression import compress
from nitro_eif.testing import example_ramdisk

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in {".", "..", "TRAILER!!!"}
)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
numbers = st.integers(0, 2**32 - 1)
nodes = st.builds(
    lambda kind, permissions, uid, gid, data, device: Node(
        kind | permissions,
        uid,
        gid,
        data if kind in {stat.S_IFREG, stat.S_IFLNK} else b"",
        device if kind in {stat.S_IFCHR, stat.S_IFBLK} else (0, 0),
    ),
    st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]),
    st.integers(0, 0o7777),
    numbers,
    numbers,
    st.binary(max_size=30),
    st.tuples(numbers, numbers),
)


def archive(entries: dict[str, Node], mtime: int = 0) -> bytes:
    file = io.BytesIO()
    size = write_cpio(file, entries.items(), mtime=mtime)
    assert size == len(file.getvalue())
    return file.getvalue()


def test_entries_are_written_as_awss_build_writes_them() -> None:
    """Every number counts, because the measurements are over these bytes."""
    twice = Node(0o100644, 5, 6, b"hello", (0, 0))
    entries = {"d": Node(0o040755), "d/a": twice, "d/b": twice, "null": Node(0o020666, 0, 0, b"", (1, 3))}

    def entry(name: bytes, data: bytes, *numbers: int) -> bytes:
        inode, mode, uid, gid, links, mtime, size, device = *numbers[:7], numbers[7:]
        fields = (inode, mode, uid, gid, links, mtime, size, 3, 1, *device, len(name) + 1, 0)
        text = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        return text + bytes(-len(text) % 4) + data + bytes(-len(data) % 4)

    written = archive(entries, mtime=7)

    whole = (
        entry(b"d", b"", 721, 0o040755, 0, 0, 2, 7, 0, 0, 0)
        + entry(b"d/a", b"", 722, 0o100644, 5, 6, 2, 7, 0, 0, 0)  # the last name has the data
        + entry(b"d/b", b"hello", 722, 0o100644, 5, 6, 2, 7, 5, 0, 0)
        + entry(b"null", b"", 723, 0o020666, 0, 0, 1, 7, 0, 1, 3)
        + entry(b"TRAILER!!!", b"", 724, 0, 0, 0, 1, 0, 0, 0, 0)
    )
    assert written == whole + bytes(-len(whole) % 512)


def facts(node: Node) -> tuple[object, ...]:
    return (node.mode, node.uid, node.gid, bytes(node.data), node.device)


@given(st.dictionaries(paths, nodes, max_size=6), numbers)
def test_what_is_written_is_read_again(entries: dict[str, Node], mtime: int) -> None:
    data = archive(entries, mtime)

    found = {entry.path: entry for entry in read_ramdisk(memoryview(data))}

    assert {path: facts(entry.node) for path, entry in found.items()} == {
        path: facts(node) for path, node in entries.items()
    }
    assert all(entry.mtime == mtime for entry in found.values())
    assert len(data) % 512 == 0


def test_an_entry_is_laid_out_as_the_kernel_reads_it() -> None:
    """Linux, Documentation/driver-api/early-userspace/buffer-format.rst: a header of 13 numbers, and name."""
    data = archive({"name": Node(stat.S_IFREG | 0o640, data=b"contents")}, 7)

    numbers = [int(data[at : at + 8], 16) for at in range(6, 110, 8)]
    _, mode, uid, gid, links, mtime, size, *devices, name_bytes, checksum = numbers
    assert data[:6] == b"070701"
    assert (mode, uid, gid, links, mtime, size) == (stat.S_IFREG | 0o640, 0, 0, 1, 7, 8)
    assert devices[2:] == [0, 0], "the numbers of device nodes, which this is not"
    assert (name_bytes, checksum) == (5, 0)
    assert data[110:124] == b"name\0".ljust(6, b"\0") + b"contents"


@given(st.dictionaries(paths, nodes, max_size=6), st.randoms())
def test_the_order_of_entries_does_not_matter(entries: dict[str, Node], random: object) -> None:
    shuffled = list(entries.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert archive(dict(shuffled)) == archive(entries)


@given(
    st.binary(max_size=400)
    | st.binary(max_size=400).map(lambda tail: example_ramdisk({"a": Node(0)})[:120] + tail)
)
def test_any_bytes_are_a_ramdisk_or_a_format_error(data: bytes) -> None:
    try:
        tree_of(read_ramdisk(memoryview(data)))
    except EifFormatError as error:
        assert 0 <= error.offset <= len(data)  # noqa: PT017
    except HostError as error:
        assert "not supported" in str(error)  # noqa: PT017


def test_hard_links_share_a_node_and_the_last_has_the_data() -> None:
    shared = Node.file(b"contents", 0o600)
    data = archive({"a": shared, "d": Node.directory(), "d/b": shared, "c": Node.file(b"contents", 0o600)})

    entries = {entry.path: entry for entry in read_ramdisk(memoryview(data))}
    assert [entries[path].links for path in ("a", "d", "d/b", "c")] == [2, 2, 2, 1]
    assert bytes(entries["a"].node.data) == b""
    assert bytes(entries["d/b"].node.data) == b"contents"
    tree = tree_of(entries.values())
    assert tree["a"] is tree["d/b"]
    assert bytes(tree["a"].data) == b"contents"
    assert tree["c"] is not tree["a"]


@pytest.mark.skipif(
    shutil.which("cpio") is None or os.getuid() != 0, reason="needs GNU cpio, and root for devices"
)
def test_gnu_cpio_unpacks_what_is_written(tmp_path: Path) -> None:
    shared = Node.file(b"contents", 0o640)
    entries = {
        "d": Node.directory(0o711),
        "d/a": shared,
        "d/b": shared,
        "l": Node.symlink("d/a"),
        "null": Node(stat.S_IFCHR | 0o666, device=(1, 3)),
        "owned": Node(stat.S_IFREG | 0o644, 1000, 1001, b"x"),
        "x" * 200: Node.file(b""),
    }

    subprocess.run(["cpio", "-i", "--quiet"], input=archive(entries), cwd=tmp_path, check=True)

    assert (tmp_path / "d/a").read_bytes() == b"contents"
    assert (tmp_path / "d/a").stat().st_ino == (tmp_path / "d/b").stat().st_ino
    assert (tmp_path / "l").readlink() == Path("d/a")
    assert (tmp_path / "null").stat().st_rdev == os.makedev(1, 3)
    assert ((tmp_path / "owned").stat().st_uid, (tmp_path / "owned").stat().st_gid) == (1000, 1001)
    assert (tmp_path / ("x" * 200)).exists()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs GNU cpio")
def test_what_gnu_cpio_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"contents")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "l").symlink_to("a")
    command = ["cpio", "-o", "-H", "newc", "--quiet"]

    data = subprocess.run(command, input=b"a\nb\nl\n", cwd=tmp_path, capture_output=True, check=True).stdout

    tree = tree_of(read_ramdisk(memoryview(data)))
    assert tree["a"] is tree["b"]
    assert bytes(tree["a"].data) == b"contents"
    assert tree["l"].target == "a"


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, zstd, lambda data: lzma.compress(data, 2)],
)
def test_compressed_and_joined_ramdisks_are_read_as_the_kernel_does(pack: object) -> None:
    plain = example_ramdisk({"early": Node.file(b"1")})
    packed = pack(example_ramdisk({"late": Node.file(b"2" * 100_000)}))  # type: ignore[operator]

    tree = tree_of(read_ramdisk(memoryview(plain + bytes(8) + packed + bytes(-len(packed) % 4))))

    assert [path for path, _ in tree.items()] == ["early", "late"]


def test_later_archives_win_and_inodes_mean_something_within_one_only() -> None:
    shared = Node.file(b"old")
    first = archive({"a": shared, "b": shared})
    other = Node.file(b"new")
    second = archive({"b": other, "c": other})

    tree = tree_of(read_ramdisk(memoryview(first + second)))

    assert {path: bytes(node.data) for path, node in tree.items()} == {"a": b"old", "b": b"new", "c": b"new"}


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
def test_ramdisks_are_compressed_reproducibly_and_read_again(how: str) -> None:
    data = example_ramdisk({"a": Node.file(b"text " * 10_000)})
    results = []
    for _ in range(2):
        file = io.BytesIO()
        compress(memoryview(data), how, file)
        results.append(file.getvalue())

    assert results[0] == results[1]
    assert len(results[0]) < len(data) / 10
    assert [entry.path for entry in read_ramdisk(memoryview(results[0]))] == ["a"]


def test_a_compression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitro_eif.filesystem.compression.UNPACKED_BYTES_MIN", 1 << 20)
    for bomb in (
        gzip.compress(bytes(2 << 20), mtime=0),
        lzma.compress(bytes(2 << 20)),
        zstd(bytes(2 << 20)),
    ):
        with pytest.raises(EifFormatError, match="becomes more than"):
            list(read_ramdisk(memoryview(bomb)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"garbage.", "neither a cpio archive"),
        (example_ramdisk({"a": Node.file(b"x" * 600)})[:300], "are left in the archive"),
        (example_ramdisk({"a": Node.file(b"x")})[:130], "without a trailer"),
        (example_ramdisk({}).replace(b"070701000002d1", b"0707010000+2d1"), "hexadecimal"),
        (gzip.compress(b"070701", mtime=0)[:-4], "ends early"),
        (gzip.compress(b"abc", mtime=0)[:5] + b"\xff" * 20, "gzip stream"),
        (b"\x02!L\x18\x10\0\0\0" + b"\xff" * 20, "lz4 stream is broken"),
        (b"\x02!L\x18\x10\0\0\0abc", "lz4 stream ends early"),
        (b"\x89LZO" + bytes(20), "lzo compression is not supported"),
    ],
)
def test_broken_ramdisks_say_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises((EifFormatError, HostError), match=reason):
        list(read_ramdisk(memoryview(data)))


def test_what_a_ramdisk_cannot_hold_is_refused() -> None:
    for entries in ({"a" * 4096: Node.file(b"")}, {"a\0b": Node.file(b"")}, {"a": Node.symlink("t" * 4096)}):
        with pytest.raises(UsageError):
            archive(entries)
    with pytest.raises(UsageError, match="32 bits"):
        archive({"a": Node(stat.S_IFREG, uid=2**32)})
