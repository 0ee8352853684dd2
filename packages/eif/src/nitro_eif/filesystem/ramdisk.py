"""Take ramdisks apart as the kernel does: cpio archives and compressed streams, one after the other.

(Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``, and ``init/initramfs.c``.)
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Final

from nitro_eif.errors import EifFormatError
from nitro_eif.files import CHUNK_BYTES, map_temporary, scratch_file
from nitro_eif.filesystem.compression import Allowance, compression_of, unpack
from nitro_eif.filesystem.cpio import ALIGNMENT, Entry, read_archive
from nitro_eif.filesystem.magic import CPIO, CPIO_CHECKSUM

ENTRIES_MAX: Final = 4 << 20
"""Of all archives in a ramdisk: a few MiB can be compressed to a thousand times as many."""


def read_ramdisk(view: memoryview) -> Iterator[Entry]:
    """All entries of a ramdisk, or of several that are joined.

    Raises:
        EifFormatError: The kernel would not unpack this, or it has too many entries.
        HostError: It is compressed in a way that is not supported here.
    """
    for count, entry in enumerate(_read(view)):
        if count >= ENTRIES_MAX:
            raise EifFormatError(f"more than {ENTRIES_MAX} entries", offset=entry.archive)
        yield entry


def _read(view: memoryview) -> Iterator[Entry]:
    allowance = Allowance(len(view))
    at = 0
    with ExitStack() as stack:
        scratch: IO[bytes] | None = None
        while at < len(view):
            if not view[at]:
                at = _skip_zeros(view, at)
            elif bytes(view[at : at + 6]) in {CPIO, CPIO_CHECKSUM}:
                if at % ALIGNMENT:
                    raise EifFormatError(
                        "a cpio archive starts at no multiple of 4: the kernel stops here", offset=at
                    )
                at = yield from read_archive(view, at)
            else:
                name = compression_of(bytes(view[at : at + 6]))
                if name is None:
                    raise EifFormatError("neither a cpio archive nor a compressed one", offset=at)
                # All streams share one file, because a ramdisk may have very many small ones.
                if scratch is None:
                    scratch = stack.enter_context(scratch_file())
                start = scratch.tell()
                at += unpack(view[at:], name, scratch, offset=at, allowance=allowance)
                yield from _inner(map_temporary(scratch, start))


def _inner(view: memoryview) -> Iterator[Entry]:
    # The kernel does not look for compression inside of a compressed stream.
    at = 0
    while at < len(view):
        at = _skip_zeros(view, at) if not view[at] else (yield from read_archive(view, at))


def _skip_zeros(view: memoryview, at: int) -> int:
    while at < len(view):
        piece = bytes(view[at : at + CHUNK_BYTES])
        rest = piece.lstrip(b"\0")
        at += len(piece) - len(rest)
        if rest:
            break
    return at
