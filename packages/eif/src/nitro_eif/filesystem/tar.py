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
from nitro_eif.files import CHUNK_BYTES
from nitro_eif.filesystem.cpio import PATH_BYTES_MAX, Node, encode_path
from nitro_eif.filesystem.tree import PATHS_MAX, Tree, clean, short, too_long

MEMBERS_MAX: Final = 4 * PATHS_MAX
"""Of an archive: files that are replaced later, and their extended attributes, count as well."""
HEADER_BYTES_MAX: Final = 1 << 20
"""Of an extended header: extended attributes have at most 64 KiB each on Linux."""

_BLOCK_BYTES: Final = 512
_PADDING_BYTES: Final = 3 * _BLOCK_BYTES
"""The rest of a block, and the two blocks of zeros that end an archive."""

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
    # Whiteouts first, whatever their place in the archive: they must not hide what this layer brings. The
    # archive is read twice for that, because a list of its members would take more memory than itself.
    if whiteouts and _contains(archive, _WHITEOUT.encode()):
        for member, path in read_members(archive):
            _white_out(tree, path, member)
    for member, path in read_members(archive):
        if not path or (whiteouts and path.rpartition("/")[2].startswith(_WHITEOUT)):
            continue
        try:
            tree.add(path, _node(tree, member, archive))
        except ValueError as error:
            raise EifFormatError(
                f"{short(member.name)} cannot be unpacked: {error}", offset=member.offset
            ) from None


def read_members(archive: memoryview) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """A tar archive's members and their clean paths.

    Raises:
        EifFormatError: The archive is malformed or has too many members, or a path would leave its root.
    """
    if not archive:
        raise EifFormatError("the tar archive is empty")
    work = 0
    try:
        with tarfile.open(
            fileobj=_Reader(archive), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                # The library keeps all members, which only random access needs.
                tar.members.clear()  # type: ignore[attr-defined]
                # It also copies all global headers for each member.
                work += 1 + len(member.pax_headers)
                if work > MEMBERS_MAX:
                    message = f"more than {MEMBERS_MAX} files and attributes"
                    raise EifFormatError(message, offset=member.offset)  # noqa: TRY301
                yield member, _checked(member)
            _check_end(archive, tar.offset)
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
        raise EifFormatError(f"the tar archive is broken: {error}") from None


def _check_end(archive: memoryview, at: int) -> None:
    """Ask that members end with the archive or with zeros, because the library stops at any garbage."""
    rest = bytes(archive[at : at + _BLOCK_BYTES])
    if any(rest):
        raise EifFormatError("a tar header is broken or truncated", offset=at)


def _contains(archive: memoryview, text: bytes) -> bool:
    # Pieces overlap, so that a text on their border is found.
    return any(
        text in bytes(archive[start : start + CHUNK_BYTES + len(text)])
        for start in range(0, len(archive), CHUNK_BYTES)
    )


def _checked(member: tarfile.TarInfo) -> str:
    if too_long(member.name) or too_long(member.linkname):
        raise EifFormatError(
            f"{short(member.name)} is or leads to a path of more than {PATH_BYTES_MAX} bytes",
            offset=member.offset,
        )
    path = clean(member.name)
    if ".." in path.split("/"):
        raise EifFormatError(f"{short(member.name)} leads out of the archive's root", offset=member.offset)
    return path


def _white_out(tree: Tree, path: str, member: tarfile.TarInfo) -> None:
    parent, _, name = path.rpartition("/")
    if not name.startswith(_WHITEOUT):
        return
    real = tree.resolve(parent) if parent else ""
    if real is None:
        return
    if name == _OPAQUE:
        for child in tree.names(real):
            tree.remove(f"{real}/{child}" if real else child)
        return
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in {"", ".", ".."}:
        raise EifFormatError(f"{short(member.name)} is a whiteout of nothing", offset=member.offset)
    tree.remove(f"{real}/{hidden}" if real else hidden)


def _node(tree: Tree, member: tarfile.TarInfo, archive: memoryview) -> Node:
    if member.type == tarfile.LNKTYPE:
        return _linked(tree, member)
    if member.isreg():
        kind, data = stat.S_IFREG, _contents(tree, member, archive)
    elif member.type in _TYPES:
        kind = _TYPES[member.type]
        data = encode_path(member.linkname) if kind == stat.S_IFLNK else b""
    else:
        raise EifFormatError(
            f"{short(member.name)} has the unknown tar type {member.type!r}", offset=member.offset
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
        message = f"{short(member.name)} is a hard link to {short(member.linkname)}, which is not before it"
        raise EifFormatError(message, offset=member.offset)
    return node


def _owner(number: int, member: tarfile.TarInfo) -> int:
    if not 0 <= number <= 0xFFFF_FFFF:
        raise EifFormatError(
            f"{short(member.name)} has owner {number}, which is not a 32-bit number", offset=member.offset
        )
    return number


def _contents(tree: Tree, member: tarfile.TarInfo, archive: memoryview) -> bytes | memoryview:
    end = member.offset_data + member.size
    if member.sparse is not None:
        tree.hold(member.size)
        return _expand(member, archive)
    if end > len(archive):
        message = (
            f"{short(member.name)} has {member.size} bytes, {len(archive) - member.offset_data} are left"
        )
        raise EifFormatError(f"{message} in the tar archive: truncated", offset=member.offset)
    return archive[member.offset_data : end]


def _expand(member: tarfile.TarInfo, archive: memoryview) -> bytes:
    """The contents of a sparse file, its holes filled with zeros, because a ramdisk has no holes."""
    contents = bytearray(member.size)
    at = member.offset_data
    pieces: Any = member.sparse
    for offset, size in pieces:
        if size and (offset < 0 or size < 0 or offset + size > member.size or at + size > len(archive)):
            raise EifFormatError(f"{short(member.name)} is a broken sparse file", offset=member.offset)
        contents[offset : offset + size] = archive[at : at + size]
        at += size
    return bytes(contents)


class _Reader(RawIOBase):
    """A file over a view, which copies only what is read of it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        # Contents are taken from the view, so the library reads headers only, and whole ones at once.
        if not 0 <= size <= HEADER_BYTES_MAX:
            raise EifFormatError(f"a tar header of {size} bytes", offset=self._at)
        data = bytes(self._view[self._at : self._at + size])
        # Zeros follow the end: some writers, such as umoci, leave out the last member's padding and the end
        # mark, and Go's reader does not mind. Contents that are cut short are noticed all the same.
        data += bytes(min(size, len(self._view) + _PADDING_BYTES - self._at) - len(data))
        self._at += len(data)
        return data
