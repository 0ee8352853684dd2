"""Where the parts of an image come from on this machine: an OCI layout, or what ``docker save`` writes.

(OCI image-spec 1.1, image-layout.md.) A layout is a directory or a tar archive of one.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nitro_eif.container.documents import Json, load_document, objects
from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.files import map_file
from nitro_eif.filesystem.tar import read_members
from nitro_eif.filesystem.tree import clean

if TYPE_CHECKING:
    import tarfile

_LINKS_MAX: Final = 2
"""``docker save`` of old links equal layers to each other, once."""


class Root(NamedTuple):
    """Where reading an image starts."""

    document: bytes
    """An index or manifest."""
    name: str
    """What the image calls itself, wherever its files are; empty if it has no name."""


class Store(Protocol):
    """Where an image's parts come from."""

    def root(self) -> Root:
        """The top document, and the image's name."""

    def blob(self, digest: str, size: int | None) -> memoryview:
        """A blob's bytes; the caller checks their digest.

        Raises:
            EifFormatError: There is no such blob.
            HostError: It cannot be had.
        """


class Directory:
    """The files of a layout on disk."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack

    def read(self, name: str) -> memoryview:
        """The contents of a file; valid until the stack closes."""
        path = self._root / name
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise EifFormatError(f"{name} leads out of the image's directory", path=self._root)
        if not path.exists():
            raise EifFormatError(f"the image lacks {name}", path=self._root)
        return self._stack.enter_context(map_file(path))


class Archive:
    """The files of a layout in a tar archive."""

    def __init__(self, archive: memoryview, path: Path) -> None:
        self._archive = archive
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            for member, name in read_members(archive):
                self._members[name] = member
        except EifFormatError as error:
            raise error.at(path) from None
        self.names = self._members.keys()

    def read(self, name: str) -> memoryview:
        """The contents of a file."""
        name = clean(name)
        member = self._members.get(name)
        for _ in range(_LINKS_MAX):
            if member is not None and (member.issym() or member.islnk()):
                target = member.linkname if member.islnk() else f"{name.rpartition('/')[0]}/{member.linkname}"
                parts: list[str] = []
                for part in clean(target).split("/"):
                    parts = parts[:-1] if part == ".." else [*parts, part]
                member = self._members.get("/".join(parts))
        if member is None or not member.isreg():
            raise EifFormatError(f"the image lacks {name}", path=self._path)
        return self._archive[member.offset_data : member.offset_data + member.size]


class Layout:
    """The store that an OCI layout is.

    Args:
        files: Where its files are.
        tag: Which of its images is meant; `None` where it has one only.
        path: What it is called, for messages.
    """

    def __init__(self, files: Directory | Archive, tag: str | None, path: Path) -> None:
        self._files = files
        self._tag = tag
        self._path = path

    def root(self) -> Root:
        """The part of ``index.json`` that is about the chosen image."""
        index = load_document(self._files.read("index.json"), self._path)
        manifests = objects(index.get("manifests"), "index.json's manifests", self._path)
        if self._tag is not None:
            manifests = [entry for entry in manifests if ref_name(entry) == self._tag]
            if not manifests:
                raise EifFormatError(f"the layout has no image named {self._tag!r}", path=self._path)
        names = sorted({ref_name(entry) or "" for entry in manifests})
        if len(names) > 1:
            raise UsageError(
                f"{self._path} has several images", hint=f"choose with :TAG one of {', '.join(names)}"
            )
        return Root(json.dumps({"manifests": manifests}).encode(), names[0])

    def blob(self, digest: str, size: int | None) -> memoryview:
        """A file below ``blobs``."""
        del size
        algorithm, _, value = digest.partition(":")
        return self._files.read(f"blobs/{algorithm}/{value}")


def ref_name(entry: Json) -> str | None:
    """The name that a layout's index gives an image; `None` if it gives none."""
    annotations = entry.get("annotations")
    name = annotations.get("org.opencontainers.image.ref.name") if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None
