"""Where programs of this user listen for all enclaves at once, as programs on an EC2 instance do.

On EC2 there is one vsock for the whole machine: a program that listens at a port of the parent is reached by
every enclave. Here each enclave has a vsock of its own, so such a program listens at a unix socket in a
directory of the user's, ``parent_PORT``, and every enclave of the user looks there.
"""

import os
import stat
from pathlib import Path
from typing import Final

from nitro_vsock.addresses import SocketType
from nitro_vsock.errors import HostError
from nitro_vsock.host.sides import ConnectedUnixSocket
from nitro_vsock.host.unix import UnixHostSide

PREFIX_NAME: Final = "parent"


def parent_prefix() -> Path:
    """The path before ``_PORT``: ``$XDG_RUNTIME_DIR/nitro-vsock/parent``.

    Without that variable it is in the directory of temporary files.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base, "nitro-vsock", PREFIX_NAME)
    import tempfile  # noqa: PLC0415 - takes long, and a guest's first connection waits for this module

    return Path(tempfile.gettempdir(), f"nitro-vsock-{os.geteuid()}", PREFIX_NAME)


def make_parent_directory() -> Path:
    """Make the directory of `parent_prefix` if it is not there; returns the prefix.

    Raises:
        HostError: It cannot be made, or somebody else may write there.
    """
    prefix = parent_prefix()
    try:
        prefix.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"{prefix.parent} cannot be made: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a directory of yours, or give --uds-path",
        ) from error
    if not _is_ours(prefix.parent):
        raise HostError(
            f"{prefix.parent} is not a directory that only you may use",
            hint=f"remove it, or: chmod 700 {prefix.parent}",
        )
    return prefix


class SharedParentSide:
    """A `HostSide` that joins a guest's connection to port P with the user's program at port P."""

    def connect(self, port: int, socket_type: SocketType) -> ConnectedUnixSocket:
        """A socket that is connected to ``parent_port``; see `HostSide.connect`.

        The directory is looked at each time, because it may have come, or become somebody else's, since.
        """
        prefix = parent_prefix()
        if not _is_ours(prefix.parent):
            raise FileNotFoundError(f"no program of this user listens at port {port}")
        try:
            return UnixHostSide(prefix).connect(port, socket_type)
        except HostError as error:  # too long a path, so nobody can listen there
            raise FileNotFoundError(str(error)) from error


def _is_ours(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
