"""Tar archives into a tree: root file systems, and the layers of container images with their whiteouts.

Whiteouts (OCI image-spec, layer.md): ``.wh.NAME`` hides NAME of the layers below, ``.wh..wh..opq`` all of a
directory's children there; neither touches what its own layer brings.
"""

import stat
import tarfile
from collections.abc import Iterator
from io import RawIOBase
from typing import Any, Final

from nitro_eif.errors import EifFormatError
from nitro_eif.filesystem.cpio import Node, encode_path
from nitro_eif.filesystem.tree import Tree, clean

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_XATTR_PREFIXES: Final = ("SCHILY.xattr.", "LIBARCHIVE.xattr.")
_TYPES: Final = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
}


def apply_tar(tree: Tree, archive: memoryview, *, whiteouts: bool = True) -> None:
    """Unpack an uncompressed tar archive over a tree. Files stay views of the archive, except sparse ones.

    Args:
        tree: What is there already, changed in place.
        archive: The tar file.
        whiteouts: Whether it is a layer, whose ``.wh.`` files hide what is below.

    Raises:
        EifFormatError: The archive is malformed, or an entry would leave the tree.
    """
    members = list(read_members(archive))
    if whiteouts:
        # First, whatever their place in the archive: they must not hide what this layer brings.
        for member, path in members:
            _white_out(tree, path, member)
        members = [(m, path) for m, path in members if not path.rpartition("/")[2].startswith(_WHITEOUT)]
    for member, path in members:
        if path:
            try:
                tree.add(path, _node(tree, member, archive))
            except ValueError as error:
                raise EifFormatError(
                    f"{member.name!r} cannot be unpacked: {error}", offset=member.offset
                ) from None


def read_members(archive: memoryview) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """A tar archive's members and their clean paths.

    Raises:
        EifFormatError: The archive is malformed, or a path would leave its root.
    """
    try:
        with tarfile.open(
            fileobj=_Reader(archive), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                yield member, _checked(member)
    except EifFormatError:
        raise
    except (
        tarfile.TarError,
        ValueError,
        EOFError,
        OverflowError,
        IndexError,
        RecursionError,
        OSError,
    ) as error:
        raise EifFormatError(f"the tar archive is broken: {error}", offset=0) from None


def _checked(member: tarfile.TarInfo) -> str:
    path = clean(member.name)
    if ".." in path.split("/"):
        raise EifFormatError(f"{member.name!r} leads out of the archive's root", offset=member.offset)
    return path


def _white_out(tree: Tree, path: str, member: tarfile.TarInfo) -> None:
    parent, _, name = path.rpartition("/")
    if not name.startswith(_WHITEOUT):
        return
    real = tree.resolve(parent) if parent else ""
    if real is None:
        return
    if name == _OPAQUE:
        for child in [path for path in tree.below(real) if path.rpartition("/")[0] == real]:
            tree.remove(child)
        return
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in {"", ".", ".."}:
        raise EifFormatError(f"{member.name!r} is a whiteout of nothing", offset=member.offset)
    tree.remove(f"{real}/{hidden}" if real else hidden)


def _node(tree: Tree, member: tarfile.TarInfo, archive: memoryview) -> Node:
    if member.type == tarfile.LNKTYPE:
        return _linked(tree, member)
    if member.isreg():
        kind, data = stat.S_IFREG, _contents(member, archive)
    elif member.type in _TYPES:
        kind = _TYPES[member.type]
        data = encode_path(member.linkname) if kind == stat.S_IFLNK else b""
    else:
        raise EifFormatError(
            f"{member.name!r} has the unknown tar type {member.type!r}", offset=member.offset
        )
    is_device = kind in {stat.S_IFCHR, stat.S_IFBLK}
    return Node(
        kind | (0o777 if kind == stat.S_IFLNK else member.mode & 0o7777),
        _owner(member.uid, member),
        _owner(member.gid, member),
        data,
        (member.devmajor, member.devminor) if is_device else (0, 0),
        tuple(
            key.removeprefix(prefix)
            for key in member.pax_headers
            for prefix in _XATTR_PREFIXES
            if key.startswith(prefix)
        ),
    )


def _linked(tree: Tree, member: tarfile.TarInfo) -> Node:
    target = tree.real_path(clean(member.linkname))
    node = tree.get(target) if target is not None else None
    if node is None or node.is_directory:
        message = (
            f"{member.name!r} is a hard link to {member.linkname!r}, but there is no such file before it"
        )
        raise EifFormatError(message, offset=member.offset)
    return node


def _owner(number: int, member: tarfile.TarInfo) -> int:
    if not 0 <= number <= 0xFFFF_FFFF:
        raise EifFormatError(
            f"{member.name!r} has owner {number}, which is not a 32-bit number", offset=member.offset
        )
    return number


def _contents(member: tarfile.TarInfo, archive: memoryview) -> bytes | memoryview:
    end = member.offset_data + member.size
    if member.sparse is not None:
        return _expand(member, archive)
    if end > len(archive):
        message = f"{member.name!r} has {member.size} bytes, {len(archive) - member.offset_data} are left"
        raise EifFormatError(f"{message} in the tar archive: truncated", offset=member.offset)
    return archive[member.offset_data : end]


def _expand(member: tarfile.TarInfo, archive: memoryview) -> bytes:
    """The contents of a sparse file, its holes filled with zeros, because a ramdisk has no holes."""
    if member.size > _SPARSE_BYTES_MAX:
        raise EifFormatError(f"{member.name!r} is a sparse file of {member.size} bytes", offset=member.offset)
    contents = bytearray(member.size)
    at = member.offset_data
    pieces: Any = member.sparse
    for offset, size in pieces:
        if size and (offset < 0 or size < 0 or offset + size > member.size or at + size > len(archive)):
            raise EifFormatError(f"{member.name!r} is a broken sparse file", offset=member.offset)
        contents[offset : offset + size] = archive[at : at + size]
        at += size
    return bytes(contents)


_SPARSE_BYTES_MAX: Final = 1 << 30


class _Reader(RawIOBase):
    """A file over a view, which copies only what is read of it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data
