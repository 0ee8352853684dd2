"""Pack the manual pages into wheels, if tools/man_pages.py has written them."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPagesHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Add the pages.

        Args:
            version: "standard" or "editable".
            build_data: What hatchling is told.
        """
        pages = sorted((Path(self.root) / "man").glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})
