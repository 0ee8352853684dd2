import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eif_images import (
    CMDLINE,
    KERNEL,
    METADATA,
    RAMDISK,
    SIGNATURE,
    bootable,
    fix_crc,
    good,
    image,
    legal_contents,
    parts,
)
from nitro_eif import (
    RULES,
    Architecture,
    Contents,
    Eif,
    EifFormatError,
    Fate,
    HostError,
    Severity,
    UsageError,
    measure,
    pack_eif,
    validate,
    write_eif,
)

K, C, M, R0, R1 = parts()


def codes(data: bytes) -> set[str]:
    return {finding.code for finding in validate(Eif.salvage(data))}


def test_a_good_image_has_no_findings_and_its_parts_are_views_of_the_buffer() -> None:
    data = good()

    eif = bootable(data)

    assert validate(eif) == []
    assert eif.version == 4
    assert eif.architecture is Architecture.X86_64
    assert bytes(eif.kernel) == K[1]
    assert eif.cmdline == C[1]
    assert [bytes(ramdisk) for ramdisk in eif.ramdisks] == [R0[1], R1[1]]
    assert eif.metadata is not None
    assert bytes(eif.metadata) == M[1]
    assert eif.signature is None
    assert eif.kernel.obj is data


def test_sections_are_ordered_as_awss_writer_orders_them() -> None:
    eif = Eif.parse(good())

    assert [section.type for section in eif.sections] == [KERNEL, CMDLINE, METADATA, RAMDISK, RAMDISK]
    assert eif.sections[0].offset == 548
    assert (eif.header.default_memory_bytes, eif.header.default_cpus) == (1073741824, 2)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("magic", image(parts(), magic=b"EIF.")),
        ("version-unsupported", image(parts(), version=1)),
        ("version-unsupported", image(parts(), version=5)),
        ("version-old", image([K, C, R0], version=2)),
        ("version-old", image([K, C, R0], version=3)),
        ("aarch64", image(parts(), flags=1)),
        ("flags-reserved", image(parts(), flags=2)),
        ("reserved-used", fix_crc(good()[:0x18] + b"\0\1" + good()[0x1A:])),
        ("reserved-used", fix_crc(good()[:0x21C] + b"\1\0\0\0" + good()[0x220:])),
        ("sections-too-many", image(parts() * 7, count=33)),
        ("sections-too-few", image([K])),
        ("table-unused-entry", image(parts(), count=4)),
        ("section-unlisted", image(parts(), count=4)),
        ("section-outside", image(parts(), edit=lambda offsets, _: offsets.__setitem__(2, 1 << 40))),
        ("section-outside", image(parts(), edit=lambda offsets, _: offsets.__setitem__(0, 0))),
        ("section-truncated", good()[:-1]),
        ("section-truncated", image(parts(), edit=lambda _, sizes: sizes.__setitem__(4, 2**64 - 1))),
        ("section-size-mismatch", image(parts(), edit=lambda _, sizes: sizes.__setitem__(1, 3))),
        ("section-overlap", image(parts(), edit=lambda offsets, _: offsets.__setitem__(1, 548))),
        ("section-order", image([K, C, M, R0], edit=lambda offsets, _: offsets.reverse())),
        ("gap", image(parts(), gap=bytes(64))),
        ("trailing-bytes", image(parts(), tail=b"x")),
        ("section-type", image([*parts(), (0, b"")])),
        ("section-type", image([*parts(), (6, b"data")])),
        ("section-flags", image(parts(), section_flags=1)),
        ("section-newer", image(parts(), version=3)),
        ("kernel-missing", image([C, M, R0])),
        ("kernel-repeated", image([K, K, C, M, R0])),
        ("cmdline-missing", image([K, M, R0])),
        ("cmdline-repeated", image([K, C, C, M, R0])),
        ("ramdisk-missing", image([K, C, M])),
        ("ramdisk-early", image([R0, K, C, M])),
        ("metadata-missing", image([K, C, R0])),
        ("metadata-repeated", image([K, C, M, M, R0])),
        ("signature-repeated", image([*parts(), (SIGNATURE, b""), (SIGNATURE, b"")])),
        ("kernel-empty", image([(KERNEL, b""), C, M, R0])),
        ("kernel-format", image([(KERNEL, b"\x7fELF"), C, M, R0])),
        ("kernel-format", image(parts(), flags=1)),
        ("cmdline-empty", image([K, (CMDLINE, b""), M, R0])),
        ("cmdline-text", image([K, (CMDLINE, b"a\n"), M, R0])),
        ("cmdline-text", image([K, (CMDLINE, b"a\0b"), M, R0])),
        ("cmdline-long", image([K, (CMDLINE, b"a" * 2048), M, R0])),
        ("ramdisk-empty", image([K, C, M, (RAMDISK, b"")])),
        ("ramdisk-format", image([K, C, M, (RAMDISK, b"squashfs")])),
        ("metadata-empty", image([K, C, (METADATA, b""), R0])),
        ("metadata-json", image([K, C, (METADATA, b"{"), R0])),
        ("metadata-json", image([K, C, (METADATA, b"\xff"), R0])),
        ("metadata-json", image([K, C, (METADATA, b"[" * 100_000), R0])),
        ("metadata-schema", image([K, C, (METADATA, b"{}"), R0])),
        ("metadata-custom", image([K, C, (METADATA, M[1].replace(b'ta":null}', b'ta":[1]}')), R0])),
        ("signature-large", image([*parts(), (SIGNATURE, bytes(32769))])),
        ("signature-malformed", image([*parts(), (SIGNATURE, b"")])),
        ("crc", good()[:0x220] + b"\0\0\0\0" + good()[0x224:]),
        ("crc-without-trailing", good() + b"trailing bytes, more than twelve"),
    ],
)
def test_every_rule_finds_what_breaks_it(code: str, data: bytes) -> None:
    assert code in codes(data)


