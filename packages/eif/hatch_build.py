"""Compile the guest's init into wheels and editable installs; the source distribution carries its source."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "init"))
from compile import CompileError, compile_program

OUTPUT = "src/nitro_eif/_guest/init-x86_64"


class GuestInitHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Make the init, and have it packed although git ignores it.

        Args:
            version: "standard" or "editable"; both need the init.
            build_data: what hatchling is told.
        """
        root = Path(self.root)
        try:
            compile_program(root / "init/init.c", root / OUTPUT)
        except CompileError as error:
            sys.exit(f"error: {error}")
        build_data["artifacts"].append(OUTPUT)
