"""Temporary files without names: nothing is left behind, however the process ends."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from nitro_eif.errors import HostError


@contextmanager
def scratch_file() -> Iterator[IO[bytes]]:
    """Open a temporary file that has no name, in $TMPDIR.

    Raises:
        HostError: there is no room for it.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError as error:
        raise HostError(
            f"no temporary file: {error.strerror}; set TMPDIR to a directory with room"
        ) from error
    try:
        yield file
    finally:
        file.close()
