"""Build the documentation as a site: ``python tools/documentation.py`` (``nox -s docs``).

Pages are the files in ``docs``, others of the repository, and a reference of every public name. In the
repository a link leads from file to file. Some lie elsewhere on the site, so links are translated here, and
one to a file that is no page becomes the file's name. The builder fails on links that lead nowhere.
"""

import ast
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache/documentation"
"""What the builder reads, and what it writes: the result is in ``site``. Its own cache lies there, too."""

PACKAGES = ("eif", "nsm", "vsock", "vmm")

ELSEWHERE = {
    **{f"packages/{package}/README.md": f"packages/{package}.md" for package in PACKAGES},
    "SPECIFICATION.md": "specification.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "README.md": "readme.md",
}
"""Files of the repository, and the pages that they are on the site."""

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]*)(#[^)\s]*)?\)")


def reference(module: str) -> str:
    """A page with all public names of a package, and of its kit for tests."""
    folder = ROOT / "packages" / module.removeprefix("nitro_") / "src" / module
    introduction = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    parts = [f"# {module}", introduction]
    parts += [f"::: {module}.{name}" for name in public_names(folder / "__init__.py")]
    parts += [f"## {module}.testing", f"::: {module}.testing\n    options:\n      show_root_heading: false"]
    return "\n\n".join(parts)


def public_names(path: Path) -> list[str]:
    """What a module's ``__all__`` lists, without importing it.

    Raises:
        ValueError: There is no list.
    """
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(statement.value)
            return sorted(names, key=lambda name: (name.isupper(), name.lower()))
    raise ValueError(f"{path} has no __all__ that lists its public names")


def decisions() -> str:
    """A list of the decisions, by their titles."""
    paths = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    titles = {path.name: path.read_text().partition("\n")[0].removeprefix("# ") for path in paths}
    return "\n" + "".join(f"- [{title}]({name})\n" for name, title in titles.items())


def sources() -> dict[str, str]:
    """Each page of the site, and the file of the repository that it is."""
    own = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return {path.removeprefix("docs/"): path for path in own} | {
        page: path for path, page in ELSEWHERE.items()
    }


def translated(page: str, pages: dict[str, str]) -> str:
    """A page's text, with its links led to places on the site.

    Args:
        page: Which one.
        pages: The file that each page is.
    """
    file = pages[page]
    places = {path: name for name, path in pages.items()}

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        goal = places.get(path) or places.get(f"{path}/index.md")
        if goal is not None:
            return f"[{text}]({os.path.relpath(goal, posixpath.dirname(page) or '.')}{anchor})"
        if (ROOT / path).exists():
            return text if text.startswith("`") else f"{text} (`{path}`)"
        return match[0]

    return LINK.sub(lead, (ROOT / file).read_text())


def main() -> int:
    """Write the pages, and have the site made of them; the exit code is the builder's."""
    shutil.rmtree(WORK, ignore_errors=True)
    pages = sources()
    contents = {page: translated(page, pages) for page in pages}
    contents["decisions/index.md"] += decisions()
    contents |= {f"reference/nitro_{package}.md": reference(f"nitro_{package}") for package in PACKAGES}
    for page, content in contents.items():
        path = WORK / "pages" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    shutil.copy(ROOT / "docs/site.yml", WORK / "mkdocs.yml")
    builder = Path(sys.executable).parent / "zensical"
    return subprocess.run([builder, "build", "--strict"], cwd=WORK, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
