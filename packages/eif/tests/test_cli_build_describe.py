import json
from pathlib import Path

import pytest

from nitro_eif import Eif, measure
from nitro_eif.cli import main


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    for name, data in {
        "kernel": b"\0" * 0x202 + b"HdrS" + b"\0" * 64,
        "rd0": b"070701a",
        "rd1": b"070701b",
    }.items():
        (tmp_path / name).write_bytes(data)
    arguments = ["--kernel", str(tmp_path / "kernel"), "--cmdline", "reboot=k panic=30"]
    for name in ("rd0", "rd1"):
        arguments += ["--ramdisk", str(tmp_path / name)]
    return arguments


def test_build_then_describe_tell_the_same_measurements(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "hello.eif"

    assert main(["build", *parts, "--output", str(image)]) == 0
    built = capsys.readouterr().out
    assert main(["describe", "--json", str(image)]) == 0
    described = json.loads(capsys.readouterr().out)

    assert built.startswith(f"Output file: {image}\n")
    assert json.loads(built.split("\n", 1)[1]) == described["Measurements"]
    assert described["CheckCRC"] is True
    with Eif.open(image, strict=True) as eif:
        assert eif.cmdline == b"reboot=k panic=30"
        assert [bytes(ramdisk) for ramdisk in eif.ramdisks] == [b"070701a", b"070701b"]
        assert measure(eif).as_json() == described["Measurements"]


def test_describe_shows_what_is_left_of_a_truncated_image(
    parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "hello.eif"
    main(["build", *parts, "--output", str(image)])
    image.write_bytes(image.read_bytes()[:700])
    capsys.readouterr()

    assert main(["describe", str(image)]) == 3
    out = capsys.readouterr().out
    assert "kernel" in out
    assert "section-truncated" in out
