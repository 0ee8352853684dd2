"""``nsm serve``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_identity, add_json

if TYPE_CHECKING:
    from nitro_nsm.module import Nsm

SUMMARY = "be a module on a unix socket, for programs that are tested without an enclave"
EXAMPLES = ("nsm serve --socket /tmp/nsm.sock",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take where to listen, and who the enclave is."""
    parser.add_argument("--socket", required=True, metavar="PATH", help="where to listen")
    parser.add_argument(
        "--allow-uid",
        type=int,
        action="append",
        default=[],
        metavar="UID",
        help="let this user's programs connect, too, besides root's and those of the user who serves",
    )
    add_identity(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which both end it as asked: with 0."""
    import asyncio

    from nitro_nsm.commands.inputs import enclave, signing_root
    from nitro_nsm.module import Nsm

    nsm = Nsm(enclave(options), root=signing_root(options))
    return asyncio.run(_until_stopped(nsm, options))


async def _until_stopped(nsm: "Nsm", options: argparse.Namespace) -> int:
    import asyncio

    from nitro_nsm.server import serve

    path = Path(options.socket)

    def ready() -> None:
        said = {"module_id": nsm.module_id, "socket": str(path)}
        print(json.dumps(said) if options.json else f"{nsm.module_id} on {path}", flush=True)

    task = asyncio.ensure_future(serve(nsm, path, ready=ready, users=options.allow_uid))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0
