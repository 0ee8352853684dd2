"""Sparse files of tar archives: their holes are zeros, and maps that lead elsewhere are refused."""

import io
import tarfile

import pytest

from nitro_eif import EifFormatError, Tree
from nitro_eif.filesystem import tree as limits
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.testing import tar_member


def sparse(size: int, pieces: list[tuple[int, int]], data: bytes) -> bytes:
    """An archive of one sparse file, in the form of GNU tar 0.1 (PAX)."""
    numbers = ",".join(str(number) for piece in pieces for number in piece)
    member = tar_member("f", pax={"GNU.sparse.map": numbers, "GNU.sparse.size": str(size)})
    member.size = len(data)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def unpacked(archive: bytes) -> bytes:
    tree = Tree()
    apply_tar(tree, memoryview(archive))
    return bytes(tree["f"].data)


@pytest.mark.parametrize(
    ("size", "pieces", "data", "contents"),
    [
        (10, [(2, 3)], b"abc", b"\0\0abc\0\0\0\0\0"),
        (6, [(0, 2), (4, 2)], b"abcd", b"ab\0\0cd"),
        (4, [(0, 4)], b"abcd", b"abcd"),
        (4, [(4, 0)], b"", b"\0\0\0\0"),
    ],
)
def test_holes_are_zeros(size: int, pieces: list[tuple[int, int]], data: bytes, contents: bytes) -> None:
    assert unpacked(sparse(size, pieces, data)) == contents


@pytest.mark.parametrize(
    ("size", "pieces"), [(4, [(3, 2)]), (4, [(5, 1)]), (4, [(-1, 2)]), (10, [(0, -1)]), (10, [(0, 9000)])]
)
def test_maps_that_lead_elsewhere_are_refused(size: int, pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(EifFormatError, match="broken"):
        unpacked(sparse(size, pieces, b"ab"))


def test_what_sparse_files_hold_together_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.HELD_BYTES_MAX == 256 << 20
    monkeypatch.setattr(limits, "HELD_BYTES_MAX", 100)

    assert len(unpacked(sparse(100, [(0, 1)], b"a"))) == 100
    with pytest.raises(EifFormatError, match="more than 100 bytes"):
        unpacked(sparse(101, [(0, 1)], b"a"))
