"""Each limit is where the specification has it, to the byte, and each finding stands where the fault is."""

import gzip
import io
import json
import lzma
import os
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from eif_images import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, fix_crc, good, image, parts
from nitro_eif import (
    Contents,
    Eif,
    EifFormatError,
    Finding,
    HostError,
    Node,
    Tree,
    UsageError,
    pack_eif,
    read_ramdisk,
    tree_of,
    validate,
    write_cpio,
    write_eif,
)
from nitro_eif.commands.terminal import size
from nitro_eif.files import CHUNK_BYTES, chunks
from nitro_eif.filesystem import compression
from nitro_eif.filesystem.compression import (
    Allowance,
    compress,
    unpack,
    unpacked,
    zstd_module,
)
from nitro_eif.filesystem.cpio import PATH_BYTES_MAX
from nitro_eif.filesystem.magic import LZ4
from nitro_eif.image.format import HEADER_BYTES, SECTION_HEADER, SectionType
from nitro_eif.image.metadata import custom_metadata
from nitro_eif.testing import example_contents, example_ramdisk

K, C, M, R0, R1 = parts()
TABLE, SIZES = 0x1C, 0x11C


def found(data: bytes, code: str) -> list[Finding]:
    return [finding for finding in validate(Eif.salvage(data)) if finding.code == code]


def place(data: bytes, code: str) -> tuple[int, int | None]:
    (finding,) = found(data, code)
    return finding.offset, finding.section


def begin(data: bytes, index: int) -> int:
    """Where a section's data begin."""
    return Eif.salvage(data).sections[index].offset + 12


# --- images -----------------------------------------------------------------------------------------------


def test_a_command_line_of_2047_bytes_is_the_longest() -> None:
    assert found(image([K, (CMDLINE, b"a" * 2047), M, R0]), "cmdline-long") == []
    data = image([K, (CMDLINE, b"a" * 2048), M, R0])
    assert place(data, "cmdline-long") == (begin(data, 1) + 2047, 1)


@pytest.mark.parametrize("at", [0, 1, 2046, 2047])
def test_a_newline_or_nul_is_found_wherever_it_is(at: int) -> None:
    for byte, name in ((b"\n", "newline"), (b"\0", "NUL")):
        data = image([K, (CMDLINE, b"a" * at + byte + b"b"), M, R0])

        (finding,) = found(data, "cmdline-text")

        assert (finding.offset, finding.section) == (begin(data, 1) + at, 1)
        assert finding.message == f"the command line has a {name} at its byte {at}"


def test_a_signature_section_of_32768_bytes_is_the_longest() -> None:
    assert found(image([*parts(), (SIGNATURE, bytes(32768))]), "signature-large") == []
    data = image([*parts(), (SIGNATURE, bytes(32769))])
    assert place(data, "signature-large") == (begin(data, 5) - 12, 5)


def test_an_image_has_2_to_32_sections() -> None:
    assert found(image([K, C]), "sections-too-few") == []
    assert place(image([K]), "sections-too-few") == (0x1A, None)
    full = [K, C, M, *[R0] * 29]
    assert len(full) == 32
    assert found(image(full), "sections-too-many") == []
    assert len(Eif.parse(image(full)).sections) == 32
    assert place(image(full, count=33), "sections-too-many") == (0x1A, None)
    assert pack_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[b"r"] * 30))
    with pytest.raises(UsageError, match="at most 32"):
        pack_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[b"r"] * 31))


def test_a_header_of_548_bytes_is_the_shortest_file() -> None:
    assert found(good()[:547], "header-truncated")
    assert not found(good()[:548], "header-truncated")


def test_what_is_shorter_than_a_header_has_no_sections() -> None:
    cut = Eif.salvage(good()[: HEADER_BYTES - 1])

    assert (cut.header.section_count, cut.sections) == (0, ())
    assert cut.header.section_offsets == cut.header.section_sizes == (0,) * 32
    assert (cut.header.flags, cut.header.reserved, cut.header.unused, cut.header.crc32) == (0, 0, 0, 0)


