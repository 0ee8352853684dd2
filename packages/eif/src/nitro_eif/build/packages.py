"""Files of distributions' packages: Debian's, and RPMs.

A Debian package is an ``ar`` archive (deb(5)) with a tar archive of files in it. An RPM is a lead, two
headers of an index and a store, and a compressed cpio archive (rpm.org, "RPM V4 Package format").
"""

import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.files import map_file
from nitro_eif.filesystem.compression import unpacked
from nitro_eif.filesystem.ramdisk import read_ramdisk
from nitro_eif.filesystem.tar import apply_tar
from nitro_eif.filesystem.tree import Tree, clean

SUFFIXES: Final = (".deb", ".rpm")

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_BYTES: Final = 60

_RPM_MAGIC: Final = b"\xed\xab\xee\xdb"
_RPM_LEAD_BYTES: Final = 96
_RPM_HEADER_MAGIC: Final = b"\x8e\xad\xe8\x01"
# magic reserved index_entries store_bytes
_RPM_HEADER: Final = struct.Struct(">4s4xII")
_RPM_ENTRY_BYTES: Final = 16
_RPM_SIGNATURE_ALIGNMENT: Final = 8
_RPM_STRIPPED_MAGIC: Final = b"07070X"
"""Of a cpio archive without names, which packages of version 6 have, and those with files over 4 GiB."""


def package_files(paths: list[Path]) -> list[Path]:
    """The packages that are meant by files and directories of them.

    Raises:
        UsageError: A directory has no packages.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        if not inside:
            raise UsageError(f"{path}: there is no package in this directory, no .deb and no .rpm")
        found += inside
    return found


def unpack_packages(paths: list[Path], stack: ExitStack) -> Tree:
    """The files of several packages, over each other.

    Args:
        paths: The packages.
        stack: Closes maps and temporary files; the tree is valid until then.

    Raises:
        EifFormatError: A package is malformed.
        HostError: One cannot be read.
    """
    tree = Tree()
    for path in paths:
        view = stack.enter_context(map_file(path))
        try:
            if bytes(view[:4]) == _RPM_MAGIC:
                _apply_rpm(tree, view, stack)
            else:
                apply_tar(tree, unpacked(_data_member(view), stack), whiteouts=False)
        except EifFormatError as error:
            raise error.at(path) from None
    return tree


def _apply_rpm(tree: Tree, view: memoryview, stack: ExitStack) -> None:
    at = _rpm_header_end(view, _RPM_LEAD_BYTES)
    at += -(at - _RPM_LEAD_BYTES) % _RPM_SIGNATURE_ALIGNMENT
    at = _rpm_header_end(view, at)
    payload = unpacked(view[at:], stack)
    if bytes(payload[: len(_RPM_STRIPPED_MAGIC)]) == _RPM_STRIPPED_MAGIC:
        raise EifFormatError(
            "the package's files have their names in its header, which is not read here",
            offset=at,
            hint="unpack it (rpm2archive, bsdtar -x), and give the kernel with --kernel",
        )
    try:
        for entry in read_ramdisk(payload):
            path = clean(entry.path)
            if path and ".." not in path.split("/"):
                tree.add(path, entry.node)
    except ValueError as error:
        raise EifFormatError(f"the package cannot be unpacked: {error}", offset=at) from None


def _rpm_header_end(view: memoryview, at: int) -> int:
    if at + _RPM_HEADER.size > len(view):
        raise EifFormatError("the package is truncated", offset=min(at, len(view)))
    magic, entries, store_bytes = _RPM_HEADER.unpack_from(view, at)
    if magic != _RPM_HEADER_MAGIC:
        raise EifFormatError("not an RPM: a header does not begin as it must", offset=at)
    end: int = at + _RPM_HEADER.size + entries * _RPM_ENTRY_BYTES + store_bytes
    if end > len(view):
        raise EifFormatError("a header of the package leads behind its end: truncated", offset=at)
    return end


def _data_member(view: memoryview) -> memoryview:
    if bytes(view[: len(_AR_MAGIC)]) != _AR_MAGIC:
        raise EifFormatError("neither a Debian package nor an RPM")
    at = len(_AR_MAGIC)
    while at + _AR_HEADER_BYTES <= len(view):
        header = bytes(view[at : at + _AR_HEADER_BYTES])
        digits = header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            raise EifFormatError("a broken header in the ar archive", offset=at)
        size = int(digits)
        start = at + _AR_HEADER_BYTES
        if start + size > len(view):
            raise EifFormatError("the ar archive is truncated", offset=at)
        if header.startswith(b"data.tar"):
            return view[start : start + size]
        at = start + size + size % 2
    raise EifFormatError("the package has no data.tar", offset=min(at, len(view)))
