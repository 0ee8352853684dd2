"""``vmm snapshot``: boots an image as far as its first program, and saves the machine there."""

import argparse
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import PROGRAM, add_command, add_json
from nitro_vmm.cli.configure import add_image_options, add_machine_options, config_of
from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.problems import complain_of
from nitro_vmm.cli.streams import tell

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers
    from nitro_vmm.config import EnclaveConfig

LOWEST_PRIORITY: Final = 19
SUFFIX: Final = ".snapshot"


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    snapshot = add_command(
        commands,
        "snapshot",
        execute,
        about="boot an image up to its first program, and save the machine for vmm run --from",
        example="vmm snapshot hello.eif -o hello.snapshot\nvmm run --from hello.snapshot",
    )
    add_image_options(snapshot)
    snapshot.add_argument(
        *("--output", "-o"), metavar="FILE", type=Path, help=f"where to (default: the image's name, {SUFFIX})"
    )
    snapshot.add_argument(
        "--cached", action="store_true", help="into the cache, where vmm run --warm finds it, at low priority"
    )
    snapshot.add_argument(
        "--kernel",
        action="store_true",
        help="save it before the kernel unpacks its ramdisks: it serves every image with this kernel",
    )
    add_machine_options(snapshot)
    add_json(snapshot)
    snapshot.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    snapshot.set_defaults(snapshot_path=None, vhost_user_path=None, from_qemu=None)


def execute(arguments: argparse.Namespace, started_s: float) -> int:  # noqa: ARG001 - the same for all commands
    """Save a machine."""
    if arguments.cached and arguments.output is not None:
        arguments.chosen.error("--cached and --output exclude each other")
    path = None
    try:
        config = config_of(arguments)
        path = config.eif_path
        _save(config, arguments)
    except Exception as error:  # noqa: BLE001 - what is not known there is raised again
        return complain_of(error, path, daemon=False)
    return ExitCode.ENDED


def _save(config: "EnclaveConfig", arguments: argparse.Namespace) -> None:
    from nitro_vmm.accel import open_accelerator  # noqa: PLC0415 - so that --help need not wait for it
    from nitro_vmm.cache import Cache  # noqa: PLC0415
    from nitro_vmm.enclave.saved import IMAGE, KERNEL, entry_name, refusal_name  # noqa: PLC0415
    from nitro_vmm.enclave.saving import Saving  # noqa: PLC0415
    from nitro_vmm.errors import GuestError  # noqa: PLC0415
    from nitro_vmm.snapshot.store import new_file  # noqa: PLC0415

    def say(text: str) -> None:
        if not arguments.quiet:
            tell(f"{PROGRAM}: {text}")

    if arguments.cached:
        with suppress(OSError):
            os.nice(LOWEST_PRIORITY)
    kind = KERNEL if arguments.kernel else IMAGE
    notes: list[str] = []
    accelerator = open_accelerator(config.accelerator, say=notes.append)
    with ExitStack() as resources:
        boot = Saving(config, accelerator, resources, kind=kind, say=say, notes=tuple(notes))
        if arguments.cached:
            name = entry_name(boot.parameters)
            cache = Cache()
            try:
                with cache.making(name) as entry:
                    if entry is not None:
                        boot.save(entry)
            except GuestError as error:
                with cache.making(refusal_name(boot.parameters)) as refusal:
                    if refusal is not None:
                        refusal.write(str(error).encode())
                raise
            output = cache.directory / name
            say(f"saved {output}" if entry is not None else f"the cache has {name}")
        else:
            output = arguments.output or Path(config.eif_path.name).with_suffix(SUFFIX)
            with new_file(output) as file:
                boot.save(file)
            say(f"saved {output}")
    if arguments.json:
        print(json.dumps({"File": str(output), "Kind": kind, "Bytes": output.stat().st_size}, indent=2))
