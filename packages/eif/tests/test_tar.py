import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_eif import EifFormatError, Node, Tree
from nitro_eif.filesystem import tar
from nitro_eif.filesystem.cpio import PATH_BYTES_MAX
from nitro_eif.filesystem.tar import HEADER_BYTES_MAX, apply_tar
from nitro_eif.testing import tar_member, tar_of

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"", **facts: object) -> Member:
    return tar_member(name, **facts), data  # type: ignore[arg-type]


def directory(name: str, mode: int = 0o755) -> Member:
    return tar_member(name, kind=tarfile.DIRTYPE, mode=mode), b""


def symlink(name: str, target: str) -> Member:
    return tar_member(name, kind=tarfile.SYMTYPE, target=target), b""


def layers(*archives: list[Member]) -> Tree:
    tree = Tree()
    for members in archives:
        apply_tar(tree, memoryview(tar_of(members)))
    return tree


def contents(tree: Tree) -> dict[str, bytes]:
    return {path: bytes(node.data) for path, node in tree.items() if not node.is_directory}


def test_upper_layers_add_and_replace() -> None:
    tree = layers(
        [directory("etc"), file("etc/a", b"1"), file("etc/b", b"1")],
        [file("./etc/b", b"2", mode=0o600, uid=7, gid=8), file("/etc/c", b"2")],
    )

    assert contents(tree) == {"etc/a": b"1", "etc/b": b"2", "etc/c": b"2"}
    assert (tree["etc/b"].mode, tree["etc/b"].uid, tree["etc/b"].gid) == (stat.S_IFREG | 0o600, 7, 8)


def test_a_whiteout_hides_a_file_or_a_whole_directory_of_the_layers_below() -> None:
    tree = layers(
        [file("a", b"1"), directory("d"), file("d/x", b"1"), file("d/e/y", b"1"), file("keep", b"1")],
        [file(".wh.a"), file(".wh.d")],
    )

    assert contents(tree) == {"keep": b"1"}
    assert "d" not in tree


def test_a_whiteout_spares_what_its_own_layer_brings_whatever_the_order() -> None:
    for members in ([file("a", b"2"), file(".wh.a")], [file(".wh.a"), file("a", b"2")]):
        assert contents(layers([file("a", b"1")], members)) == {"a": b"2"}


def test_an_opaque_directory_keeps_itself_and_its_own_layers_children() -> None:
    for members in (
        [directory("d", 0o700), file("d/new", b"2"), file("d/.wh..wh..opq")],
        [file("d/.wh..wh..opq"), directory("d", 0o700), file("d/new", b"2")],
    ):
        tree = layers([directory("d"), file("d/old", b"1"), file("d/sub/old", b"1")], members)

        assert contents(tree) == {"d/new": b"2"}
        assert tree["d"].mode == stat.S_IFDIR | 0o700


def test_a_file_over_a_directory_and_a_directory_over_a_file() -> None:
    tree = layers(
        [directory("d"), file("d/x", b"1"), file("f", b"1")],
        [file("d", b"2"), directory("f"), file("f/y", b"2")],
    )

    assert contents(tree) == {"d": b"2", "f/y": b"2"}


def test_hard_links_share_a_node_across_layers() -> None:
    tree = layers(
        [file("a", b"1"), (tar_member("b", kind=tarfile.LNKTYPE, target="./a"), b"")],
        [(tar_member("c", kind=tarfile.LNKTYPE, target="/a"), b"")],
    )

    assert tree["a"] is tree["b"] is tree["c"]


def test_entries_go_through_symbolic_links_of_their_parents_but_never_out() -> None:
    tree = layers(
        [directory("usr/lib"), symlink("lib", "usr/lib"), symlink("out", "../../../etc"), directory("etc")],
        [file("lib/x", b"2"), file("out/passwd", b"2"), file("lib/.wh.none")],
    )

    assert contents(tree)["usr/lib/x"] == b"2"
    assert contents(tree)["etc/passwd"] == b"2"
    assert tree["lib"].is_symlink


def test_missing_parents_are_made() -> None:
    tree = layers([file("a/b/c", b"1")])

    assert tree["a/b"].mode == stat.S_IFDIR | 0o755


