"""Fetch vhost-device-vsock, the daemon that ours is compared with, from Debian unstable."""

import subprocess
from pathlib import Path

import debian

PACKAGE = "vhost-device-vsock"
SUITE = "sid"
CACHE = debian.ROOT / ".cache" / "debian" / SUITE


class UnavailableError(Exception):
    """The peer cannot be had here; the message says why."""


def fetch() -> Path:
    """The peer's program, downloaded if it is not there yet.

    Raises:
        UnavailableError: It cannot be downloaded, or does not run on this machine.
    """
    root = CACHE / PACKAGE / "root"
    program = root / "usr/bin" / PACKAGE
    try:
        if not program.exists():
            package = debian.Apt(CACHE, suite=SUITE).package(PACKAGE)
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        subprocess.run([program, "--version"], check=True, capture_output=True)
    except debian.DebianError as error:
        raise UnavailableError(str(error)) from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"{PACKAGE} of Debian {SUITE} does not run here: {error}") from error
    return program