def test_the_header_must_be_whole() -> None:
    for size in (0, 3, 4, 547):
        with pytest.raises(EifFormatError, match="548 bytes") as caught:
            Eif.parse(good()[:size])
        assert caught.value.offset == size


def test_every_code_that_is_used_has_a_rule_and_every_rule_is_used() -> None:
    source = "".join(
        path.read_text() for path in (Path(__file__).parents[1] / "src" / "nitro_eif" / "image").glob("*.py")
    )
    for code in RULES:
        stem = code.partition("-")[0]
        assert source.count(f'"{code}"') >= 2 or stem in {
            "kernel",
            "cmdline",
            "ramdisk",
            "metadata",
            "signature",
        }


def test_errors_and_warnings_do_not_change_what_is_read_elsewhere() -> None:
    """Gaps and trailing bytes are legal; AWS's reader stumbles, the hypervisor boots."""
    eif = bootable(image(parts(), gap=b"\0" * 64, tail=b"tail"))

    assert measure(eif) == measure(Eif.parse(good()))
    assert all(finding.rule.hypervisor is not Fate.REFUSES for finding in validate(eif))


def test_the_checksum_of_an_image_with_a_gap_has_three_readings() -> None:
    data = image(parts(), gap=bytes(64))
    without_gap = bytearray(data)
    eif = Eif.salvage(data)
    from nitro_eif import checksum

    readings = checksum(eif)
    assert readings.specification == eif.header.crc32
    assert readings.aws_reader is None
    assert readings.qemu != readings.specification
    without_gap[0x220:0x224] = struct.pack(">I", readings.qemu)
    assert "crc-without-gaps" in codes(bytes(without_gap))


def test_awss_reader_leaves_up_to_eleven_trailing_bytes_out_of_the_checksum() -> None:
    from nitro_eif import checksum

    data = good()
    for tail in (1, 11):
        readings = checksum(Eif.salvage(data + bytes(tail)))
        assert readings.aws_reader == readings.qemu == Eif.salvage(data).header.crc32
    assert checksum(Eif.salvage(data + bytes(12))).aws_reader is None


@pytest.mark.parametrize(
    "data",
    [
        image(parts(), magic=b"EIF."),
        image(parts(), version=5),
        good()[:-1],
        image([K, C, R0]),
        image([R0, K, C, M]),
        image([*parts(), (6, b"")]),
        good()[:-1] + b"!",
    ],
)
def test_require_bootable_refuses_what_the_hypervisor_refuses(data: bytes) -> None:
    with pytest.raises(EifFormatError) as caught:
        bootable(data)

    assert caught.value.code in RULES
    assert f"{caught.value.offset:#x}" in str(caught.value)


def test_a_missing_or_repeated_section_is_named_when_it_is_asked_for() -> None:
    with pytest.raises(EifFormatError, match="no kernel section"):
        _ = Eif.parse(image([C, M, R0])).kernel
    with pytest.raises(EifFormatError, match="2 cmdline sections") as caught:
        _ = Eif.parse(image([K, C, C, R0])).cmdline
    assert caught.value.section == 2


