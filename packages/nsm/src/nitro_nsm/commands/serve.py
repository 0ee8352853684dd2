"""``nsm serve``."""

import argparse
import asyncio
import contextlib
import json
import signal
from pathlib import Path

from nitro_nsm.commands.inputs import enclave, signing_root
from nitro_nsm.module import Nsm
from nitro_nsm.server import serve


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    nsm = Nsm(enclave(options), root=signing_root(options))
    return asyncio.run(_until_stopped(nsm, Path(options.socket), as_json=options.json))


async def _until_stopped(nsm: Nsm, path: Path, *, as_json: bool) -> int:
    def ready() -> None:
        said = {"module_id": nsm.module_id, "socket": str(path)}
        print(json.dumps(said) if as_json else f"{nsm.module_id} on {path}", flush=True)

    task = asyncio.ensure_future(serve(nsm, path, ready=ready))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0
