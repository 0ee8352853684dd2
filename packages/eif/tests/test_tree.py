"""How much a tree of files may hold, to the last one; the limits are lower here."""

import pytest

from nitro_eif import Node, Tree
from nitro_eif.filesystem import tree as limits
from nitro_eif.filesystem.cpio import PATH_BYTES_MAX
from nitro_eif.filesystem.tree import short

FILE = Node.file(b"x")


def test_so_many_files_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATHS_MAX", 3)
    tree = Tree()
    for path in ("a/b", "c", "c"):
        tree.add(path, FILE)

    with pytest.raises(ValueError, match="more than 3 files"):
        tree.add("d", FILE)
    assert sorted(path for path, _ in tree.items()) == ["a", "a/b", "c"]


def test_so_many_bytes_of_paths_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ALL_PATHS_BYTES_MAX", 10)
    tree = Tree()
    for path in ("aa/bb", "ccc"):  # and aa
        tree.add(path, FILE)
    tree.add("aa/bb", FILE)
    tree.remove("aa")
    tree.add("dd/ee", FILE)

    with pytest.raises(ValueError, match="all paths together have more than 10 bytes"):
        tree.add("f", FILE)


def test_so_many_lookups_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STEPS_MAX", 7)
    tree = Tree()
    tree.add("a", FILE)
    steps = tree._steps

    for _ in range(7 - steps):
        assert tree.resolve("a") == "a"

    assert tree.resolve("a") is None


def test_so_many_bytes_in_memory_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELD_BYTES_MAX", 10)
    tree = Tree()
    tree.hold(4)
    tree.hold(6)

    with pytest.raises(ValueError, match="more than 10 bytes"):
        tree.hold(1)


@pytest.mark.parametrize(("length", "taken"), [(PATH_BYTES_MAX, True), (PATH_BYTES_MAX + 1, False)])
def test_links_lead_to_paths_of_4095_bytes_at_most(length: int, taken: object) -> None:
    tree = Tree()
    link = Node.symlink("x" * length)

    if taken:
        assert tree.add("link", link) == "link"
    else:
        with pytest.raises(ValueError, match="a symbolic link to a path of more"):
            tree.add("link", link)


@pytest.mark.parametrize("name", ["n", "ü"])
def test_paths_of_4095_bytes_are_the_longest(name: str) -> None:
    directory = "d" * 255 + "/"
    left = PATH_BYTES_MAX - 15 * 256
    longest = 15 * directory + name.ljust(left - len(name.encode()) + len(name), "x")
    assert len(longest.encode()) == PATH_BYTES_MAX

    assert Tree().add(longest, FILE) == longest
    with pytest.raises(ValueError, match="a path of more than"):
        Tree().add(longest + "x", FILE)


def test_dots_stay_at_the_root() -> None:
    tree = Tree()
    tree.add("a/b", FILE)

    assert tree.resolve("../a/./../../a/b") == "a/b"
    assert tree.resolve("a/../b") is None


@pytest.mark.parametrize(
    ("length", "text"), [(100, repr("p" * 100)), (101, repr("p" * 97 + "...")), (200, repr("p" * 97 + "..."))]
)
def test_long_paths_are_shortened_in_messages(length: int, text: str) -> None:
    assert short("p" * length) == text
