"""The newc cpio format of ramdisks (Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``).

The writer is deterministic: paths sorted by their bytes, fixed times, inodes counted. Device numbers and the
first inode are those that AWS's build tool (linuxkit) writes, so that the same files make the same ramdisk.

A path here is relative, without ``./`` in front; bytes that are not UTF-8 are surrogate escapes.
"""

import re
import stat
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import IO, Final

from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.files import chunks
from nitro_eif.filesystem.magic import CPIO, CPIO_CHECKSUM

HEADER_BYTES: Final = 110
TRAILER: Final = "TRAILER!!!"
PATH_BYTES_MAX: Final = 4095
"""The kernel skips entries with longer names, and symbolic links with longer targets."""
FILE_BYTES_MAX: Final = 0xFFFF_FFFF
BLOCK_BYTES: Final = 512
ALIGNMENT: Final = 4

_FIRST_INODE: Final = 721
_DEVICE: Final = (3, 1)
_DIGITS: Final = re.compile(rb"[0-9a-fA-F]+")

Data = bytes | memoryview


@dataclass(slots=True, eq=False)
class Node:
    """A file of any type. Paths that are hard links of each other share one."""

    mode: int
    """Type and permissions, as in ``st_mode``."""
    uid: int = 0
    gid: int = 0
    data: Data = b""
    """A regular file's contents, or a symbolic link's target."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""
    xattrs: tuple[str, ...] = field(default=())
    """Names of extended attributes that the source had; newc has no place for them."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def target(self) -> str:
        """Where a symbolic link points."""
        return decode_path(bytes(self.data))

    @classmethod
    def directory(cls, permissions: int = 0o755) -> "Node":
        """A directory that belongs to root."""
        return cls(stat.S_IFDIR | permissions)

    @classmethod
    def file(cls, data: Data, permissions: int = 0o644) -> "Node":
        """A regular file that belongs to root."""
        return cls(stat.S_IFREG | permissions, data=data)

    @classmethod
    def symlink(cls, target: str) -> "Node":
        """A symbolic link that belongs to root."""
        return cls(stat.S_IFLNK | 0o777, data=encode_path(target))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive, as it was read."""

    path: str
    node: Node
    inode: int
    links: int
    mtime: int
    offset: int
    """Where its header starts, bytes from the start of the ramdisk."""
    archive: int
    """Where its archive starts; inodes mean something within one archive only."""


def encode_path(path: str) -> bytes:
    """A path's bytes."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(path: bytes) -> str:
    """A path as text, bytes that are not UTF-8 escaped."""
    return path.decode("utf-8", "surrogateescape")


def write_cpio(file: IO[bytes], entries: Iterable[tuple[str, Node]], *, mtime: int = 0) -> int:
    """Write an archive; returns its size in bytes.

    Args:
        file: Where to.
        entries: Paths and nodes in any order; parents need not be there, the kernel then fails to make their
            children.
        mtime: The modification time of all, seconds since 1970.

    Raises:
        UsageError: A path or file cannot be in a newc archive, or Linux does not unpack its type.
    """
    ordered = sorted(entries, key=lambda entry: encode_path(entry[0]))
    links: dict[int, int] = {}
    for _, node in ordered:
        links[id(node)] = links.get(id(node), 0) + 1
    remaining = dict(links)
    inodes: dict[int, int] = {}
    written = 0
    for path, node in ordered:
        key = id(node)
        remaining[key] -= 1
        inode = inodes.setdefault(key, _FIRST_INODE + len(inodes))
        # The last of a file's names has its data, as GNU cpio writes and reads them.
        data = node.data if not remaining[key] else b""
        count = 2 if node.is_directory else links[key]
        written += _write_entry(file, path, node, data, inode=inode, links=count, mtime=mtime)
    written += _write_entry(file, TRAILER, Node(0), b"", inode=_FIRST_INODE + len(inodes), links=1, mtime=0)
    padding = -written % BLOCK_BYTES
    file.write(bytes(padding))
    return written + padding


def _write_entry(
    file: IO[bytes], path: str, node: Node, data: Data, *, inode: int, links: int, mtime: int
) -> int:
    name = encode_path(path)
    if not 0 < len(name) <= PATH_BYTES_MAX or b"\0" in name:
        raise UsageError(f"{path[:100]!r}: a ramdisk's paths have 1 to {PATH_BYTES_MAX} bytes and no NUL")
    if len(data) > (PATH_BYTES_MAX if node.is_symlink else FILE_BYTES_MAX):
        raise UsageError(f"{path!r}: {len(data)} bytes are more than a ramdisk's file can have")
    numbers = (
        inode,
        node.mode,
        node.uid,
        node.gid,
        links,
        mtime,
        len(data),
        *_DEVICE,
        *node.device,
        len(name) + 1,
        0,
    )
    if not all(0 <= number <= FILE_BYTES_MAX for number in numbers):
        raise UsageError(f"{path!r}: owner, device or time does not fit 32 bits")
    header = CPIO + b"".join(b"%08x" % number for number in numbers) + name + b"\0"
    file.write(header + bytes(-len(header) % ALIGNMENT))
    for piece in chunks(memoryview(data)):
        file.write(piece)
    file.write(bytes(-len(data) % ALIGNMENT))
    return len(header) + -len(header) % ALIGNMENT + len(data) + -len(data) % ALIGNMENT


def read_archive(view: memoryview, start: int = 0) -> Generator[Entry, None, int]:
    """Read one archive up to its trailer; the generator's return value is where it ends.

    Hard links: each entry has a node of its own here; `nitro_eif.Tree` joins them.

    Raises:
        EifFormatError: An entry is malformed or truncated.
    """
    at = start
    while True:
        if at + HEADER_BYTES > len(view):
            raise EifFormatError(
                "the cpio archive ends without a trailer: truncated", offset=min(at, len(view))
            )
        header = bytes(view[at : at + HEADER_BYTES])
        if header[:6] not in {CPIO, CPIO_CHECKSUM}:
            raise EifFormatError(f"a cpio header starts with {CPIO!r}, not {header[:6]!r}", offset=at)
        numbers = _numbers(header, at)
        inode, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, _ = numbers
        name_end = at + HEADER_BYTES + name_size
        data_start = name_end + -(name_end - start) % ALIGNMENT
        data_end = data_start + size
        if not 0 < name_size <= PATH_BYTES_MAX + 1 or name_end > len(view):
            raise EifFormatError(f"a cpio entry's name has {name_size} bytes", offset=at)
        name = bytes(view[at + HEADER_BYTES : name_end])
        if name[-1]:
            raise EifFormatError("a cpio entry's name does not end with NUL", offset=name_end - 1)
        path = decode_path(name.split(b"\0", 1)[0])
        # The kernel takes an entry of this name with contents for a file.
        if path == TRAILER and not size:
            return min(data_start, len(view))
        if data_end > len(view):
            message = f"{path!r} has {size} bytes, {max(len(view) - data_start, 0)} are left in the archive"
            raise EifFormatError(message, offset=at)
        node = Node(mode, uid, gid, view[data_start:data_end], (major, minor))
        yield Entry(path, node, inode, links, mtime, at, start)
        at = data_end + -(data_end - start) % ALIGNMENT


def _numbers(header: bytes, at: int) -> list[int]:
    # int() would take signs, blanks and underscores.
    if not _DIGITS.fullmatch(header, len(CPIO)):
        raise EifFormatError("a cpio header has a field that is not a hexadecimal number", offset=at)
    return [int(header[start : start + 8], 16) for start in range(len(CPIO), HEADER_BYTES, 8)]
