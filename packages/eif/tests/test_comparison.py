"""What is said to differ between two images, and where."""

import stat
from dataclasses import replace

import pytest

from eif_images import KERNEL, image, parts
from nitro_eif import (
    Difference,
    Eif,
    KeySigner,
    Node,
    Tree,
    compare,
    make_signature,
    measure,
    pack_eif,
)
from nitro_eif.comparison import compare_trees, same_bytes
from nitro_eif.files import CHUNK_BYTES
from nitro_eif.testing import example_contents, example_key, example_ramdisk

K, C, M, R0, R1 = parts()


def differences(a: bytes, b: bytes) -> list[Difference]:
    return list(compare(Eif.salvage(a), Eif.salvage(b)))


def said(a: bytes, b: bytes) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(found.part, found.what, found.pcrs) for found in differences(a, b)]


def changed(**facts: object) -> bytes:
    return pack_eif(replace(example_contents(), **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "at", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 4, 2 * CHUNK_BYTES + 5]
)
def test_the_first_byte_that_differs_is_named(at: int) -> None:
    content = bytearray(2 * CHUNK_BYTES + 6)
    a = image([(KERNEL, bytes(content)), C, M, R0])
    content[at] = content[-1] = 1

    found = said(a, image([(KERNEL, bytes(content)), C, M, R0]))

    size = len(content)
    assert found == [("kernel", f"{size} and {size} bytes, differ from byte {at:#x}", ("PCR0", "PCR1"))]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_a_longer_content_differs_where_the_shorter_ends(size: int) -> None:
    short, long = image([(KERNEL, bytes(size)), C, M, R0]), image([(KERNEL, bytes(size + 1)), C, M, R0])

    for a, b, sizes in ((short, long, (size, size + 1)), (long, short, (size + 1, size))):
        what = f"{sizes[0]} and {sizes[1]} bytes, differ from byte {size:#x}"
        assert [found.what for found in differences(a, b)] == [what]


def test_equal_bytes_are_equal_whatever_their_length() -> None:
    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1):
        assert same_bytes(memoryview(bytes(size)), memoryview(bytes(size)))
        assert not same_bytes(memoryview(bytes(size)), memoryview(bytes(size + 1)))


def test_a_command_line_is_shown_as_text() -> None:
    boot = ("PCR0", "PCR1")

    assert said(changed(cmdline=b"a"), changed(cmdline=b"b")) == [("cmdline", "'a' became 'b'", boot)]


def test_the_first_ramdisk_changes_other_registers_than_the_second() -> None:
    other = example_ramdisk({"x": Node.file(b"x")})

    first = differences(changed(), changed(ramdisks=[other, R1[1]]))
    second = differences(changed(), changed(ramdisks=[R0[1], other]))

    assert {found.pcrs for found in first} == {("PCR0", "PCR1")}
    assert {found.pcrs for found in second} == {("PCR0", "PCR2")}
    assert {(found.path, found.what) for found in first} == {
        ("init", "only in the first"),
        ("x", "only in the second"),
    }


def test_a_part_that_only_one_has_is_named() -> None:
    one, two = changed(ramdisks=[R0[1]]), changed()

    assert said(one, two) == [("ramdisk 1", "only in the second", ("PCR0", "PCR2"))]
    assert said(two, one) == [("ramdisk 1", "only in the first", ("PCR0", "PCR2"))]
    assert said(image([K, C, R0]), image([K, C, M, R0])) == [("metadata", "only in the second", ())]
    assert said(image([K, C, M, R0]), image([K, C, R0])) == [("metadata", "only in the first", ())]
    assert said(image([C, M, R0]), image([K, C, M, R0]))[0][:2] == ("kernel", "only in the second")
    assert said(image([K, C, M, R0]), image([C, M, R0]))[0][:2] == ("kernel", "only in the first")


def test_ramdisks_that_cannot_be_read_are_compared_as_bytes() -> None:
    found = said(changed(ramdisks=[R0[1], b"070701a"]), changed(ramdisks=[R0[1], b"070701b"]))

    assert found[0][1].startswith("differs from byte 0x6 (its files cannot be read: the cpio archive")


def test_the_same_files_written_otherwise_are_told_apart() -> None:
    found = said(changed(), changed(ramdisks=[R0[1] + bytes(512), R1[1]]))

    what = "the same files, written otherwise (times, order, compression)"
    assert found == [("ramdisk 0", what, ("PCR0", "PCR1"))]


def test_another_order_of_measured_sections_is_named() -> None:
    found = said(image([K, C, M, R0]), image([C, K, M, R0]))

    assert found == [("order", "measured sections are in another order", ("PCR0", "PCR1"))]
    assert [part for part, _, _ in said(image([K, C, M, R0]), image([K, C, R0, M]))] == ["file"]


