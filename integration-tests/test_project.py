"""The four distributions are one project: one version, one address, the same Pythons."""

import shutil
import tomllib
from pathlib import Path

import pytest

import project

MANIFESTS = sorted(project.ROOT.glob("packages/*/pyproject.toml"))


def parsed(path: Path) -> dict[str, object]:
    content: dict[str, object] = tomllib.loads(path.read_text())["project"]
    return content


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that this is about, to be changed."""
    for path in (project.ROOT / "pyproject.toml", *MANIFESTS):
        target = tmp_path / path.relative_to(project.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def test_all_places_have_one_version() -> None:
    found = project.versions()

    # Four distributions, the three siblings of nitro-vmm, one of them twice, and the changelog's title.
    assert len(found) == 9
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("key", ["authors", "keywords", "license", "requires-python", "urls", "classifiers"])
def test_what_all_distributions_say_is_the_same(key: str) -> None:
    shared = {path.parent.name: parsed(path).get(key) for path in MANIFESTS}
    if key == "keywords":
        assert all(shared.values()), shared
        return

    assert len({str(value) for value in shared.values()}) == 1, shared


def test_a_new_version_is_written_to_all_places_and_nothing_else_changes(copy: Path) -> None:
    before = {path: path.read_text() for path in copy.rglob("pyproject.toml")}
    old = next(iter(project.versions(copy).values()))

    project.set_version("7.8.9rc1", copy)

    assert set(project.versions(copy).values()) == {"7.8.9rc1"}
    assert {path: path.read_text().replace("7.8.9rc1", old) for path in before} == before


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3-rc1", '1.2.3"'])
def test_what_is_no_version_changes_nothing(copy: Path, version: str) -> None:
    before = project.versions(copy)

    with pytest.raises(project.ProjectError, match="is not a version"):
        project.set_version(version, copy)

    assert project.versions(copy) == before


def test_the_address_of_the_repository_is_written_to_all_distributions_once(copy: Path) -> None:
    project.set_repository("https://code.example/someone/first", copy)
    project.set_repository("https://code.example/someone/second", copy)

    for path in copy.glob("packages/*/pyproject.toml"):
        urls = tomllib.loads(path.read_text())["project"]["urls"]
        assert urls == {
            "Repository": "https://code.example/someone/second",
            "Issues": "https://code.example/someone/second/issues",
            "Changelog": "https://code.example/someone/second/blob/main/CHANGELOG.md",
        }


@pytest.mark.parametrize(
    "address", ["", "code.example/x/y", "http://code.example/x", "https://code.example/", 'https://x/"']
)
def test_what_is_no_address_changes_nothing(copy: Path, address: str) -> None:
    before = {path: path.read_text() for path in copy.rglob("pyproject.toml")}

    with pytest.raises(project.ProjectError, match="is not the address"):
        project.set_repository(address, copy)

    assert {path: path.read_text() for path in before} == before
