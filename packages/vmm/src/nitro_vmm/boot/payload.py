"""Decompresses a bzImage's payload on the host, where it is faster than in the guest.

The contents come out in pieces, small enough to stay in the processor's caches on their way to guest RAM.
Only one piece is held at a time, and a payload that inflates without end is stopped at its bound. The formats
are those of Linux's ``lib/decompress.c``, told apart by their first bytes. Linux's build appends the length
of the contents, four bytes, after formats that do not record it. Only lz4 needs it here: the other formats
mark their own end.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from nitro_vmm.boot.ram import Bytes
from nitro_vmm.errors import HostError, ImageError

FEED_BYTES = 16 << 10
"""How much a decompressor gets at once. zlib cannot limit its output, so this does: it yields at most 16
MiB."""
PIECE_BYTES_MAX = 1 << 20
"""The largest piece that the other decompressors give."""
DICTIONARY_BYTES_MAX = 512 << 20
"""Memory that lzma and xz may ask for; Linux's build uses dictionaries of up to 128 MiB."""
ZSTD_WINDOW_LOG_MAX = 27
"""128 MiB, which is what Linux's own decoder allows."""
LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_BLOCK_BYTES_MAX = 8 << 20
"""Of a block's contents (lz4 frame format description, "Legacy frame")."""


class Unpack(Protocol):
    """What `decompress` does, or something in its place."""

    def __call__(self, payload: memoryview, *, offset: int, bytes_max: int) -> Iterator[Bytes]:
        """See `decompress`."""
        ...


class _Truncated(Exception):  # noqa: N818 - a signal within this module
    """The payload ends before its contents are complete."""


class _Feed(Protocol):
    """A decompressor of the standard library's shape that takes what it is given."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: memoryview, /) -> bytes: ...


class _BoundedFeed(Protocol):
    """A decompressor that keeps input for later when its output would be more than asked for."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: memoryview, /, max_length: int) -> bytes: ...


def _fed(decompressor: _Feed, payload: memoryview) -> Iterator[bytes]:
    for start in range(0, len(payload), FEED_BYTES):
        yield decompressor.decompress(payload[start : start + FEED_BYTES])
        if decompressor.eof:
            return
    raise _Truncated


def _fed_bounded(decompressor: _BoundedFeed, payload: memoryview) -> Iterator[bytes]:
    start = 0
    while not decompressor.eof:
        if decompressor.needs_input:
            if start >= len(payload):
                raise _Truncated
            data = payload[start : start + FEED_BYTES]
            start += FEED_BYTES
        else:
            data = payload[:0]
        yield decompressor.decompress(data, max_length=PIECE_BYTES_MAX)


def _lz4(payload: memoryview) -> Iterator[bytes]:
    """The legacy frame format: a magic number, then blocks that each say their compressed size.

    Nothing marks its end, so the length that Linux's build appends is what tells a whole payload.
    """
    try:
        from lz4.block import LZ4BlockError, decompress  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("an lz4 kernel needs lz4", hint="pip install 'nitro-vmm[lz4]'", code="M28") from None
    position = total = 0
    # The last four bytes are the appended length, not a block.
    while len(payload) - position > 4:
        size = int.from_bytes(payload[position : position + 4], "little")
        position += 4
        if size == LZ4_LEGACY_MAGIC:
            continue  # where Linux's build has put one frame after another
        if size > len(payload) - position:
            raise _Truncated
        try:
            piece: bytes = decompress(
                payload[position : position + size], uncompressed_size=LZ4_BLOCK_BYTES_MAX
            )
        except LZ4BlockError as error:
            raise ValueError(str(error)) from error
        position += size
        total += len(piece)
        yield piece
    if int.from_bytes(payload[position:], "little") != total & 0xFFFF_FFFF:
        raise _Truncated


# What some decompressors raise of broken data is no `ValueError`. Each imports its library itself, because a
# kernel is compressed in one way, and mostly is in the cache already.


def _bzip2(payload: memoryview) -> Iterator[bytes]:
    import bz2  # noqa: PLC0415

    return _fed_bounded(bz2.BZ2Decompressor(), payload)


def _lzma(payload: memoryview, *, xz: bool) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415

    decompressor = lzma.LZMADecompressor(
        format=lzma.FORMAT_XZ if xz else lzma.FORMAT_ALONE, memlimit=DICTIONARY_BYTES_MAX
    )
    try:
        yield from _fed_bounded(decompressor, payload)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _zstd(payload: memoryview) -> Iterator[bytes]:
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415
    else:
        from backports import zstd  # noqa: PLC0415

    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    try:
        yield from _fed_bounded(zstd.ZstdDecompressor(options=options), payload)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


_FORMATS: dict[bytes, tuple[str, Callable[[memoryview], Iterator[bytes]]]] = {
    b"\x1f\x8b": ("gzip", lambda payload: _fed(zlib.decompressobj(wbits=31), payload)),
    b"BZh": ("bzip2", _bzip2),
    b"\x5d\x00\x00": ("lzma", partial(_lzma, xz=False)),
    b"\xfd7zXZ\x00": ("xz", partial(_lzma, xz=True)),
    b"\x02\x21\x4c\x18": ("lz4", _lz4),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
# What they raise of broken data; bz2 raises the last two. MemoryError is the host's own and not among them.
_BROKEN = (zlib.error, OSError, ValueError)


def decompress(payload: memoryview, *, offset: int, bytes_max: int) -> Iterator[bytes]:
    """The contents of a kernel's ``payload``, in pieces.

    Args:
        payload: The compressed kernel; what follows the compressed data is ignored.
        offset: Where in the kernel it lies, for error messages.
        bytes_max: What the contents may amount to.

    Raises:
        ImageError: The compression is unknown, the data is broken or cut short, or there is too much of it.
        HostError: It is lz4, and that extra is not installed.
    """
    start = bytes(payload[:6])
    name, pieces = next((found for magic, found in _FORMATS.items() if start.startswith(magic)), (None, None))
    if pieces is None:
        what = (
            "is compressed with lzo"
            if start[:4] == b"\x89LZO"
            else f"starts with {start.hex(' ') or 'nothing'}"
        )
        known = ", ".join(name for name, _ in _FORMATS.values())
        raise ImageError(
            f"the payload {what}, which is none of the compressions known here: {known}; "
            "choose one of them in the kernel's configuration",
            section="kernel",
            offset=offset,
        )
    total = 0
    try:
        for piece in pieces(payload):
            total += len(piece)
            if total > bytes_max:
                raise ImageError(
                    f"the {name} payload holds more than the {bytes_max} bytes that there may be",
                    section="kernel",
                    offset=offset,
                )
            yield piece
    except _Truncated:
        message = f"the {name} payload of {len(payload)} bytes is cut short after {total} bytes of contents"
        raise ImageError(message, section="kernel", offset=offset) from None
    except _BROKEN as error:
        message = f"the {name} payload is broken after {total} bytes of contents: {error}"
        raise ImageError(message, section="kernel", offset=offset) from error