def test_the_header_has_both_tables_whole() -> None:
    data = bytearray(good())
    struct.pack_into(">32Q", data, TABLE, *range(100, 132))
    struct.pack_into(">32Q", data, SIZES, *range(200, 232))

    header = Eif.salvage(bytes(data)).header

    assert header.section_offsets == tuple(range(100, 132))
    assert header.section_sizes == tuple(range(200, 232))
    assert header.pack() == data[:HEADER_BYTES]


def test_a_header_without_sections_lacks_all_of_them() -> None:
    nothing = image([])

    assert len(nothing) == HEADER_BYTES
    for name in ("kernel", "cmdline", "ramdisk", "metadata"):
        assert found(nothing, f"{name}-missing")


def test_sections_that_may_be_in_what_was_cut_off_are_not_missing() -> None:
    cut = good()[: HEADER_BYTES + 20]

    assert found(cut, "section-outside")
    assert not found(cut, "ramdisk-missing")
    assert not found(cut, "metadata-missing")


def test_sections_are_missing_whatever_else_is_wrong() -> None:
    without_ramdisks = image([K, C, M], gap=bytes(8))

    assert found(without_ramdisks, "ramdisk-missing")


def test_readers_of_the_checksum_are_named_only_where_they_differ() -> None:
    (alike,) = found(good()[:-1] + b"!", "crc")
    (apart,) = found(image(parts(), gap=bytes(8))[:-1] + b"!", "crc")

    assert "AWS's reader" not in alike.message
    assert "AWS's reader" in apart.message


@pytest.mark.parametrize("index", range(5))
def test_faults_of_the_table_stand_at_its_entry(index: int) -> None:
    def outside(offsets: list[int], _: list[int]) -> None:
        offsets[index] = 1 << 40

    def other_size(_: list[int], sizes: list[int]) -> None:
        sizes[index] -= 1

    assert place(image(parts(), edit=outside), "section-outside") == (TABLE + 8 * index, index)
    assert place(image(parts(), edit=other_size), "section-size-mismatch") == (SIZES + 8 * index, index)


def test_a_section_header_must_be_in_the_file_to_its_last_byte() -> None:
    empty = image([K, C, M, R0, (RAMDISK, b"")])

    assert not found(empty, "section-outside")
    assert place(empty[:-1], "section-outside") == (TABLE + 8 * 4, 4)


def test_a_signature_is_left_out_wherever_it_is() -> None:
    data = image([K, C, M, R0, (SIGNATURE, b"")])

    left = Eif.salvage(data, without=SectionType.SIGNATURE)

    assert [section.type for section in left.sections] == [kind for kind, _ in (K, C, M, R0)]


def test_a_section_that_is_cut_off_may_be_anything_but_a_signature() -> None:
    data = bytearray(good())
    struct.pack_into(">Q", data, TABLE + 8, len(data) - 4)

    left = Eif.salvage(bytes(data), without=SectionType.SIGNATURE)

    assert [finding.code for finding in left.findings if finding.section == 1] == ["section-outside"]


@pytest.mark.parametrize(("length", "taken"), [(4096, True), (4097, False)])
def test_custom_metadata_of_4096_bytes_are_the_longest(tmp_path: Path, length: int, taken: object) -> None:
    path = tmp_path / "custom.json"
    path.write_bytes(b'{"a": 1}'.ljust(length))

    if taken:
        assert custom_metadata(path) == {"a": 1}
    else:
        with pytest.raises(UsageError, match="4097 bytes; custom metadata has at most 4096"):
            custom_metadata(path)


def test_a_section_starts_after_the_header() -> None:
    def early(offsets: list[int], _: list[int]) -> None:
        offsets[0] = HEADER_BYTES - 1

    assert found(image(parts(), edit=early), "section-outside")
    assert Eif.parse(image(parts())).sections[0].offset == HEADER_BYTES


