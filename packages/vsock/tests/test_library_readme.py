"""What the README says about the library works."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
LIBRARY = README.partition("## The library")[2].partition("\n## ")[0]


def test_its_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = re.findall(r"^```\w*\n(.*?)^```", LIBRARY, re.MULTILINE | re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 (our own)
    assert capsys.readouterr().out == output
