"""What commands print: text at a terminal, JSON into a pipe or with --json, in documented shapes."""

import json
from pathlib import Path

import pytest

from eif_images import parts
from nitro_eif import Eif, measure, write_eif
from nitro_eif.cli import main
from nitro_eif.testing import example_contents, example_key, key_pem


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "x.eif"
    write_eif(example_contents(), path)
    return path


@pytest.fixture
def commands(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """A command line of each command that prints, all of which succeed."""
    key, certificate = example_key()
    for name, data in {
        "key": key_pem(key),
        "cert": certificate,
        "kernel": parts()[0][1],
        "rd": parts()[3][1],
    }.items():
        (tmp_path / name).write_bytes(data)
    assert main(["extract", str(image), "--output", str(tmp_path / "parts")]) == 0
    capsys.readouterr()
    signing = ["--private-key", str(tmp_path / "key"), "--signing-certificate", str(tmp_path / "cert")]
    kernel = ["--kernel", str(tmp_path / "kernel"), "--cmdline", "c", "--ramdisk", str(tmp_path / "rd")]
    return {
        "build": [*kernel, "--output", str(tmp_path / "b.eif")],
        "describe": [str(image)],
        "verify": [str(image)],
        "diff": [str(image), str(image)],
        "extract": [str(image), "--output", str(tmp_path / "new")],
        "assemble": [str(tmp_path / "parts"), "--output", str(tmp_path / "a.eif")],
        "sign": [str(image), *signing, "--output", str(tmp_path / "s.eif")],
        "unsign": [str(image), "--output", str(tmp_path / "u.eif")],
        "pcr": ["--input", str(image)],
    }


SHAPES = {
    "build": ["Measurements"],
    "describe": [
        "EifVersion",
        "Measurements",
        "IsSigned",
        "CheckCRC",
        "ImageName",
        "ImageVersion",
        "Metadata",
    ],
    "verify": ["Valid", "Signed", "Problems", "Measurements"],
    "diff": ["Same", "PCRs", "Differences"],
    "extract": ["Files", "RebuildsExactly"],
    "assemble": ["Measurements"],
    "sign": ["Measurements"],
    "unsign": ["Measurements"],
    "pcr": ["PCR"],
}


@pytest.mark.parametrize("name", SHAPES)
def test_json_is_printed_into_a_pipe_or_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    commands: dict[str, list[str]],
    name: str,
    tmp_path: Path,
) -> None:
    assert main([name, *commands[name], "--json"]) == 0
    asked_for = capsys.readouterr().out
    assert list(json.loads(asked_for)) == SHAPES[name]

    for path in (tmp_path / "new").glob("*"):
        path.unlink()
    monkeypatch.setattr("nitro_eif.cli._is_terminal", lambda: False)
    assert main([name, *commands[name]]) == 0
    assert capsys.readouterr().out == asked_for


@pytest.mark.parametrize("name", SHAPES)
def test_text_is_printed_at_a_terminal_or_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    commands: dict[str, list[str]],
    name: str,
    tmp_path: Path,
) -> None:
    assert main([name, *commands[name]]) == 0
    text = capsys.readouterr().out
    assert text
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(text)

    for path in (tmp_path / "new").glob("*"):
        path.unlink()
    monkeypatch.setattr("nitro_eif.cli._is_terminal", lambda: False)
    assert main([name, *commands[name], "--text"]) == 0
    assert capsys.readouterr().out == text


def test_registers_are_printed_one_a_line(
    image: Path, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unsign", *commands["unsign"]]) == 0

    with Eif.open(image) as eif:
        registers = measure(eif)
    assert capsys.readouterr().out.splitlines() == [
        f"PCR0  {registers.pcr0.hex()}",
        f"PCR1  {registers.pcr1.hex()}",
        f"PCR2  {registers.pcr2.hex()}",
    ]


def test_text_and_json_exclude_each_other(image: Path) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "--json", "--text", str(image)])