def test_data_end_with_the_file_at_the_latest() -> None:
    assert not found(good(), "section-truncated")
    (finding,) = found(good()[:-1], "section-truncated")
    assert finding.offset == begin(good(), 4) - 12
    assert f"has {len(R1[1])} bytes, {len(R1[1]) - 1} are left" in finding.message


def test_sections_that_touch_do_not_overlap() -> None:
    assert not {finding.code for finding in validate(Eif.salvage(good()))} & {"section-overlap", "gap"}

    def one_early(offsets: list[int], _: list[int]) -> None:
        offsets[1] -= 1

    codes = {finding.code for finding in Eif.salvage(image(parts(), edit=one_early)).findings}
    assert "section-overlap" in codes


def test_a_table_out_of_order_is_named_at_its_entry() -> None:
    def backwards(offsets: list[int], sizes: list[int]) -> None:
        offsets.reverse()
        sizes.reverse()

    data = image([K, C, M, R0], edit=backwards)

    assert [(f.offset, f.section) for f in found(data, "section-order")] == [
        (TABLE + 8 * index, index) for index in (1, 2, 3)
    ]


@pytest.mark.parametrize("gap", [1, 11, 12, 64])
def test_a_gap_is_named_with_its_size(gap: int) -> None:
    data = image(parts(), gap=bytes(gap))

    (finding,) = found(data, "gap")

    assert finding.message == f"{gap} bytes between sections belong to none"
    assert finding.offset == Eif.salvage(data).sections[3].end
    assert place(data, "gap")[0] + gap == begin(data, 4) - 12


@pytest.mark.parametrize("table", [TABLE, SIZES])
def test_an_unused_entry_of_either_table_is_found(table: int) -> None:
    data = good()
    for index in (5, 31):
        at = table + 8 * index
        other = fix_crc(data[:at] + struct.pack(">Q", 1) + data[at + 8 :])
        assert place(other, "table-unused-entry") == (TABLE + 8 * index, None)


@pytest.mark.parametrize(
    ("tail", "unlisted"),
    [
        (SECTION_HEADER.pack(3, 0, 0), True),
        (SECTION_HEADER.pack(3, 0, 4) + b"data", True),
        (SECTION_HEADER.pack(3, 0, 5) + b"data", False),
        (SECTION_HEADER.pack(1, 0, 0), True),
        (SECTION_HEADER.pack(5, 0, 0), True),
        (SECTION_HEADER.pack(0, 0, 0), False),
        (SECTION_HEADER.pack(6, 0, 0), False),
        (SECTION_HEADER.pack(3, 0, 0)[:-1], False),
    ],
)
def test_trailing_bytes_that_are_a_section_are_told_apart(tail: bytes, unlisted: object) -> None:
    data = image(parts(), tail=tail)

    assert bool(found(data, "section-unlisted")) is unlisted
    assert place(data, "trailing-bytes") == (len(good()), None)


@pytest.mark.parametrize(("version", "kind"), [(2, SIGNATURE), (2, METADATA), (3, METADATA)])
def test_sections_that_are_newer_than_the_version_are_found(version: int, kind: int) -> None:
    assert found(image([K, C, R0, (kind, b"{}")], version=version), "section-newer")
    assert not found(image([K, C, R0, (kind, b"{}")], version=version + 2), "section-newer")


def test_metadata_is_asked_for_from_version_4_on() -> None:
    assert found(image([K, C, R0]), "metadata-missing")
    assert not found(image([K, C, R0], version=3), "metadata-missing")


def test_kernels_are_told_by_their_magic_numbers() -> None:
    x86 = bytes(0x202) + b"HdrS"
    arm = bytes(0x38) + b"ARM\x64"
    for kernel, flags in ((x86, 0), (arm, 1)):
        assert not found(image([(KERNEL, kernel), C, M, R0], flags=flags), "kernel-format")
        assert found(image([(KERNEL, kernel), C, M, R0], flags=1 - flags), "kernel-format")
        assert found(image([(KERNEL, kernel[:-1]), C, M, R0], flags=flags), "kernel-format")
        assert found(image([(KERNEL, b"\0" + kernel), C, M, R0], flags=flags), "kernel-format")
        assert found(image([(KERNEL, kernel[1:]), C, M, R0], flags=flags), "kernel-format")


