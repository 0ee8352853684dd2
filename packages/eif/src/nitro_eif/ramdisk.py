"""Take ramdisks apart as the kernel does: cpio archives and compressed streams, one after the other."""

import bz2
import io
import lzma
import mmap
import zlib
from collections.abc import Iterator
from typing import IO, Any, Final

from nitro_eif.cpio import ALIGNMENT, MAGIC, MAGIC_CHECKSUM, Entry, read_archive
from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.temporary import scratch_file

UNPACKED_BYTES_MAX: Final = 16 << 30
"""What a compressed ramdisk may become: a stream of a few KiB must not fill the disk."""

_PIECE_BYTES: Final = 1 << 20
_ZSTD_PIECE_BYTES: Final = 2048
"""zstandard gives all that a piece becomes at once, up to 40000 times its size."""
_LZMA_MEMORY_BYTES_MAX: Final = 256 << 20
_ZSTD_WINDOW_BYTES_MAX: Final = 128 << 20


COMPRESSIONS: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"(\xb5/\xfd": "zstd",
    b"\x02!L\x18": "lz4",
    b"\x89LZO": "lzo",
}


def compression_of(start: bytes) -> str | None:
    """Name the compression that a stream's first bytes show; none if they show none."""
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def _decompressor(name: str) -> Any:  # noqa: ANN401 - zlib, bz2, lzma and zstandard agree on what is used here
    match name:
        case "gzip":
            return zlib.decompressobj(wbits=31)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz" | "lzma":
            return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES_MAX)
        case "zstd":
            return zstandard().ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).decompressobj()
    raise HostError(f"{name} compression is not supported here: unpack the file with {name} first")


def zstandard() -> Any:  # noqa: ANN401 - a module
    """Give the zstandard module.

    Raises:
        HostError: it is not installed.
    """
    try:
        import zstandard as module  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("zstd compression needs zstandard: pip install 'nitro-eif[zstd]'") from None
    return module


def read_ramdisk(view: memoryview) -> Iterator[Entry]:
    """Read all entries of a ramdisk, or of several that are joined.

    Raises:
        EifFormatError: it is not what the kernel would unpack.
        HostError: it is compressed in a way that is not supported here.
    """
    at = 0
    while at < len(view):
        if not view[at]:
            at = _skip_zeros(view, at)
        elif bytes(view[at : at + 6]) in {MAGIC, MAGIC_CHECKSUM}:
            if at % ALIGNMENT:
                raise EifFormatError(
                    "a cpio archive starts at no multiple of 4: the kernel stops here", offset=at
                )
            at = yield from read_archive(view, at)
        else:
            name = compression_of(bytes(view[at : at + 6]))
            if name is None:
                raise EifFormatError("neither a cpio archive nor a compressed one", offset=at)
            unpacked, at = _unpack(view, at, name)
            yield from _inner(unpacked)


def _inner(view: memoryview) -> Iterator[Entry]:
    at = 0
    while at < len(view):
        if not view[at]:
            at = _skip_zeros(view, at)
        else:
            at = yield from read_archive(view, at)


def _skip_zeros(view: memoryview, at: int) -> int:
    while at < len(view):
        piece = bytes(view[at : at + _PIECE_BYTES])
        rest = piece.lstrip(b"\0")
        at += len(piece) - len(rest)
        if rest:
            break
    return at


def _unpack(view: memoryview, at: int, name: str) -> tuple[memoryview, int]:
    with scratch_file() as file:
        end = at + unpack(view[at:], name, file, offset=at)
        return map_temporary(file), end


def unpack(view: memoryview, name: str, file: IO[bytes], *, offset: int = 0) -> int:
    """Decompress one stream into a file; returns how many bytes of ``view`` it took.

    Raises:
        EifFormatError: the stream is broken, truncated, or becomes absurdly large; ``offset`` is added.
        HostError: the compression is not supported here.
    """
    stream = _decompressor(name)
    size = _ZSTD_PIECE_BYTES if name == "zstd" else _PIECE_BYTES
    total = 0
    for start in range(0, len(view), size):
        piece = bytes(view[start : start + size])
        try:
            for data in _feed(stream, name, piece):
                file.write(data)
                total += len(data)
                _check_size(total, name, offset)
        except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise EifFormatError(f"the {name} stream is broken: {error}", offset=offset + start) from None
        except OSError as error:
            if error.errno is not None:
                raise HostError(f"cannot unpack a {name} stream: {error.strerror}") from error
            raise EifFormatError(f"the {name} stream is broken: {error}", offset=offset + start) from None
        if stream.eof:
            return start + len(piece) - len(stream.unused_data)
    raise EifFormatError(f"the {name} stream ends early: truncated", offset=offset + len(view))


def _check_size(total: int, name: str, offset: int) -> None:
    if total > UNPACKED_BYTES_MAX:
        raise EifFormatError(f"the {name} stream becomes more than {UNPACKED_BYTES_MAX} bytes", offset=offset)


def _feed(stream: Any, name: str, piece: bytes) -> Iterator[bytes]:  # noqa: ANN401 - as `_decompressor`
    """Give what a piece becomes, in pieces: a few bytes may become gigabytes."""
    if name == "gzip":
        yield stream.decompress(piece, _PIECE_BYTES)
        while stream.unconsumed_tail and not stream.eof:
            yield stream.decompress(stream.unconsumed_tail, _PIECE_BYTES)
    elif name != "zstd":
        yield stream.decompress(piece, _PIECE_BYTES)
        while not stream.needs_input and not stream.eof:
            yield stream.decompress(b"", _PIECE_BYTES)
    else:
        try:
            yield stream.decompress(piece)
        except zstandard().ZstdError as error:
            raise ValueError(str(error)) from error


def map_temporary(file: IO[bytes]) -> memoryview:
    """Map a file that was just written; the map outlives the file."""
    file.flush()
    size = file.seek(0, io.SEEK_END)
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")


def compress(source: memoryview, name: str, file: IO[bytes]) -> None:
    """Compress a ramdisk, the same bytes on every machine with the same library.

    Raises:
        UsageError: the compression is none of gzip, xz, zstd.
        HostError: zstd needs an extra that is not installed.
    """
    match name:
        case "gzip":
            stream: Any = zlib.compressobj(9, wbits=31)
        case "xz":
            # The kernel's decoder knows CRC32 and no larger dictionary than it can allocate.
            stream = lzma.LZMACompressor(check=lzma.CHECK_CRC32, preset=6)
        case "zstd":
            stream = zstandard().ZstdCompressor(level=19).compressobj(size=len(source))
        case _:
            raise UsageError(f"{name!r}: ramdisks are compressed with gzip, xz or zstd")
    for start in range(0, len(source), _PIECE_BYTES):
        file.write(stream.compress(bytes(source[start : start + _PIECE_BYTES])))
    file.write(stream.flush())
