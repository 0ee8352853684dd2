"""Debian packages for guests, kept under ``.cache/debian``: ``python tools/debian.py PACKAGE...``.

How they are fetched and checked is `nitro_eif.build.debian`, of which ``eif kernel`` is the command. It is
taken from this repository, because the first tools run before anything is installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "packages" / "eif" / "src"))

from nitro_eif.build.debian import SUITE, Apt, DebianError  # noqa: E402 - found by the line above

__all__ = ["CACHE", "DEBIAN", "SUITE", "Apt", "DebianError", "complain", "say"]

CACHE = ROOT / ".cache" / "debian" / SUITE
DEBIAN = Apt(CACHE)
"""What all tools share, so that the index is read once."""


def say(text: str) -> None:
    """Tell the user what goes on."""
    print(text, file=sys.stderr, flush=True)


def complain(error: Exception) -> int:
    """Say why a tool cannot go on and what to do; returns its exit code."""
    hint = getattr(error, "hint", "")
    say(f"error: {error}" + (f"\n  hint: {hint}" if hint else ""))
    return 4


def main() -> int:
    """Fetch the packages named on the command line; print where they are."""
    try:
        for name in sys.argv[1:]:
            package = DEBIAN.package(name)
            print(package)
            say(f"{name}: {package.name}, {package.stat().st_size / 2**20:.1f} MiB")
    except DebianError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
