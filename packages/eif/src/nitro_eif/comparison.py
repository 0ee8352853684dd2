"""What differs between two images, and which registers change because of it."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from nitro_eif.errors import EifFormatError, HostError
from nitro_eif.files import chunks
from nitro_eif.filesystem.cpio import Node
from nitro_eif.filesystem.ramdisk import read_ramdisk
from nitro_eif.filesystem.tree import Tree, tree_of
from nitro_eif.image.format import SectionType
from nitro_eif.image.metadata import load_json
from nitro_eif.image.reader import Eif

_BOOT: Final = ("PCR0", "PCR1")
_APPLICATION: Final = ("PCR0", "PCR2")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs."""

    part: str
    """What of the image: ``kernel``, ``ramdisk 1``, ``metadata``, ``order``, ``file`` and so on."""
    what: str
    path: str | None = None
    """A file in a ramdisk, or a member of the metadata."""
    pcrs: tuple[str, ...] = ()
    """The registers that it changes."""

    def as_json(self) -> dict[str, Any]:
        """The difference as plain data."""
        return {"Part": self.part, "Path": self.path, "What": self.what, "PCRs": list(self.pcrs)}


def compare(a: Eif, b: Eif) -> Iterator[Difference]:
    """What differs between two images, measured parts first; nothing only if all bytes are equal."""
    found = False
    for difference in _compare(a, b):
        found = True
        yield difference
    if not found and not same_bytes(a.view, b.view):
        at = _first_difference(a.view, b.view)
        yield Difference("file", f"bytes outside of sections differ, from byte {at:#x}")


def _compare(a: Eif, b: Eif) -> Iterator[Difference]:
    for kind in (SectionType.KERNEL, SectionType.CMDLINE):
        yield from _simple(kind.name.lower(), _data(a, kind), _data(b, kind), _BOOT)
    for index, (left, right) in enumerate(zip_longest(a.ramdisks, b.ramdisks)):
        yield from _ramdisk(index, left, right)
    order_a = [section.type for section in a.measured]
    order_b = [section.type for section in b.measured]
    if order_a != order_b and sorted(order_a) == sorted(order_b):
        yield Difference("order", "measured sections are in another order", pcrs=("PCR0", "PCR1"))
    yield from _metadata(a, b)
    yield from _signature(a, b)
    yield from _header(a, b)


