"""Compressed streams: what is in a kernel's ramdisks, container layers and packages.

Every decompressor is asked for a bounded piece of output at a time, and all streams of one input share an
`Allowance`, because a few KiB can be made to expand without end.
"""

import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import IO, Final, Protocol

from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.files import CHUNK_BYTES, chunks, map_temporary, scratch_file
from nitro_eif.filesystem.magic import COMPRESSIONS, LZ4

UNPACKED_BYTES_MIN: Final = 4 << 30
"""What the compressed streams of one input may always become together."""
UNPACKED_RATIO: Final = 16
"""Beyond that, streams may become this many times their size: models and archives compress no better."""
STREAMS_MAX: Final = 1 << 20
"""How many streams one input may have: some layers have one for each file."""

_FIRST_FEED_BYTES: Final = 4096
"""The first piece of a stream is small, because what follows the stream's end is copied back."""
_LZMA_MEMORY_BYTES_MAX: Final = 256 << 20
_ZSTD_WINDOW_LOG_MAX: Final = 27
"""128 MiB, as Linux's own decoder allows."""

_LZ4_BLOCK_BYTES_MAX: Final = 8 << 20
"""What a block of a legacy frame becomes at most."""


class Allowance:
    """How much the streams of one input may become together.

    Args:
        packed_bytes: The size of the input, compressed.
    """

    def __init__(self, packed_bytes: int) -> None:
        self.limit_bytes = max(UNPACKED_BYTES_MIN, UNPACKED_RATIO * packed_bytes)
        self._bytes_left = self.limit_bytes
        self._streams_left = STREAMS_MAX

    def take_stream(self, offset: int) -> None:
        """Note that another stream begins.

        Raises:
            EifFormatError: There are too many.
        """
        self._streams_left -= 1
        if self._streams_left < 0:
            raise EifFormatError(f"more than {STREAMS_MAX} compressed streams", offset=offset)

    def take_bytes(self, count: int, name: str, offset: int) -> None:
        """Note that a stream became more.

        Raises:
            EifFormatError: All streams together became too much.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise EifFormatError(
                f"the {name} stream becomes more than the {self.limit_bytes} bytes that are allowed here",
                offset=offset,
            )


class _Stream(Protocol):
    """A decompressor in the shape that the standard library gives its own."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


class _Gzip:
    """Gives zlib's decompressor the shape of the others."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, /, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def compression_of(start: bytes) -> str | None:
    """The compression that a stream's first bytes show; `None` if they show none."""
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def unpack(
    view: memoryview, name: str, file: IO[bytes], *, offset: int = 0, allowance: Allowance | None = None
) -> int:
    """Decompress one stream into a file; returns how many bytes of ``view`` it took.

    Args:
        view: The stream, and perhaps more after it.
        name: The compression, one of `COMPRESSIONS`.
        file: Where to.
        offset: Where the view starts in the input, for messages.
        allowance: What is left for the streams of this input; a fresh one where not given.

    Raises:
        EifFormatError: The stream is broken, truncated, or becomes too large.
        HostError: The compression is not supported here, or the file cannot be written.
    """
    if allowance is None:
        allowance = Allowance(len(view))
    allowance.take_stream(offset)
    try:
        if name == "lz4":
            return _unpack_lz4(view, file, offset, allowance)
        return _unpack_stream(view, name, file, offset=offset, allowance=allowance)
    except OSError as error:
        raise HostError(f"cannot unpack a {name} stream: {error.strerror}") from error


def unpacked(view: memoryview, stack: ExitStack) -> memoryview:
    """An archive without its compression; all streams, if it has several of the same kind.

    Args:
        view: The archive, compressed or not.
        stack: Closes the temporary file; the result is valid until then.

    Raises:
        EifFormatError: A stream is broken.
        HostError: The compression is not supported here.
    """
    name = compression_of(bytes(view[:6]))
    if name is None:
        return view
    file = stack.enter_context(scratch_file())
    allowance = Allowance(len(view))
    at = 0
    while at < len(view) and compression_of(bytes(view[at : at + 6])) == name:
        at += unpack(view[at:], name, file, offset=at, allowance=allowance)
    return map_temporary(file)


