"""Compile the library in front of Unicorn into wheels and editable installs, where that is possible.

A wheel with it is for Linux on x86-64. Without a compiler the wheel is for any machine, and vmm does without
the library: slower, and with fewer instructions offered to the guest.
"""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "native"))
from compile import CompileError, compile_library, obstacle

OUTPUT = "src/nitro_vmm/accel/unicorn/libnitro.so"
TAG = "py3-none-manylinux_2_17_x86_64"


class NativeLibraryHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Make the library, and have it packed although git ignores it.

        Args:
            version: "standard" or "editable"; both want the library.
            build_data: What hatchling is told.
        """
        # Manual pages are there if tools/man_pages.py has written them.
        pages = sorted((Path(self.root) / "man").glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})
        root = Path(self.root)
        if reason := obstacle():
            self.app.display_warning(f"building without the native part: {reason}")
            (root / OUTPUT).unlink(missing_ok=True)
            return
        try:
            compile_library(root / OUTPUT)
        except CompileError as error:
            self.app.display_warning(f"building without the native part: {error}")
            (root / OUTPUT).unlink(missing_ok=True)
            return
        build_data["artifacts"].append(OUTPUT)
        build_data["pure_python"] = False
        build_data["tag"] = TAG
