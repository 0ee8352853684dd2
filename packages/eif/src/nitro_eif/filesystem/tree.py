"""A file system in memory: paths and nodes, with the rules by which layers change it.

Paths are relative and clean (``usr/bin/env``). Parents are followed through symbolic links inside the tree,
and never out of it, as an extraction into a root directory would.

A small archive can name very much: deep paths, links that lead to links, sparse files. So a tree has limits
on what it holds and on how long it looks, and refuses what goes beyond them.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nitro_eif.errors import EifFormatError
from nitro_eif.filesystem.cpio import PATH_BYTES_MAX, Entry, Node, encode_path

_SYMLINKS_MAX: Final = 40
"""As Linux: more in one path are a loop."""

PATHS_MAX: Final = 1 << 20
"""More than any distribution has; a compressed file of a few MiB could name a thousand times as many."""
ALL_PATHS_BYTES_MAX: Final = 256 << 20
"""Of all paths together, those of implied parents too: the average is below 100 bytes."""
STEPS_MAX: Final = 16 << 20
"""How many names of paths may be looked up: 16 for each path that there may be."""
HELD_BYTES_MAX: Final = 256 << 20
"""What contents that are not views of a file, such as those of sparse files, may occupy in memory."""


class Tree:
    """Paths with their nodes; the root itself has none."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._children: dict[str, dict[str, None]] = {"": {}}
        """Names in each directory that has any; a dictionary is smaller than a set."""
        self._paths_bytes = 0
        self._steps = 0
        self._held_bytes = 0

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

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(self._children.get(directory, ()))

    def below(self, directory: str) -> Iterator[str]:
        """The paths under a directory, parents first."""
        pending = [directory]
        while pending:
            parent = pending.pop()
            for name in self.names(parent):
                path = f"{parent}/{name}" if parent else name
                yield path
                pending.append(path)

    def hold(self, count: int) -> None:
        """Note that contents of so many bytes are kept in memory.

        Raises:
            ValueError: They are too many, with those that are kept already.
        """
        self._held_bytes += count
        if self._held_bytes > HELD_BYTES_MAX:
            raise ValueError(f"its contents and others like it have more than {HELD_BYTES_MAX} bytes")

    def add(self, path: str, node: Node) -> str:
        """Put a node at a path, making parents where they are missing; returns the path without links.

        A directory over a directory keeps its children; anything else replaces what was there.

        Raises:
            ValueError: A parent is a loop of links, or not a directory; or a limit is exceeded.
        """
        if too_long(path):
            raise ValueError(f"a path of more than {PATH_BYTES_MAX} bytes")
        if node.is_symlink and len(node.data) > PATH_BYTES_MAX:
            raise ValueError(f"a symbolic link to a path of more than {PATH_BYTES_MAX} bytes")
        parent, _, name = path.rpartition("/")
        if name in {"", ".", ".."}:
            raise ValueError(f"{path!r} names no file")
        parent = self._directory(parent)
        real = f"{parent}/{name}" if parent else name
        old = self._nodes.get(real)
        if old is not None and not (old.is_directory and node.is_directory):
            self.remove(real)
        self._put(real, parent, name, node)
        return real

    def remove(self, path: str) -> None:
        """Take a path and what is under it away."""
        for child in [path, *self.below(path)]:
            if self._nodes.pop(child, None) is not None:
                self._paths_bytes -= len(child)
            self._children.pop(child, None)
        parent, _, name = path.rpartition("/")
        self._children.get(parent, {}).pop(name, None)

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

    def _put(self, path: str, parent: str, name: str, node: Node) -> None:
        if path not in self._nodes:
            self._paths_bytes += len(path)
            if len(self._nodes) >= PATHS_MAX:
                raise ValueError(f"more than {PATHS_MAX} files")
            if too_long(path):
                # Links may have led a short path to a long one.
                raise ValueError(f"a path of more than {PATH_BYTES_MAX} bytes")
            if self._paths_bytes > ALL_PATHS_BYTES_MAX:
                raise ValueError(f"all paths together have more than {ALL_PATHS_BYTES_MAX} bytes")
        self._nodes[path] = node
        self._children.setdefault(parent, {})[name] = None

    def _directory(self, path: str) -> str:
        found, missing = self._walk(path)
        if not missing and found and not self._nodes[found].is_directory:
            raise ValueError(f"{found} is not a directory")
        for name in missing:
            parent, found = found, f"{found}/{name}" if found else name
            self._put(found, parent, name, Node.directory())
        return found

    def _walk(self, path: str) -> tuple[str, list[str]]:
        """Follow a path as far as it exists; returns that far, and the names that are missing."""
        names = [name for name in path.split("/") if name not in {"", "."}][::-1]
        at = ""
        links = 0
        while names:
            # Forty links of a thousand names each would else cost seconds for every path through them.
            self._steps += 1
            if self._steps > STEPS_MAX:
                raise ValueError("its symbolic links take too long to follow")
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
            # All names of a file have its inode; the kernel takes contents from the one that has any.
            node = linked.setdefault((entry.archive, entry.inode, entry.node.mode), node)
            if entry.node.data:
                node.data = entry.node.data
        try:
            tree.add(path, node)
        except ValueError as error:
            raise EifFormatError(
                f"{short(entry.path)} cannot be unpacked: {error}", offset=entry.offset
            ) from None
    return tree


def too_long(path: str) -> bool:
    """Whether a path is longer than Linux and cpio archives can have it."""
    return len(path if path.isascii() else encode_path(path)) > PATH_BYTES_MAX


def clean(path: str) -> str:
    """A path without empty parts, dots and a slash in front; parent references stay."""
    return "/".join(part for part in path.split("/") if part not in {"", "."})


def short(path: str) -> str:
    """A path for messages, quoted and not too long."""
    return repr(path if len(path) <= 100 else f"{path[:97]}...")
