"""A file system in memory: paths and nodes, with the rules by which layers change it.

Paths are relative and clean (``usr/bin/env``). Parents are followed through symbolic links inside the tree,
and never out of it, as an extraction into a root directory would.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nitro_eif.errors import EifFormatError
from nitro_eif.filesystem.cpio import Entry, Node, encode_path

_SYMLINKS_MAX: Final = 40
"""As Linux: more in one path are a loop."""


PATHS_MAX: Final = 4_000_000
"""More than any distribution has; a file of a few GiB could name a hundred times as many."""


class Tree:
    """Paths with their nodes; the root itself has none."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._children: dict[str, set[str]] = {"": set()}
        """Names in each directory."""

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, path: str) -> Node:
        return self._nodes[path]

    def get(self, path: str) -> Node | None:
        """The node at a path, without following links; `None` if there is none."""
        return self._nodes.get(path)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Paths and nodes, sorted by the paths' bytes."""
        for path in sorted(self._nodes, key=encode_path):
            yield path, self._nodes[path]

    def nodes(self) -> Iterator[Node]:
        """The nodes, once for each path."""
        yield from self._nodes.values()

    def below(self, directory: str) -> Iterator[str]:
        """The paths under a directory, parents first."""
        pending = [directory]
        while pending:
            parent = pending.pop()
            for name in sorted(self._children.get(parent, ())):
                path = f"{parent}/{name}" if parent else name
                yield path
                pending.append(path)

    def add(self, path: str, node: Node) -> str:
        """Put a node at a path, making parents where they are missing; returns the path without links.

        A directory over a directory keeps its children; anything else replaces what was there.

        Raises:
            ValueError: A parent is a loop of links, or no directory.
        """
        parent, _, name = path.rpartition("/")
        if name in {"", ".", ".."}:
            raise ValueError(f"{path!r} names no file")
        if len(self._nodes) >= PATHS_MAX:
            raise ValueError(f"more than {PATHS_MAX} files")
        parent = self._directory(parent)
        real = f"{parent}/{name}" if parent else name
        old = self._nodes.get(real)
        if old is not None and not (old.is_directory and node.is_directory):
            self.remove(real)
        self._nodes[real] = node
        self._children[parent].add(name)
        if node.is_directory:
            self._children.setdefault(real, set())
        return real

    def remove(self, path: str) -> None:
        """Take a path and what is under it away."""
        for child in list(self.below(path)):
            self._nodes.pop(child, None)
            self._children.pop(child, None)
        self._nodes.pop(path, None)
        self._children.pop(path, None)
        parent, _, name = path.rpartition("/")
        self._children.get(parent, set()).discard(name)

    def resolve(self, path: str) -> str | None:
        """Follow all links of a path; `None` if it leads nowhere."""
        try:
            found, missing = self._walk(path)
        except ValueError:
            return None
        return None if missing else found

    def real_path(self, path: str) -> str | None:
        """Follow the links of a path's parents, not its own; `None` if a parent leads nowhere."""
        parent, _, name = path.rpartition("/")
        found = self.resolve(parent) if parent else ""
        if found is None:
            return None
        return f"{found}/{name}" if found else name

    def _directory(self, path: str) -> str:
        found, missing = self._walk(path)
        if not missing and found and not self._nodes[found].is_directory:
            raise ValueError(f"{found} is not a directory")
        for name in missing:
            parent, found = found, f"{found}/{name}" if found else name
            self._nodes[found] = Node.directory()
            self._children[parent].add(name)
            self._children[found] = set()
        return found

    def _walk(self, path: str) -> tuple[str, list[str]]:
        """Follow a path as far as it exists; returns that far, and the names that are missing."""
        names = [name for name in path.split("/") if name not in {"", "."}][::-1]
        at = ""
        links = 0
        while names:
            name = names.pop()
            if name == "..":
                # At the root this stays there, as the kernel has it.
                at = at.rpartition("/")[0]
                continue
            if at and not self._nodes[at].is_directory:
                raise ValueError(f"{at} is not a directory")
            here = f"{at}/{name}" if at else name
            node = self._nodes.get(here)
            if node is None:
                return at, [name, *(rest for rest in names[::-1] if rest != "..")]
            if not node.is_symlink:
                at = here
                continue
            links += 1
            if links > _SYMLINKS_MAX:
                raise ValueError(f"{path} is a loop of symbolic links")
            target = node.target
            if target.startswith("/"):
                # Absolute means from the tree's root, as in a container.
                at = ""
            names += [part for part in target.split("/") if part not in {"", "."}][::-1]
        return at, []


def tree_of(entries: Iterable[Entry]) -> Tree:
    """Unpack a ramdisk's entries over each other, as the kernel does: later ones win, links share a node.

    Raises:
        EifFormatError: An entry cannot be unpacked.
    """
    tree = Tree()
    linked: dict[tuple[int, int, int], Node] = {}
    for entry in entries:
        path = clean(entry.path)
        if not path:
            continue
        node = entry.node
        if entry.links > 1 and not node.is_directory:
            node = linked.setdefault((entry.archive, entry.inode, entry.node.mode), node)
            if entry.node.data:
                node.data = entry.node.data
        try:
            tree.add(path, node)
        except ValueError as error:
            raise EifFormatError(f"{entry.path!r} cannot be unpacked: {error}", offset=entry.offset) from None
    return tree


def clean(path: str) -> str:
    """A path without empty parts, dots and a slash in front; parent references stay."""
    return "/".join(part for part in path.split("/") if part not in {"", "."})
