"""A directory of this machine becomes a tree: types, links, device nodes."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nitro_eif import HostError, read_rootfs


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_files_links_and_permissions(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "d").mkdir(0o750)
    (tmp_path / "d" / "file").write_bytes(b"contents")
    (tmp_path / "d" / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("d/file")
    (tmp_path / "same").hardlink_to(tmp_path / "d" / "file")
    os.mkfifo(tmp_path / "pipe")

    tree = read_rootfs(tmp_path, stack)

    assert [(path, stat.S_IFMT(node.mode)) for path, node in sorted(tree.items())] == [
        ("d", stat.S_IFDIR),
        ("d/file", stat.S_IFREG),
        ("link", stat.S_IFLNK),
        ("pipe", stat.S_IFIFO),
        ("same", stat.S_IFREG),
    ]
    assert bytes(tree["d/file"].data) == b"contents"
    assert bytes(tree["link"].data) == b"d/file"
    assert tree["same"] is tree["d/file"]
    assert [stat.S_IMODE(tree[path].mode) for path in ("d", "d/file")] == [0o750, 0o640]
    assert {node.device for _, node in tree.items()} == {(0, 0)}


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_nodes_keep_their_numbers(tmp_path: Path, stack: ExitStack, kind: int) -> None:
    try:
        os.mknod(tmp_path / "node", kind | 0o600, os.makedev(7, 3))
    except PermissionError:
        pytest.skip("needs root for devices")

    assert read_rootfs(tmp_path, stack)["node"].device == (7, 3)


def test_a_socket_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

        with pytest.raises(HostError, match="a socket cannot be in an image"):
            read_rootfs(tmp_path, stack)