def compare_trees(a: Tree, b: Tree) -> Iterator[tuple[str, str]]:
    """Each path that differs, and how."""
    for path in sorted({path for path, _ in a.items()} | {path for path, _ in b.items()}):
        left, right = a.get(path), b.get(path)
        if left is None or right is None:
            yield path, "only in the second" if left is None else "only in the first"
        else:
            changes = list(_node_changes(left, right))
            if changes:
                yield path, ", ".join(changes)


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Compare in pieces: comparing views as such is slow, and as bytes it copies all."""
    return len(a) == len(b) and all(
        bytes(left) == bytes(right) for left, right in zip(chunks(a), chunks(b), strict=True)
    )


def _data(eif: Eif, kind: SectionType) -> list[memoryview]:
    return [section.data for section in eif.of_type(kind)]


def _simple(
    part: str, a: list[memoryview], b: list[memoryview], pcrs: tuple[str, ...]
) -> Iterator[Difference]:
    for left, right in zip_longest(a, b):
        if left is None or right is None:
            yield Difference(part, f"only in the {'second' if left is None else 'first'}", pcrs=pcrs)
        elif not same_bytes(left, right):
            if part == "cmdline":
                texts = [bytes(view[:4096]).decode(errors="replace") for view in (left, right)]
                yield Difference(part, f"{texts[0]!r} became {texts[1]!r}", pcrs=pcrs)
            else:
                at = _first_difference(left, right)
                yield Difference(
                    part, f"{len(left)} and {len(right)} bytes, differ from byte {at:#x}", pcrs=pcrs
                )


def _ramdisk(index: int, a: memoryview | None, b: memoryview | None) -> Iterator[Difference]:
    part, pcrs = f"ramdisk {index}", _APPLICATION if index else _BOOT
    if a is None or b is None:
        yield Difference(part, f"only in the {'second' if a is None else 'first'}", pcrs=pcrs)
        return
    if same_bytes(a, b):
        return
    try:
        changes = list(compare_trees(tree_of(read_ramdisk(a)), tree_of(read_ramdisk(b))))
    except (EifFormatError, HostError) as error:
        at = _first_difference(a, b)
        yield Difference(part, f"differs from byte {at:#x} (its files cannot be read: {error})", pcrs=pcrs)
        return
    for path, what in changes:
        yield Difference(part, what, path, pcrs)
    if not changes:
        yield Difference(part, "the same files, written otherwise (times, order, compression)", pcrs=pcrs)


def _node_changes(a: Node, b: Node) -> Iterator[str]:
    if stat.S_IFMT(a.mode) != stat.S_IFMT(b.mode):
        yield f"{_kind(a)} became {_kind(b)}"
        return
    if a.mode != b.mode:
        yield f"mode {stat.S_IMODE(a.mode):04o} became {stat.S_IMODE(b.mode):04o}"
    if (a.uid, a.gid) != (b.uid, b.gid):
        yield f"owner {a.uid}:{a.gid} became {b.uid}:{b.gid}"
    if a.device != b.device:
        yield f"device {a.device[0]}:{a.device[1]} became {b.device[0]}:{b.device[1]}"
    left, right = memoryview(a.data), memoryview(b.data)
    if not same_bytes(left, right):
        if a.is_symlink:
            yield f"target {a.target!r} became {b.target!r}"
        else:
            yield f"contents differ, {len(left)} and {len(right)} bytes"


def _kind(node: Node) -> str:
    names = {
        stat.S_IFDIR: "directory",
        stat.S_IFREG: "file",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
    }
    return names.get(stat.S_IFMT(node.mode), "unknown file type")


def _metadata(a: Eif, b: Eif) -> Iterator[Difference]:
    left, right = a.metadata, b.metadata
    if left is None or right is None:
        if left is not right:
            yield Difference("metadata", f"only in the {'second' if left is None else 'first'}")
        return
    if same_bytes(left, right):
        return
    try:
        changes = list(_members("", load_json(left), load_json(right)))
    except EifFormatError:
        changes = []
    for path, what in changes:
        yield Difference("metadata", what, path)
    if not changes:
        yield Difference("metadata", "written otherwise")


def _members(prefix: str, a: object, b: object) -> Iterator[tuple[str, str]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            path = f"{prefix}.{key}" if prefix else str(key)
            if key not in a or key not in b:
                yield path, f"only in the {'second' if key not in a else 'first'}"
            else:
                yield from _members(path, a[key], b[key])
    elif a != b:
        yield prefix, f"{_short(a)} became {_short(b)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _signature(a: Eif, b: Eif) -> Iterator[Difference]:
    left, right = a.signature, b.signature
    if left is None or right is None:
        if left is not right:
            yield Difference(
                "signature", f"only in the {'second' if left is None else 'first'}", pcrs=("PCR8",)
            )
        return
    if same_bytes(left, right):
        return
    from nitro_eif.image.signature import read_signatures  # noqa: PLC0415 - cryptography is slow to import

    try:
        certificates = [read_signatures(eif)[0].certificate_der for eif in (a, b)]
    except EifFormatError as error:
        yield Difference("signature", f"differs, and one cannot be read: {error}", pcrs=("PCR8",))
        return
    if certificates[0] != certificates[1]:
        yield Difference("signature", "by another certificate", pcrs=("PCR8",))
    else:
        yield Difference("signature", "made anew by the same certificate")


def _header(a: Eif, b: Eif) -> Iterator[Difference]:
    for name in ("version", "flags", "default_memory_bytes", "default_cpus", "reserved", "unused"):
        left, right = getattr(a.header, name), getattr(b.header, name)
        if left != right:
            yield Difference("header", f"{left} became {right}", name)


def _first_difference(a: memoryview, b: memoryview) -> int:
    at = 0
    for left, right in zip(chunks(a), chunks(b), strict=False):
        if bytes(left) != bytes(right):
            # One of the two may end inside of this piece.
            for index, (x, y) in enumerate(zip(left, right, strict=False)):
                if x != y:
                    return at + index
        at += len(left)
    return min(len(a), len(b))