def test_section_flags_are_named_at_the_flags() -> None:
    data = image(parts(), section_flags=1)

    assert [f.offset for f in found(data, "section-flags")] == [begin(data, i) - 10 for i in range(5)]


def test_broken_metadata_is_named_where_the_json_breaks() -> None:
    data = image([K, C, (METADATA, b'{"a": 1 x}'), R0])

    assert place(data, "metadata-json") == (begin(data, 2) + 8, 2)


# --- ramdisks ---------------------------------------------------------------------------------------------


def archive(entries: dict[str, Node]) -> bytes:
    file = io.BytesIO()
    write_cpio(file, entries.items())
    return file.getvalue()


def read(data: bytes) -> list[str]:
    return [entry.path for entry in read_ramdisk(memoryview(data))]


def test_names_and_targets_of_4095_bytes_are_the_longest() -> None:
    longest = "a" * PATH_BYTES_MAX
    assert PATH_BYTES_MAX == 4095
    assert read(archive({longest: Node.symlink(longest)})) == [longest]
    with pytest.raises(UsageError, match="1 to 4095 bytes"):
        archive({longest + "a": Node.file(b"")})
    with pytest.raises(UsageError, match="1 to 4095 bytes"):
        archive({"": Node.file(b"")})
    with pytest.raises(UsageError, match="4096 bytes are more"):
        archive({"a": Node.symlink(longest + "a")})


def test_numbers_of_32_bits_are_the_largest() -> None:
    largest = 2**32 - 1
    (entry,) = read_ramdisk(
        memoryview(archive({"a": Node(stat.S_IFCHR, largest, largest, device=(largest, largest))}))
    )
    assert (entry.node.uid, entry.node.gid, entry.node.device) == (largest, largest, (largest, largest))
    for node in (Node(stat.S_IFREG, largest + 1), Node(stat.S_IFREG, -1), Node(stat.S_IFCHR, device=(0, -1))):
        with pytest.raises(UsageError, match="32 bits"):
            archive({"a": node})


def header(name: bytes, size: int = 0, name_size: int | None = None) -> bytes:
    fields = [0] * 13
    fields[1], fields[6] = stat.S_IFREG, size
    fields[11] = len(name) if name_size is None else name_size
    return b"070701" + b"".join(b"%08X" % field for field in fields) + name


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


END = header(b"TRAILER!!!\0")


def test_a_name_that_does_not_end_with_nul_is_named_at_its_end() -> None:
    with pytest.raises(EifFormatError, match="does not end with NUL") as caught:
        read(padded(header(b"abc")) + END)
    assert caught.value.offset == 110 + 2


def test_names_have_1_to_4096_bytes_with_their_nul() -> None:
    assert read(padded(header(b"a" * 4095 + b"\0")) + END) == ["a" * 4095]
    assert read(padded(header(b"\0")) + END) == [""]
    for length in (0, 4097):
        with pytest.raises(EifFormatError, match=f"name has {length} bytes") as caught:
            read(header(b"a" * 5000 + b"\0", name_size=length))
        assert caught.value.offset == 0


def test_a_name_ends_with_the_archive_at_the_latest() -> None:
    assert read(END) == []
    with pytest.raises(EifFormatError, match="name has 11 bytes"):
        read(END[:-1])


def test_data_end_with_the_archive_at_the_latest() -> None:
    whole = padded(header(b"a\0", size=3)) + b"xyz"
    with pytest.raises(EifFormatError, match="without a trailer"):
        read(whole)
    with pytest.raises(EifFormatError, match="'a' has 3 bytes, 2 are left") as caught:
        read(whole[:-1])
    assert caught.value.offset == 0
    with pytest.raises(EifFormatError, match="'a' has 3 bytes, 0 are left"):
        read(header(b"a\0", size=3))


