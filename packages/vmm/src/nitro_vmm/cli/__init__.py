"""The command line: ``vmm``. Each command has a file, which brings its arguments and what it does."""

from nitro_vmm.cli.main import main, parser, program

__all__ = ["main", "parser", "program"]
