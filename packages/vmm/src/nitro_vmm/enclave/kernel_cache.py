"""Keeps kernels unpacked, because a launch spends a tenth of its time on unpacking the same one again.

An entry of the cache is the contents and a trailer: their length and checksum. Its key is the digest of what
was unpacked, so another kernel has another entry. The checksum is there for a disk that lost something; who
may write the user's cache may change more than kernels.
"""

import hashlib
import logging
import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import BinaryIO, Final

from nitro_vmm.boot.payload import PIECE_BYTES_MAX, decompress
from nitro_vmm.boot.ram import Bytes
from nitro_vmm.cache import Cache
from nitro_vmm.errors import HostError

logger = logging.getLogger(__name__)

KIND: Final = "vmlinux"
TRAILER: Final = struct.Struct("<QI")
"""How many bytes the contents have, and their CRC-32."""


class KernelCache:
    """Unpacks kernels, or finds them unpacked.

    Args:
        cache: Where they are kept.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def contents(self, payload: memoryview, *, offset: int, bytes_max: int) -> Iterator[Bytes]:
        """The contents of a kernel's payload, in pieces; see `decompress`.

        Raises:
            ImageError: See `decompress`.
            HostError: See `decompress`.
        """
        if self._cache.bytes_max <= 0:
            return decompress(payload, offset=offset, bytes_max=bytes_max)
        name = f"{KIND}-{hashlib.sha256(payload).hexdigest()}"
        kept = self._kept(name)
        if kept is None or len(kept) > bytes_max:
            return self._unpacked(name, payload, offset, bytes_max)
        return (kept[start : start + PIECE_BYTES_MAX] for start in range(0, len(kept), PIECE_BYTES_MAX))

    def _kept(self, name: str) -> memoryview | None:
        """The contents of an entry; `None` if there is none, or it is damaged and so removed."""
        file = self._cache.open(name)
        if file is None:
            return None
        with file:
            try:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError):  # ValueError: an empty file
                view = memoryview(b"")
        contents, trailer = view[: -TRAILER.size], view[-TRAILER.size :]
        if len(trailer) == TRAILER.size and TRAILER.unpack(trailer) == (len(contents), zlib.crc32(contents)):
            return contents
        logger.warning("%s in the cache is damaged, and is made again", name)
        with suppress(HostError):
            self._cache.remove(name)
        return None

    def _unpacked(self, name: str, payload: memoryview, offset: int, bytes_max: int) -> Iterator[Bytes]:
        """The same from the payload, kept on the way where the cache can be written."""
        entry = _NewEntry(self._cache, name)
        try:
            for piece in decompress(payload, offset=offset, bytes_max=bytes_max):
                entry.write(piece)
                yield piece
            entry.finish()
        finally:
            entry.drop()


class _NewEntry:
    """An entry that is being written. Trouble with it is none for the launch.

    Args:
        cache: Where it will be.
        name: Its name.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._stack = ExitStack()
        self._length = self._checksum = 0
        self._file: BinaryIO | None = None
        try:
            self._file = self._stack.enter_context(cache.making(name))
        except HostError as error:
            logger.debug("the kernel is not kept: %s", error)

    def write(self, piece: bytes) -> None:
        """Add to the contents."""
        if self._file is None:
            return
        self._length += len(piece)
        self._checksum = zlib.crc32(piece, self._checksum)
        try:
            self._file.write(piece)
        except OSError as error:
            logger.debug("the kernel is not kept: %s", error)
            self.drop()

    def finish(self) -> None:
        """The contents are whole: let others find them."""
        if self._file is None:
            return
        try:
            self._file.write(TRAILER.pack(self._length, self._checksum))
            self._stack.close()
        except (OSError, HostError) as error:
            logger.debug("the kernel is not kept: %s", error)
        self._file = None

    def drop(self) -> None:
        """Leave nothing, unless it is finished."""
        if self._file is not None:
            self._file = None
            with suppress(OSError, HostError):
                self._stack.__exit__(_DroppedError, _DroppedError(), None)


class _DroppedError(Exception):
    """Tells `Cache.making` that nothing becomes of an entry."""
