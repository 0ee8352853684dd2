"""Readers differ: `eif verify --as` asks one of them, or all, and `--strict` counts warnings."""

import json
import struct
from pathlib import Path

import pytest

from eif_images import CMDLINE, METADATA, RAMDISK, fix_crc, good, image, parts
from nitro_eif import Eif, checksum, measure_and_checksum, validate
from nitro_eif.cli import main
from nitro_eif.image.readers import Reader, objections

K, C, M, R0, R1 = parts()


def as_qemu_sums(data: bytes) -> bytes:
    """The image with a checksum that covers its sections only."""
    return data[:0x220] + struct.pack(">I", checksum(Eif.salvage(data)).qemu) + data[0x224:]


GOOD = good()
CASES = {
    # name: (file, who takes it)
    "good": (GOOD, "nitro nitro-cli qemu strict"),
    "header flag 2": (image(parts(), flags=2), "nitro nitro-cli"),
    "aarch64": (image([(1, bytes(0x38) + b"ARM\x64"), C, M, R0], flags=1), "nitro nitro-cli strict"),
    "metadata that is not JSON": (image([K, C, (METADATA, b"{"), R0]), "nitro qemu"),
    "1 trailing byte": (image(parts(), tail=b"x"), "nitro"),
    "11 trailing bytes": (image(parts(), tail=b"x" * 11), "nitro"),
    "12 trailing bytes": (image(parts(), tail=b"x" * 12), "nitro"),
    "trailing bytes left out of the checksum": (GOOD + b"x" * 11, "nitro nitro-cli qemu"),
    "a gap": (image(parts(), gap=bytes(64)), "nitro"),
    "a gap left out of the checksum": (as_qemu_sums(image(parts(), gap=bytes(64))), "qemu"),
    "a wrong checksum": (GOOD[:-1] + b"!", ""),
    "version 3": (image([K, C, R0], version=3), "nitro nitro-cli strict"),
    "version 5": (image(parts(), version=5), "nitro-cli qemu"),
    "version 1": (image(parts(), version=1), "nitro-cli"),
    "an unknown section": (image([*parts(), (6, b"data")]), "qemu"),
    "an empty ramdisk": (image([K, C, M, R0, (RAMDISK, b"")]), "nitro nitro-cli"),
    "a command line of two lines": (image([K, (CMDLINE, b"a\nb"), M, R0]), "nitro nitro-cli qemu"),
    "another magic": (fix_crc(b"EIF." + GOOD[4:]), "nitro-cli"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reader", ["nitro", "nitro-cli", "qemu", "all", "strict"])
def test_each_reader_takes_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reader: str
) -> None:
    data, takers = CASES[name]
    path = tmp_path / "x.eif"
    path.write_bytes(data)
    taken = all(each in takers.split() for each in ("nitro", "nitro-cli", "qemu"))
    if reader != "all":
        taken = reader in takers.split()

    code = main(["verify", *(["--strict"] if reader == "strict" else ["--as", reader]), str(path)])

    assert code == (0 if taken else 1), capsys.readouterr().out


def test_the_default_is_the_hypervisor(tmp_path: Path) -> None:
    path = tmp_path / "x.eif"
    for name in ("header flag 2", "a gap left out of the checksum"):
        data, takers = CASES[name]
        path.write_bytes(data)
        assert main(["verify", str(path)]) == (0 if "nitro" in takers.split() else 1)


@pytest.mark.parametrize(("name", "valid"), [("good", True), ("a wrong checksum", False)])
def test_json_says_whether_it_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, valid: object
) -> None:
    path = tmp_path / "x.eif"
    path.write_bytes(CASES[name][0])

    main(["verify", "--json", str(path)])

    report = json.loads(capsys.readouterr().out)
    assert (report["Valid"], report["Problems"] == []) == (valid, valid)


def test_a_checksum_that_skips_gaps_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.eif"
    path.write_bytes(CASES["a gap left out of the checksum"][0])

    assert main(["verify", str(path)]) == 1
    assert "it covers the sections only, as QEMU has it" in capsys.readouterr().out


def test_a_reader_objects_to_the_checksum_of_a_file_that_has_other_faults_too() -> None:
    eif = Eif.salvage(GOOD[:-1])
    measured = measure_and_checksum(eif)

    said = [str(objection) for objection in objections(eif, validate(eif), measured, Reader.QEMU)]

    assert eif.findings
    assert any("QEMU says CRC mismatch" in sentence for sentence in said)


def test_registers_may_have_0x_and_any_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nitro_eif import measure

    path = tmp_path / "x.eif"
    path.write_bytes(GOOD)
    pcr0 = measure(Eif.parse(GOOD)).pcr0.hex()

    for text in (pcr0, pcr0.upper(), f"0x{pcr0}", f"0X{pcr0.upper()}"):
        assert main(["verify", "--pcr0", text, str(path)]) == 0
    assert main(["verify", "--pcr0", f"0x{pcr0[2:]}", str(path)]) == 2
