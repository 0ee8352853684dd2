"""What the README shows works."""

import re
from pathlib import Path

import pytest

from nitro_eif import BuildMetadata, Contents, Metadata, write_eif
from nitro_vmm.cli import parser
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.testing import tiny_kernel

README = (Path(__file__).parents[1] / "README.md").read_text()
HALT = bytes.fromhex("faf4")  # cli; hlt


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    metadata = Metadata(image_name="hello", build=BuildMetadata(build_time="2026-01-31T12:00:00+00:00"))
    contents = Contents(
        kernel=tiny_kernel(HALT), cmdline=b"quiet", ramdisks=[bytes(512)], metadata=metadata.pack()
    )
    write_eif(contents, "hello.eif")

    exec(code, {})  # noqa: S102 - it is our README

    console, ended, pcr0 = capsys.readouterr().out.splitlines()
    assert console == "b''"
    assert ended == "True the enclave halted for good"
    assert re.fullmatch(r"[0-9a-f]{96}", pcr0)


def test_the_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^vmm (.*)$", README, re.MULTILINE)
    assert len(commands) == 1
    parser().parse_args(commands[0].split())
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))

    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known


def test_every_exit_code_is_explained() -> None:
    table = README.partition("## Exit codes")[2].partition("## From Python")[0]
    codes = {
        int(code) for row in re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE) for code in row.split(",")
    }

    assert codes == {int(code) for code in ExitCode}