def test_offsets_are_of_the_entry_in_the_whole_ramdisk() -> None:
    first, second = archive({"a": Node.file(b"12345")}), archive({"b": Node.file(b""), "c": Node.file(b"")})
    entries = list(read_ramdisk(memoryview(first + bytes(4) + second)))

    assert [(entry.offset, entry.archive) for entry in entries] == [
        (0, 0),
        (len(first) + 4, len(first) + 4),
        (len(first) + 4 + 112, len(first) + 4),
    ]


def test_an_archive_must_start_at_a_multiple_of_four() -> None:
    one = example_ramdisk({"a": Node.file(b"1")})
    for zeros in range(8):
        data = one + bytes(zeros) + one
        if zeros % 4 == 0:
            assert read(data) == ["a", "a"]
        else:
            with pytest.raises(EifFormatError, match="no multiple of 4") as caught:
                read(data)
            assert caught.value.offset == len(one) + zeros


def test_zeros_between_archives_may_be_long() -> None:
    one = example_ramdisk({"a": Node.file(b"1")})
    for zeros in (CHUNK_BYTES - 4, CHUNK_BYTES, CHUNK_BYTES + 4):
        assert read(one + bytes(zeros) + one + bytes(zeros)) == ["a", "a"]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd_module().compress])
@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 10_000])
def test_several_compressed_streams_are_read_one_after_the_other(
    pack: Callable[[bytes], bytes], length: int
) -> None:
    contents = [os.urandom(length) for _ in range(3)]
    data = b"".join(pack(example_ramdisk({f"{i}": Node.file(c)})) for i, c in enumerate(contents))

    assert [bytes(entry.node.data) for entry in read_ramdisk(memoryview(data))] == contents


def test_the_limit_is_on_what_all_streams_become_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one = example_ramdisk({"a": Node.file(bytes(3000))})
    packed = gzip.compress(one) * 10
    monkeypatch.setattr(compression, "UNPACKED_RATIO", 1)
    monkeypatch.setattr(compression, "UNPACKED_BYTES_MIN", 10 * len(one))
    assert len(read(packed)) == 10

    monkeypatch.setattr(compression, "UNPACKED_BYTES_MIN", 10 * len(one) - 1)
    with pytest.raises(EifFormatError, match="becomes more than") as caught:
        read(packed)
    assert caught.value.offset == 9 * len(packed) // 10


def test_the_limit_grows_with_what_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "UNPACKED_BYTES_MIN", 1000)

    assert Allowance(62).limit_bytes == 1000
    assert Allowance(63).limit_bytes == 1008


def test_the_number_of_streams_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "STREAMS_MAX", 3)
    one = gzip.compress(example_ramdisk({"a": Node.file(b"")}))

    assert len(read(one * 3)) == 3
    with pytest.raises(EifFormatError, match="more than 3 compressed streams") as caught:
        read(one * 4)
    assert caught.value.offset == 3 * len(one)


def test_an_archive_of_several_streams_is_unpacked_whole() -> None:
    streams = [os.urandom(5000) for _ in range(3)]
    with ExitStack() as stack:
        for tail in (b"", b"not gzip"):
            view = memoryview(b"".join(map(gzip.compress, streams)) + tail)
            assert bytes(unpacked(view, stack)) == b"".join(streams)
        assert bytes(unpacked(memoryview(b"plain"), stack)) == b"plain"


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
@pytest.mark.parametrize("name", ["gzip", "xz", "zstd"])
def test_what_is_compressed_is_unpacked_again_in_pieces(name: str, length: int) -> None:
    contents = bytes(length)
    packed, again = io.BytesIO(), io.BytesIO()
    compress(memoryview(contents), name, packed)

    taken = unpack(memoryview(packed.getvalue() + b"tail"), name, again)

    assert again.getvalue() == contents
    assert taken == len(packed.getvalue())