def test_open_maps_the_file_and_names_it_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "broken.eif"
    path.write_bytes(good()[:-1])
    with pytest.raises(EifFormatError, match=r"broken\.eif: the ramdisk section"), Eif.open(path):
        pass
    (tmp_path / "empty").touch()
    with pytest.raises(EifFormatError, match="the file has 0"), Eif.open(tmp_path / "empty"):
        pass
    for bad in (tmp_path, tmp_path / "missing"):
        with pytest.raises(HostError, match=bad.name), Eif.open(bad):
            pass


def test_findings_are_data() -> None:
    (finding,) = validate(Eif.salvage(image(parts(), tail=b"x")))

    assert finding.severity is Severity.WARNING
    assert finding.as_json() == {
        "code": "trailing-bytes",
        "severity": "warning",
        "message": "1 bytes follow the last section",
        "offset": len(good()),
        "section": None,
        "specification": finding.rule.specification,
        "aws_reader": finding.rule.aws_reader,
        "qemu": finding.rule.qemu,
        "hypervisor": "boots",
    }


@given(legal_contents())
def test_what_is_written_is_read_again(contents: Contents) -> None:
    data = pack_eif(contents)
    eif = Eif.parse(data)

    assert bytes(eif.kernel) == contents.kernel
    assert eif.cmdline == contents.cmdline
    assert [bytes(ramdisk) for ramdisk in eif.ramdisks] == list(contents.ramdisks)
    assert eif.metadata == contents.metadata
    assert eif.signature == contents.signature
    assert (eif.version, eif.architecture) == (contents.version, contents.architecture)
    assert (eif.header.reserved, eif.header.unused) == (contents.header.reserved, contents.header.unused)
    assert not codes(data) & {"crc", "gap", "trailing-bytes", "section-size-mismatch"}


@given(st.permutations(parts()).filter(lambda order: order.index(K) < min(order.index(R0), order.index(R1))))
def test_sections_may_come_in_any_order_with_ramdisks_after_the_kernel(
    order: list[tuple[int, bytes]],
) -> None:
    eif = bootable(image(order))

    assert bytes(eif.kernel) == K[1]
    assert len(eif.ramdisks) == 2


@given(st.binary(max_size=2000) | st.binary(max_size=600).map(lambda tail: good()[:560] + tail))
def test_any_bytes_are_an_image_or_a_format_error(data: bytes) -> None:
    validate(Eif.salvage(data))
    for read in (Eif.parse, bootable):
        try:
            read(data)
        except EifFormatError as error:
            assert 0 <= error.offset <= max(len(data), 548)  # noqa: PT017


def test_every_corrupted_byte_is_found_or_harmless_and_every_truncation_is_found() -> None:
    """The checksum covers each byte but its own four, and those are compared."""
    data = good()
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        found = validate(Eif.salvage(broken))
        assert any(finding.severity is Severity.ERROR for finding in found), hex(at)
        with pytest.raises(EifFormatError):
            bootable(broken)
    for size in range(len(data)):
        with pytest.raises(EifFormatError):
            bootable(data[:size])


def test_contents_that_cannot_be_an_image_are_refused(tmp_path: Path) -> None:
    for cmdline in (b"a\n", b"a\0"):
        with pytest.raises(UsageError, match="one line"):
            write_eif(Contents(kernel=b"k", cmdline=cmdline, ramdisks=[b"r"]), tmp_path / "x")
    with pytest.raises(UsageError, match="at least one ramdisk"):
        pack_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[]))
    with pytest.raises(UsageError, match="at most 32"):
        pack_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[b"r"] * 31))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="missing"):
        write_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[b"r"]), tmp_path / "missing" / "x.eif")
    assert list(tmp_path.iterdir()) == []


def test_writing_over_an_image_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.eif"
    path.write_bytes(b"old")
    path.chmod(0o640)

    write_eif(Contents(kernel=b"k", cmdline=b"", ramdisks=[b"r"]), path)

    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_bytes().startswith(b".eif")


def test_a_short_file_is_told_from_one_that_is_no_image() -> None:
    assert "magic" not in codes(good()[:3])
    assert "magic" not in codes(good()[:100])
    assert "magic" in codes(b"PK\x03")
    assert "magic" in codes(b"PK\x03\x04" + bytes(100))
