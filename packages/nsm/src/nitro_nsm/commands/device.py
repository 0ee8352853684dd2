"""``nsm device``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_identity, add_json
from nitro_nsm.errors import HostError, UsageError

if TYPE_CHECKING:
    from nitro_nsm.cuse import CuseDevice

SUMMARY = "be a module at a real /dev/nsm (CUSE; as root), for programs that are tested without an enclave"
EXAMPLES = ("nsm device", "nsm device --name nsm2 --debug-mode")
CUSE = Path("/dev/cuse")
MODE = 0o666
"""Everybody may ask the module, as in an enclave."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the device's name, and who the enclave is."""
    parser.add_argument("--name", default="nsm", help="the device's name below /dev; default: nsm")
    add_identity(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which both end it as asked: with 0; the device goes with the process."""
    from nitro_nsm.commands.inputs import enclave, signing_root
    from nitro_nsm.cuse import CuseDevice
    from nitro_nsm.module import Nsm

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", options.name):
        raise UsageError(f"--name {options.name!r} is not the name of a device", hint="such as nsm")
    device = Path("/dev", options.name)
    if device.exists():
        raise HostError(f"{device} is there already", hint="give another --name")
    nsm = Nsm(enclave(options), root=signing_root(options))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_, lambda *_: sys.exit(0))

    def ready() -> None:
        with contextlib.suppress(OSError):
            device.chmod(MODE)
        said = {"module_id": nsm.module_id, "device": str(device)}
        print(json.dumps(said) if options.json else f"{nsm.module_id} at {device}", flush=True)

    serve(_opened(), CuseDevice(nsm.handle, options.name), ready)
    return 0


def _opened() -> int:
    try:
        return os.open(CUSE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"{CUSE}: {error.strerror}", hint="as root: modprobe cuse; or preload a library: nsm preload"
        ) from error


def serve(cuse: int, device: "CuseDevice", ready: Callable[[], None]) -> None:
    """Serve a device until the kernel ends it, and close its descriptor.

    Args:
        cuse: A descriptor of /dev/cuse.
        device: Answers.
        ready: Called when the device is there.

    Raises:
        HostError: There can be no such device.
    """
    from nitro_nsm.cuse import MESSAGE_BYTES_MAX

    try:
        _write(cuse, device.receive(os.read(cuse, MESSAGE_BYTES_MAX)))  # the first message makes the device
        ready()
        while True:
            _write(cuse, device.receive(os.read(cuse, MESSAGE_BYTES_MAX)))
    except OSError as error:
        if error.errno != errno.ENODEV:  # the kernel has ended it
            raise HostError(f"{CUSE}: {error.strerror}") from error
    finally:
        os.close(cuse)


def _write(cuse: int, answer: bytes | None) -> None:
    if answer is not None:
        with contextlib.suppress(FileNotFoundError):  # the program that asked has been killed meanwhile
            os.write(cuse, answer)