def compress(source: memoryview, name: str, file: IO[bytes]) -> None:
    """Compress a ramdisk, to the same bytes on every machine with the same library.

    Raises:
        UsageError: The compression is none of gzip, xz and zstd.
    """
    for piece in _compressed(source, name):
        file.write(piece)


def _compressed(source: memoryview, name: str) -> Iterator[bytes]:
    match name:
        case "gzip":
            stream = zlib.compressobj(9, wbits=31)
            yield from (stream.compress(piece) for piece in chunks(source))
            yield stream.flush()
        case "xz":
            import lzma  # noqa: PLC0415 - few outputs need it

            # Linux's decoder checks CRC32 only, and must be able to allocate the dictionary.
            packer = lzma.LZMACompressor(check=lzma.CHECK_CRC32, preset=6)
            yield from (packer.compress(bytes(piece)) for piece in chunks(source))
            yield packer.flush()
        case "zstd":
            zstd = zstd_module()
            frame = zstd.ZstdCompressor(level=19)
            frame.set_pledged_input_size(len(source))
            yield from (frame.compress(piece) for piece in chunks(source))
            yield frame.flush()
        case _:
            raise UsageError(f"{name!r}: ramdisks are compressed with gzip, xz or zstd")


def _stream(name: str) -> _Stream:
    match name:
        case "gzip":
            return _Gzip()
        case "bzip2":
            import bz2  # noqa: PLC0415 - few inputs need it

            return bz2.BZ2Decompressor()
        case "xz" | "lzma":
            import lzma  # noqa: PLC0415 - few inputs need it

            return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES_MAX)
        case "zstd":
            zstd = zstd_module()
            stream: _Stream = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
            )
            return stream
    raise HostError(f"{name} compression is not supported here", hint=f"unpack the file with {name} first")


def zstd_module() -> ModuleType:
    """The standard library's zstd, or its back-port before Python 3.14."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 - few inputs need it
    else:
        from backports import zstd  # noqa: PLC0415
    return zstd


def _unpack_stream(view: memoryview, name: str, file: IO[bytes], *, offset: int, allowance: Allowance) -> int:
    stream = _stream(name)
    # What the decompressors raise of broken data; bz2 raises the last two.
    broken: tuple[type[Exception], ...] = (zlib.error, EOFError, ValueError, OSError)
    if name == "zstd":
        broken = (*broken, zstd_module().ZstdError)
    elif name in {"xz", "lzma"}:
        from lzma import LZMAError  # noqa: PLC0415 - few inputs need it

        broken = (*broken, LZMAError)
    at, size = 0, _FIRST_FEED_BYTES
    while not stream.eof:
        piece = b""
        if stream.needs_input:
            if at >= len(view):
                raise EifFormatError(f"the {name} stream ends early: truncated", offset=offset + at)
            piece = bytes(view[at : at + size])
            at += len(piece)
            size = min(2 * size, CHUNK_BYTES)
        try:
            data = stream.decompress(piece, CHUNK_BYTES)
        except broken as error:
            raise EifFormatError(f"the {name} stream is broken: {error}", offset=offset + at) from None
        allowance.take_bytes(len(data), name, offset)
        file.write(data)
    return at - len(stream.unused_data)


def _unpack_lz4(view: memoryview, file: IO[bytes], offset: int, allowance: Allowance) -> int:
    """Unpack a legacy frame as Linux does: blocks up to the end of the view, or up to a size of 0."""
    try:
        import lz4.block  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("lz4 compression needs lz4", hint="pip install 'nitro-eif[lz4]'") from None
    at = len(LZ4)
    while at + 4 <= len(view):
        size = int.from_bytes(view[at : at + 4], "little")
        if size == 0:
            break
        at += 4
        if size == int.from_bytes(LZ4, "little"):
            continue
        if size > len(view) - at:
            raise EifFormatError("the lz4 stream ends early: truncated", offset=offset + at)
        try:
            data: bytes = lz4.block.decompress(
                bytes(view[at : at + size]), uncompressed_size=_LZ4_BLOCK_BYTES_MAX
            )
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise EifFormatError(f"the lz4 stream is broken: {error}", offset=offset + at) from None
        allowance.take_bytes(len(data), "lz4", offset)
        file.write(data)
        at += size
    return at
