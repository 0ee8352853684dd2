"""Files as the rest of the package wants them: mapped, without names, or replaced as a whole."""

import errno
import io
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from nitro_eif.errors import HostError

CHUNK_BYTES: Final = 1 << 20
"""How much of a file is hashed, copied or compared at once: it fits a processor's cache."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, perhaps from several threads, but one at a time."""


@contextmanager
def map_file(path: str | os.PathLike[str]) -> Iterator[memoryview]:
    """Map a regular file for reading; the view and its slices are valid inside the ``with``.

    Raises:
        HostError: The file cannot be opened or mapped.
    """
    try:
        with io.FileIO(path, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise HostError(f"{path}: not a regular file", hint="copy it to one first")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else None
    except OSError as error:
        raise _cannot_read(path, error) from error
    with memoryview(mapping if mapping is not None else b"") as view:
        yield view
    # The mapping itself ends with its last view, because callers may still hold slices.


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would block for ever


def _cannot_read(path: str | os.PathLike[str], error: OSError) -> HostError:
    hint = {
        errno.ENOENT: "check the name, and the directory that it is relative to",
        errno.EACCES: "run this as a user who may read the file",
        errno.EISDIR: "name a file in the directory",
    }.get(error.errno or 0, "")
    return HostError(f"{path}: cannot read it: {error.strerror}", hint=hint)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The contents of a small file.

    Raises:
        HostError: The file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _cannot_read(path, error) from error


@contextmanager
def scratch_file() -> Iterator[IO[bytes]]:
    """A temporary file in $TMPDIR that has no name, so nothing is left behind however the process ends.

    Raises:
        HostError: There is no room for it.
    """
    import tempfile  # noqa: PLC0415 - takes long to import, and reading an image needs none

    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError as error:
        raise HostError(
            f"no temporary file: {error.strerror}", hint="set TMPDIR to a directory with room"
        ) from error
    try:
        yield file
    finally:
        file.close()


def map_temporary(file: IO[bytes], start: int = 0) -> memoryview:
    """Map what was just written to a file, from ``start`` to where it is now; the map outlives the file."""
    file.flush()
    end = file.tell()
    if start == end:
        return memoryview(b"")
    # A map starts at a page.
    before = start % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(file.fileno(), end - start + before, access=mmap.ACCESS_READ, offset=start - before)
    return memoryview(mapping)[before:]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file beside ``path`` and rename it there at the end: no half-written file is ever seen.

    A file that is replaced keeps its permissions. A device or pipe (``/dev/stdout``) is written directly.

    Raises:
        HostError: The file cannot be written.
    """
    import tempfile  # noqa: PLC0415 - as above

    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                yield file
            return
        target = target.resolve()
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fchmod(handle, mode)
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise HostError(f"{path}: cannot write it: {error.strerror or error}") from error


def chunks(view: memoryview) -> Iterator[memoryview]:
    """The view in pieces of at most `CHUNK_BYTES`."""
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