NODES = [
    (Node.file(b"a"), Node.directory(), "file became directory"),
    (Node(stat.S_IFCHR), Node(stat.S_IFBLK), "character device became block device"),
    (Node(stat.S_IFIFO), Node(stat.S_IFSOCK), "pipe became socket"),
    (Node(0), Node.symlink("x"), "unknown file type became symbolic link"),
    (Node.file(b"a", 0o644), Node.file(b"a", 0o4755), "mode 0644 became 4755"),
    (Node(stat.S_IFREG, 1, 2), Node(stat.S_IFREG, 1, 3), "owner 1:2 became 1:3"),
    (Node(stat.S_IFREG, 1, 2), Node(stat.S_IFREG, 3, 2), "owner 1:2 became 3:2"),
    (Node(stat.S_IFCHR, device=(1, 3)), Node(stat.S_IFCHR, device=(1, 5)), "device 1:3 became 1:5"),
    (Node(stat.S_IFCHR, device=(1, 3)), Node(stat.S_IFCHR, device=(2, 3)), "device 1:3 became 2:3"),
    (Node.symlink("a"), Node.symlink("b"), "target 'a' became 'b'"),
    (Node.file(b"a"), Node.file(b"bc"), "contents differ, 1 and 2 bytes"),
]


@pytest.mark.parametrize(("left", "right", "what"), NODES)
def test_what_differs_between_two_files_is_said(left: Node, right: Node, what: str) -> None:
    a, b = Tree(), Tree()
    for tree, node in ((a, left), (b, right)):
        tree.add("same", Node.file(b"same"))
        tree.add("path", node)

    assert list(compare_trees(a, b)) == [("path", what)]


def test_members_of_the_metadata_are_compared_one_by_one() -> None:
    def metadata(custom: bytes) -> bytes:
        return M[1].replace(b'"CustomMetadata":null', b'"CustomMetadata":' + custom)

    a, b = metadata(b'{"x":{"y":1},"gone":1}'), metadata(b'{"x":{"y":2},"new":"' + b"n" * 200 + b'"}')

    found = differences(changed(metadata=a), changed(metadata=b))

    assert [(each.path, each.what, each.pcrs) for each in found] == [
        ("CustomMetadata.x.y", "1 became 2", ()),
        ("CustomMetadata.gone", "only in the first", ()),
        ("CustomMetadata.new", "only in the second", ()),
    ]
    (long,) = differences(
        changed(metadata=metadata(b'"' + b"a" * 98 + b'"')),
        changed(metadata=metadata(b'"' + b"b" * 99 + b'"')),
    )
    assert long.what == f"{'a' * 98!r} became '{'b' * 96}..."
    (spaces,) = differences(changed(metadata=M[1]), changed(metadata=M[1] + b" "))
    assert spaces.what == "written otherwise"
    (broken,) = differences(changed(metadata=b"{"), changed(metadata=b"["))
    assert broken.what == "written otherwise"


def test_signatures_are_compared_by_certificate() -> None:
    pcr0 = measure(Eif.parse(changed())).pcr0
    (key, certificate), (other_key, other_certificate) = example_key(), example_key()
    signed = changed(signature=make_signature(pcr0, KeySigner(key), certificate))
    again = changed(signature=make_signature(pcr0, KeySigner(key), certificate))
    other = changed(signature=make_signature(pcr0, KeySigner(other_key), other_certificate))

    assert said(changed(), signed) == [("signature", "only in the second", ("PCR8",))]
    assert said(signed, changed()) == [("signature", "only in the first", ("PCR8",))]
    assert said(signed, signed) == []
    assert said(signed, again) == [("signature", "made anew by the same certificate", ())]
    assert said(signed, other) == [("signature", "by another certificate", ("PCR8",))]
    (broken,) = said(signed, changed(signature=b"\xff"))
    assert broken[1].startswith("differs, and one cannot be read: ")


@pytest.mark.parametrize(
    "name", ["version", "flags", "default_memory_bytes", "default_cpus", "reserved", "unused"]
)
def test_fields_of_the_header_are_compared(name: str) -> None:
    contents = example_contents()
    value = 3 if name == "version" else 1
    header = replace(contents.header, **{name: value})  # type: ignore[arg-type]
    if name == "version":
        other = replace(contents, version=3)
    elif name == "flags":
        from nitro_eif import Architecture

        other = replace(contents, architecture=Architecture.AARCH64)
    else:
        other = replace(contents, header=header)

    (found,) = differences(pack_eif(contents), pack_eif(other))

    before = getattr(Eif.parse(pack_eif(contents)).header, name)
    assert (found.part, found.path, found.what) == ("header", name, f"{before} became {value}")


def test_the_first_byte_outside_of_sections_is_named() -> None:
    a = image([K, C, M, R0], gap=b"\0\0\0\0")
    b = image([K, C, M, R0], gap=b"\0\0\1\0")
    end = Eif.parse(a).sections[2].end
    crc = 0x220
    b = a[:crc] + b[crc : crc + 4] + b[crc + 4 :]

    (found,) = differences(a, b)

    assert found.part == "file"
    at = int(found.what.rpartition(" ")[2], 16)
    assert crc <= at < crc + 4
    same_crc = a[: end + 2] + b"\1" + a[end + 3 :]
    assert differences(a, same_crc) == [
        Difference("file", f"bytes outside of sections differ, from byte {end + 2:#x}")
    ]


def test_differences_are_data() -> None:
    found = Difference("ramdisk 1", "only in the first", "bin/app", ("PCR0", "PCR2"))

    assert found.as_json() == {
        "Part": "ramdisk 1",
        "Path": "bin/app",
        "What": "only in the first",
        "PCRs": ["PCR0", "PCR2"],
    }
