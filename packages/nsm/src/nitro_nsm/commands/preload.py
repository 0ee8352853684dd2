"""``nsm preload``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import json

from nitro_nsm.commands.options import add_json

SUMMARY = "print the path of a library that gives programs a /dev/nsm without an enclave"
EXAMPLES = (
    "nsm serve --socket /tmp/nsm.sock",
    "LD_PRELOAD=$(nsm preload) NITRO_NSM_SOCKET=/tmp/nsm.sock my-program",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take how to print it."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the path, compiling the library if that was not done yet."""
    from nitro_nsm.preload import SOCKET_VARIABLE, preload_library

    path = str(preload_library())
    print(json.dumps({"path": path, "socket_variable": SOCKET_VARIABLE}, indent=2) if options.json else path)
    return 0