def test_a_kernel_needs_little_memory_to_unpack_what_is_compressed() -> None:
    zstd = zstd_module()
    window_log = zstd.DecompressionParameter.window_log_max
    contents = bytes(9 << 20)
    packed = {name: io.BytesIO() for name in ("xz", "zstd")}
    for name, file in packed.items():
        compress(memoryview(contents), name, file)

    # 8 MiB of what is unpacked are kept in memory, and xz has a mebibyte of its own.
    xz = lzma.LZMADecompressor(memlimit=9 << 20).decompress(packed["xz"].getvalue())
    zst = zstd.ZstdDecompressor(options={window_log: 23}).decompress(packed["zstd"].getvalue())

    assert xz == zst == contents


def lz4_frame(*blocks: bytes) -> bytes:
    block = pytest.importorskip("lz4.block", reason="needs the extra lz4")
    packed = [block.compress(data, store_size=False) for data in blocks]
    return LZ4 + b"".join(struct.pack("<I", len(data)) + data for data in packed)


def test_lz4_ramdisks_are_read_as_the_kernel_does() -> None:
    data = example_ramdisk({"a": Node.file(b"text " * 1000)})
    half = len(data) // 2
    for packed in (
        lz4_frame(data),
        lz4_frame(data[:half], data[half:]),
        lz4_frame(data[:half]) + lz4_frame(data[half:]),
        lz4_frame(data) + bytes(4),
        lz4_frame(data) + bytes(3),
    ):
        assert read(packed) == ["a"]


def test_what_is_wrong_with_lz4_stands_at_the_block() -> None:
    good = example_ramdisk({"a": Node.file(b"")})
    whole = lz4_frame(good)
    broken = struct.pack("<I", 4) + b"\xff\xff\xff\xff"
    short = struct.pack("<I", 5) + b"1234"

    for bad, reason in ((broken, "is broken"), (short, "truncated")):
        with pytest.raises(EifFormatError, match=f"lz4 stream.*{reason}") as caught:
            read(good + whole + bad)
        assert caught.value.offset == len(good) + len(whole) + 4


@pytest.mark.parametrize("more", [0, 1])
def test_a_block_of_lz4_becomes_8_mib_and_no_more(more: int) -> None:
    """Lz4_Frame_format.md, "Legacy frame"."""
    data = example_ramdisk({"a": Node.file(bytes((8 << 20) - 1000))})
    data = data[: 8 << 20].ljust((8 << 20) + more, b"\0")

    def read() -> None:
        tree_of(read_ramdisk(memoryview(lz4_frame(data))))

    if more:
        with pytest.raises(EifFormatError, match="the lz4 stream is broken"):
            read()
    else:
        read()


def test_without_the_extra_lz4_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)

    with pytest.raises(HostError, match="needs lz4") as caught:
        read(LZ4 + bytes(8))
    assert caught.value.hint == "pip install 'nitro-eif[lz4]'"


def test_a_file_called_like_the_trailer_ends_nothing_if_it_has_data() -> None:
    data = padded(padded(header(b"TRAILER!!!\0", size=1)) + b"x") + padded(header(b"b\0")) + END

    assert read(data) == ["TRAILER!!!", "b"]


def test_forty_links_may_follow_each_other() -> None:
    tree = Tree()
    tree.add("0", Node.directory())
    for number in range(1, 42):
        tree.add(str(number), Node.symlink(str(number - 1)))

    assert tree.resolve("40") == "0"
    assert tree.resolve("41") is None


def test_links_of_archives_are_joined_by_inode_kind_and_archive() -> None:
    shared = Node.file(b"x")
    tree = tree_of(read_ramdisk(memoryview(archive({"a": shared, "b": shared}) * 2)))

    assert tree["a"] is tree["b"]


# --- helpers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_chunks_are_all_of_a_view_in_order(length: int) -> None:
    view = memoryview(bytes(index % 251 for index in range(length)))

    pieces = list(chunks(view))

    assert b"".join(pieces) == view
    assert all(len(piece) == CHUNK_BYTES for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (9999, "9999 B"),
        (10000, "9.8 KiB"),
        (1024 * 1000 - 1, "1000.0 KiB"),
        (1024 * 1000, "1.0 MiB"),
        (1536 << 20, "1.5 GiB"),
        (1000 << 30, "1000.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EifFormatError("it is cut off", offset=0x22C), "it is cut off (byte 0x22c)"),
        (EifFormatError("it is cut off", offset=16, section=0), "it is cut off (section 0, byte 0x10)"),
        (
            EifFormatError("it is cut off", offset=16, section=2).at(Path("a.eif")),
            "a.eif: it is cut off (section 2, byte 0x10)",
        ),
    ],
)
def test_an_error_says_where_the_fault_is(error: EifFormatError, text: str) -> None:
    assert str(error) == text


