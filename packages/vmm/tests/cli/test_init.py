"""The project that ``vmm init`` begins, as files."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.main import main, parser


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", str(tmp_path / "new" / "project")]) == ExitCode.ENDED
    capsys.readouterr()
    return tmp_path / "new" / "project"


def test_the_files_and_their_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path), "--json"]) == ExitCode.ENDED

    listed = json.loads(capsys.readouterr().out)
    assert listed == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert {".gitignore", ".github/workflows/enclave.yml", "tests/test_app.py", "Containerfile"} <= set(
        listed
    )


def test_nothing_is_overwritten(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "app.c").write_text("mine")
    (project / "Makefile").unlink()

    assert main(["init", str(project)]) == ExitCode.USAGE
    assert str(project / "app.c") in capsys.readouterr().err
    assert (project / "app.c").read_text() == "mine"
    assert not (project / "Makefile").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    assert main(["init", str(tmp_path / "file" / "in")]) == ExitCode.HOST
    assert "hint:" in capsys.readouterr().err


def test_what_the_container_image_copies_is_there(project: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+)", (project / "Containerfile").read_text(), re.MULTILINE)

    assert copied
    assert all((project / name).is_file() for name in copied)


def test_the_workflow_makes_what_the_makefile_has(project: Path) -> None:
    workflow = yaml.safe_load((project / ".github/workflows/enclave.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    targets = re.findall(r"^(\w+):", (project / "Makefile").read_text(), re.MULTILINE)

    made = [shlex.split(step)[1] for step in steps if step.startswith("make ")]

    assert made
    assert set(made) <= set(targets)


def test_the_makefile_runs_commands_that_there_are(project: Path) -> None:
    recipes = re.findall(r"^\tvmm (.+)$", (project / "Makefile").read_text(), re.MULTILINE)

    assert recipes
    for recipe in recipes:
        parser().parse_args(shlex.split(recipe))