def test_devices_pipes_long_names_owners_and_xattrs() -> None:
    long_name, big = "n" * 150 + "/" + "m" * 150, 0xFFFF_FFFE
    tree = layers(
        [
            (tar_member("null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3)), b""),
            (tar_member("loop0", kind=tarfile.BLKTYPE, mode=0o660, device=(7, 0)), b""),
            (tar_member("pipe", kind=tarfile.FIFOTYPE), b""),
            file(long_name, b"long", uid=big, gid=big),
            file("ping", b"elf", mode=0o4755, pax={"SCHILY.xattr.security.capability": "x"}),
            file("bytes-\udcff", b"name"),
        ]
    )

    assert tree["null"].device == (1, 3)
    assert stat.S_ISBLK(tree["loop0"].mode)
    assert stat.S_ISFIFO(tree["pipe"].mode)
    assert (tree[long_name].uid, tree[long_name].gid) == (big, big)
    assert tree["ping"].xattrs == ("security.capability",)
    assert tree["ping"].mode & 0o7777 == 0o4755
    assert "bytes-\udcff" in tree


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([file("../a")], "out of the archive's root"),
        ([file("a/../../b")], "out of the archive's root"),
        ([(tar_member("b", kind=tarfile.LNKTYPE, target="missing"), b"")], "hard link"),
        ([symlink("a", "b"), symlink("b", "a"), file("a/x")], "loop"),
        ([file("a", b""), file("a/b")], "not a directory"),
        ([file(".wh.")], "whiteout of nothing"),
        ([(tar_member("x", kind=b"Z"), b"")], "unknown tar type"),
    ],
)
def test_entries_that_cannot_be_unpacked_are_refused(members: list[Member], reason: str) -> None:
    with pytest.raises(EifFormatError, match=reason):
        layers(members)


def test_only_layers_have_whiteouts() -> None:
    tree = layers([file("a", b"1")])

    apply_tar(tree, memoryview(tar_of([file(".wh.a", b"2"), file(".wh.", b"3")])), whiteouts=False)

    assert contents(tree) == {"a": b"1", ".wh.a": b"2", ".wh.": b"3"}


@pytest.mark.parametrize(("number", "taken"), [(0xFFFF_FFFF, True), (0x1_0000_0000, False), (-1, False)])
def test_owners_are_numbers_of_32_bits(number: int, taken: object) -> None:
    members = [file("a", b"1", uid=1, gid=number)]

    if taken:
        assert layers(members)["a"].gid == number
    else:
        with pytest.raises(EifFormatError, match="not a 32-bit number"):
            layers(members)


@pytest.mark.parametrize(
    "members",
    [
        [file("x" * (PATH_BYTES_MAX + 1), b"1")],
        [symlink("a", "x" * (PATH_BYTES_MAX + 1))],
    ],
)
def test_paths_and_what_they_lead_to_are_not_too_long(members: list[Member]) -> None:
    with pytest.raises(EifFormatError, match="a path of more than 4095 bytes"):
        layers(members)


def test_files_and_their_attributes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MEMBERS_MAX", 5)
    attributes = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.b": "2"}
    members = [file("a"), file("b", pax=attributes), file("c")]

    assert len(layers(members)) == 3
    with pytest.raises(EifFormatError, match="more than 5 files and attributes"):
        layers([*members, file("d")])


@pytest.mark.parametrize("at", [0, 511])
def test_garbage_where_a_header_should_be_is_refused(at: int) -> None:
    data = bytearray(tar_of([file("a", b"1")]))
    data[1024 + at] = 7

    with pytest.raises(EifFormatError, match="broken or truncated") as caught:
        apply_tar(Tree(), memoryview(data))
    assert caught.value.offset == 1024


def pax_header(length: int) -> Member:
    """A header that says nothing, with so many bytes."""
    head = f"{length} comment=".encode()
    return tar_member("header", kind=tarfile.XHDTYPE), (head + bytes(length))[: length - 1] + b"\n" * (
        length > 0
    )


@pytest.mark.parametrize("length", [0, HEADER_BYTES_MAX])
def test_a_header_may_have_up_to_a_mebibyte(length: int) -> None:
    tree = layers([pax_header(length), file("a", b"1")])

    assert contents(tree) == {"a": b"1"}


def test_a_header_that_is_larger_is_refused() -> None:
    with pytest.raises(EifFormatError, match=f"a tar header of {HEADER_BYTES_MAX + 512} bytes"):
        layers([pax_header(HEADER_BYTES_MAX + 1), file("a", b"1")])


@given(
    st.binary(max_size=1500)
    | st.binary(max_size=1100).map(lambda tail: tar_of([file("a", b"1")])[:512] + tail)
)
def test_any_bytes_are_an_archive_or_a_format_error(data: bytes) -> None:
    try:
        apply_tar(Tree(), memoryview(data))
    except EifFormatError as error:
        assert error.offset >= 0  # noqa: PT017


parts = st.sampled_from(["a", "b", ".wh.a", ".wh..wh..opq", "c"])
members = st.builds(
    lambda path, kind, target: (tar_member("/".join(path), kind=kind, target=target), b""),
    st.lists(parts, min_size=1, max_size=3),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
    st.sampled_from(["a", "b/c", "/", "..", "a/b"]),
)


@given(st.lists(st.lists(members, max_size=6), max_size=3))
def test_every_path_of_a_tree_has_directories_above_it(archives: list[list[Member]]) -> None:
    tree = Tree()
    for archive in archives:
        try:
            apply_tar(tree, memoryview(tar_of(archive)))
        except EifFormatError:
            break
    for path, node in tree.items():
        parent = path.rpartition("/")[0]
        assert not parent or tree[parent].is_directory
        assert isinstance(node, Node)
    assert sorted(tree.below("")) == sorted(path for path, _ in tree.items())
