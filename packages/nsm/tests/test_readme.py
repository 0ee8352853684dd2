"""The examples of the README work as they stand there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 4

    exec("\n".join(examples), {})  # noqa: S102 - it is our README

    made, refused, locked, parameter = capsys.readouterr().out.splitlines()
    assert made.endswith(" test")
    assert refused.startswith("certificates certificates: the root is not aws (641a")
    assert locked.endswith("15, 16)")
    assert parameter == "['AttestationDocument', 'KeyEncryptionAlgorithm']"


def test_the_commands_exist() -> None:
    from nitro_nsm.cli import parser

    commands = re.findall(r"^(?:eif .*\| )?nsm (.*?)(?: +#.*)?$", README.read_text(), re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        parser().parse_args(command.split(" > ")[0].split())