def test_a_trees_children_go_with_it() -> None:
    tree = Tree()
    with ExitStack():
        tree.add("a/b/c", Node.file(b"1"))
        tree.add("ab", Node.file(b"2"))
        tree.remove("a")
    assert [path for path, _ in tree.items()] == ["ab"]
    assert list(tree.below("")) == ["ab"]
    assert len(tree) == 1


def test_findings_about_the_header_stand_at_its_fields() -> None:
    assert place(image(parts(), flags=1), "aarch64") == (6, None)
    assert place(image(parts(), flags=2), "flags-reserved") == (6, None)
    assert place(image(parts(), version=3), "version-old") == (4, None)
    assert place(image(parts(), version=9), "version-unsupported") == (4, None)
    assert place(image(parts(), magic=b"EIF."), "magic") == (0, None)
    assert place(fix_crc(good()[:0x18] + b"\0\1" + good()[0x1A:]), "reserved-used") == (0x18, None)
    assert place(fix_crc(good()[:0x21C] + b"\1\0\0\0" + good()[0x220:]), "reserved-used") == (0x21C, None)
    assert place(good()[:0x220] + bytes(4) + good()[0x224:], "crc") == (0x220, None)


def test_inodes_count_files_and_not_names() -> None:
    shared = Node.file(b"x")
    entries = list(read_ramdisk(memoryview(archive({"a": shared, "b": Node.file(b""), "c": shared}))))

    assert [entry.inode for entry in entries] == [721, 722, 721]
    assert [entry.links for entry in entries] == [2, 1, 2]


def test_streams_may_refer_far_back() -> None:
    contents = os.urandom(30_000) * 2
    for pack, name in ((gzip.compress, "gzip"), (lzma.compress, "xz"), (zstd_module().compress, "zstd")):
        again = io.BytesIO()
        packed = pack(contents)
        assert unpack(memoryview(packed), name, again) == len(packed)
        assert again.getvalue() == contents


def test_metadata_lack_what_they_lack() -> None:
    whole = json.loads(M[1])
    for change, reason in (
        ({"BuildMetadata": None}, "lacks an object BuildMetadata"),
        ({"ImageName": 7}, "ImageName is not a string"),
        ({"BuildMetadata": whole["BuildMetadata"] | {"BuildTool": None}}, "BuildTool is not a string"),
    ):
        (finding,) = found(
            image([K, C, (METADATA, json.dumps(whole | change).encode()), R0]), "metadata-schema"
        )
        assert reason in finding.message
    for key in whole:
        short = {name: value for name, value in whole.items() if name != key}
        (finding,) = found(image([K, C, (METADATA, json.dumps(short).encode()), R0]), "metadata-schema")
        assert finding.message == f"the metadata lacks {key}"


@pytest.mark.parametrize(("window_log", "taken"), [(27, True), (28, False)])
def test_zstd_windows_of_128_mebibytes_are_the_largest(window_log: int, taken: object) -> None:
    zstd = zstd_module()
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    packed = compressor.compress(b"x") + compressor.flush()

    if taken:
        assert unpack(memoryview(packed), "zstd", io.BytesIO()) == len(packed)
    else:
        with pytest.raises(EifFormatError, match="zstd stream is broken"):
            unpack(memoryview(packed), "zstd", io.BytesIO())


def test_progress_of_writing_grows_to_the_size_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "x.eif"

    write_eif(example_contents(), path, progress=lambda done, total: seen.append((done, total)))

    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {seen[-1][0]} == {path.stat().st_size}
