"""Compile the guest's init into wheels and editable installs; the source distribution carries its source.

There is one for each processor for which this machine has a compiler.

Without any compiler the package is built all the same, only without the init: everything but `eif build` with
this project's own init works then, and `nitro_eif.guest_init` says what to do.
"""

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "init"))
from compile import CompileError, NoCompilerError, compile_program

OUTPUT = "src/nitro_eif/_guest"
ARCHITECTURES = ("x86_64", "aarch64")
REQUIRED = "NITRO_EIF_REQUIRE_INIT"
"""Set this in the environment of a release's build, which must not be without any of the inits."""


class GuestInitHook(BuildHookInterface[Any]):
    """Hatchling's name for a program that runs before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Make the inits, and have them packed although git ignores them.

        Args:
            version: "standard" or "editable"; both need the inits.
            build_data: What hatchling is told.
        """
        # Manual pages are there if tools/man_pages.py has written them.
        pages = sorted((Path(self.root) / "man").glob("*.1"))
        build_data["shared_data"].update({str(page): f"share/man/man1/{page.name}" for page in pages})
        root = Path(self.root)
        for architecture in ARCHITECTURES:
            output = f"{OUTPUT}/init-{architecture}"
            try:
                compile_program(root / "init/init.c", root / output, architecture)
            except NoCompilerError as error:
                if os.environ.get(REQUIRED):
                    sys.exit(f"error: {error}")
                # An init of an earlier build may be of other source; it must not be packed unseen.
                (root / output).unlink(missing_ok=True)
                self.app.display_warning(f"warning: built without the init for {architecture}: {error}")
            except CompileError as error:
                sys.exit(f"error: {error}")
            else:
                build_data["artifacts"].append(output)
