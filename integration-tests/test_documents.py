"""What documents promise: that the tests they name exist, and the files they link to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [path for pattern in ("*.md", "docs/**/*.md", "packages/*/*.md") for path in ROOT.glob(pattern)]


def defines(path: Path, test: str) -> bool:
    return (
        path.exists() and re.search(rf"^ *(async )?def {test}\(", path.read_text(), re.MULTILINE) is not None
    )


def test_every_test_that_the_specification_names_exists() -> None:
    named = re.findall(r"`([\w/.-]+\.py)::(\w+)`", (ROOT / "SPECIFICATION.md").read_text())

    missing = [f"{path}::{test}" for path, test in named if not defines(ROOT / path, test)]

    assert named
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_of_the_repository_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", document.read_text())

    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("contents", ["docs/index.md", "docs/site.yml"])
def test_every_page_is_in_the_contents(contents: str) -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    decisions = {page for page in pages if page.startswith("decisions/")}
    text = (ROOT / contents).read_text()

    assert not [page for page in sorted(pages - decisions - {"index.md"}) if page not in text]
    assert "decisions/" in text
