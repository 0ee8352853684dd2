"""Check that type checkers know all public names: ``python tools/public_types.py [PACKAGE...]``.

Pyright's ``--verifytypes`` says of each symbol whether its type is declared, or is one that type checkers may
infer differently. It takes all modules for public. Here the public names are those in a package's ``__all__``
and those of its ``testing``, with all of their public attributes; each must be declared in full.
"""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("nitro_eif", "nitro_nsm", "nitro_vsock", "nitro_vmm")


@dataclass(frozen=True)
class Gap:
    """A public symbol whose type is not declared in full."""

    name: str
    reason: str


def public_prefixes(package: str) -> set[str]:
    """The full names of what a package makes public, where they are exported and where they are defined."""
    prefixes = {f"{package}.testing"}
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        prefixes.add(f"{package}.{name}")
        if hasattr(value, "__qualname__"):
            prefixes.add(f"{value.__module__}.{value.__qualname__}")
    return prefixes


def is_public(name: str, prefixes: set[str]) -> bool:
    """Whether a symbol is a public name or an attribute of one."""
    parts = name.split(".")
    if any(part.startswith("_") and not part.startswith("__") for part in parts):
        return False
    return any(".".join(parts[:length]) in prefixes for length in range(2, len(parts) + 1))


def gaps(package: str) -> list[Gap]:
    """What is not declared in full.

    Raises:
        RuntimeError: The type checker found no symbols.
    """
    checker = Path(sys.executable).parent / "basedpyright"
    command = [str(checker), "--outputjson", "--ignoreexternal", "--verifytypes", package]
    # It asks the first Python on the path what is installed.
    done = subprocess.run(
        command,
        env={"PATH": str(checker.parent), "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    if not symbols:
        raise RuntimeError(f"{package} is not installed, or has no py.typed:\n{done.stdout[:2000]}")
    prefixes = public_prefixes(package)
    return [
        Gap(symbol["name"], "; ".join(each["message"].replace("\n", ": ") for each in symbol["diagnostics"]))
        for symbol in symbols
        if is_public(symbol["name"], prefixes)
        and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
    ]


def main() -> int:
    """Check the packages that are named, or all; 1 if there are gaps."""
    found = [gap for package in sys.argv[1:] or PACKAGES for gap in gaps(package)]
    for gap in found:
        print(f"{gap.name}: {gap.reason}")
    print(f"{len(found)} public names without a full type")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
