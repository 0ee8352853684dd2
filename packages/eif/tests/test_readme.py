import re
from pathlib import Path

import pytest

from nitro_eif.cli import parser
from nitro_eif.testing import example_contents

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    contents = example_contents()
    (tmp_path / "bzImage").write_bytes(contents.kernel)
    (tmp_path / "init.cpio").write_bytes(contents.ramdisks[0])
    monkeypatch.chdir(tmp_path)

    exec(  # noqa: S102 - the README is ours
        re.sub(r'open\("(\S+)", "rb"\).read\(\)', r'__import__("pathlib").Path("\1").read_bytes()', code), {}
    )

    assert re.fullmatch(r"4 b'reboot=k panic=30' 1\n[0-9a-f]{96}\n", capsys.readouterr().out)


def test_the_commands_that_it_shows_are_understood() -> None:
    import shlex

    shown = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in shown.splitlines() if line.startswith("eif ")]
    assert len(commands) >= 7
    for command in commands:
        parser().parse_args(command[1:])
