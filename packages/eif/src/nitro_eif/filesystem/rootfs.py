"""Root file systems on disk: a directory, or a tar archive that may be compressed."""

import os
import stat
from contextlib import ExitStack
from pathlib import Path

from nitro_eif.errors import EifFormatError, HostError
from nitro_eif.files import CHUNK_BYTES, map_file
from nitro_eif.filesystem.compression import unpacked
from nitro_eif.filesystem.cpio import Node
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.filesystem.tree import Tree


def read_rootfs(path: Path, stack: ExitStack) -> Tree:
    """Read a directory or a tar archive.

    A directory's files all belong to root: whose they are on this machine says nothing about the enclave, and
    would differ from user to user. An archive's files keep their owners.

    Args:
        path: The directory or archive.
        stack: Closes maps and temporary files; the tree is valid until then.

    Raises:
        EifFormatError: The archive is malformed.
        HostError: Something cannot be read.
    """
    if path.is_dir():
        return _read_directory(path, stack)
    view = stack.enter_context(map_file(path))
    tree = Tree()
    try:
        apply_tar(tree, unpacked(view, stack), whiteouts=False)
    except EifFormatError as error:
        raise error.at(path) from None
    return tree


def _read_directory(root: Path, stack: ExitStack) -> Tree:
    tree = Tree()
    inodes: dict[tuple[int, int], Node] = {}
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(root / parent) as found:
                names = sorted(entry.name for entry in found)
            for name in names:
                path = f"{parent}/{name}" if parent else name
                status = (root / path).lstat()
                key = (status.st_dev, status.st_ino)
                node = inodes.get(key)
                if node is None:
                    node = _read_file(root / path, status, stack)
                    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                        inodes[key] = node
                tree.add(path, node)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
        except OSError as error:
            raise HostError(f"{error.filename or root}: cannot read it: {error.strerror}") from error
    return tree


def _read_file(path: Path, status: os.stat_result, stack: ExitStack) -> Node:
    mode = status.st_mode
    data: bytes | memoryview = b""
    if stat.S_ISREG(mode):
        data = (
            path.read_bytes() if status.st_size < _MAPPED_BYTES_MIN else stack.enter_context(map_file(path))
        )
    elif stat.S_ISLNK(mode):
        data = os.fsencode(path.readlink())
    elif stat.S_ISSOCK(mode):
        raise HostError(f"{path}: a socket cannot be in an image; remove it")
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0)
    return Node(mode, data=data, device=device, xattrs=_xattrs(path))


_MAPPED_BYTES_MIN = CHUNK_BYTES
"""Smaller files are read: a root file system may have more files than a process may have maps."""


def _xattrs(path: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listxattr(path, follow_symlinks=False)))
    except (OSError, AttributeError):
        return ()
