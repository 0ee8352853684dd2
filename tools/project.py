"""What the four distributions say alike: ``python tools/project.py version X.Y.Z`` or ``repository URL``.

They have one version, because nitro-vmm is tested with the three others of the same commit and no others. It
stands in several files, because each must make sense without the rest, and this writes them all.
The same goes for the address of the repository, which whoever publishes the packages chooses.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
"""X.Y.Z, and perhaps which pre-release of it (Python packaging, "Version specifiers")."""

VERSION_LINE = re.compile(r'^(version = ")([^"]+)(")$', re.MULTILINE)
SIBLING = re.compile(r'^(    "nitro-(?:eif|nsm|vsock|vmm)(?:\[\w+\])?==)([^"]+)(",)$', re.MULTILINE)
URLS = re.compile(r"^\[project\.urls\]\n(?:[^\[\n][^\n]*\n)*\n?", re.MULTILINE)


class ProjectError(Exception):
    """The files cannot be changed as asked; the message says which and why."""


def versions(root: Path = ROOT) -> dict[str, str]:
    """Each place that has the version, as ``file: line``, and what it has.

    Args:
        root: Where the repository is.
    """
    found = {}
    for path in (root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))):
        for pattern in (VERSION_LINE, SIBLING):
            for match in pattern.finditer(path.read_text()):
                found[f"{path.relative_to(root)}: {match[0].strip()}"] = match[2]
    return found


def set_version(version: str, root: Path = ROOT) -> None:
    """Write the version to all of its places.

    Args:
        version: X.Y.Z, or a pre-release such as X.Y.Zrc1.
        root: Where the repository is.

    Raises:
        ProjectError: That is no version.
    """
    if not VERSION.fullmatch(version):
        raise ProjectError(f"{version!r} is not a version: write X.Y.Z or X.Y.Zrc1")
    for path in (root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))):
        text = path.read_text()
        for pattern in (VERSION_LINE, SIBLING):
            text = pattern.sub(rf"\g<1>{version}\g<3>", text)
        path.write_text(text)


def set_repository(url: str, root: Path = ROOT) -> None:
    """Write the links of all distributions, or replace them.

    Args:
        url: Where the repository is read by people.
        root: Where the repository is.

    Raises:
        ProjectError: That is no address.
    """
    if not re.fullmatch(r"https://[\w.-]+/[\w./~-]*[\w-]", url):
        raise ProjectError(f"{url!r} is not the address of a repository: write https://HOST/OWNER/NAME")
    for path in sorted(root.glob("packages/*/pyproject.toml")):
        links = (
            "[project.urls]\n"
            f'Repository = "{url}"\n'
            f'Issues = "{url}/issues"\n'
            f'Changelog = "{url}/blob/main/CHANGELOG.md"\n\n'
        )
        text = URLS.sub("", path.read_text())
        path.write_text(text.replace("[project.scripts]", links + "[project.scripts]", 1))


def main() -> int:
    """Change what is asked, or say what there is."""
    parser = argparse.ArgumentParser(description="Change what the four distributions say alike.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("version", help="the version").add_argument("value", metavar="X.Y.Z", nargs="?")
    commands.add_parser("repository", help="the links").add_argument("value", metavar="URL")
    options = parser.parse_args()
    try:
        if options.what == "repository":
            set_repository(options.value)
        elif options.value is not None:
            set_version(options.value)
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.what == "version":
        found = versions()
        print(*(f"{value:<10} {place}" for place, value in found.items()), sep="\n")
        return 0 if len(set(found.values())) == 1 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
