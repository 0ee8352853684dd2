"""Write an image file: sections in a given order, header, table and checksum.

AWS's writer orders kernel, command line, metadata, ramdisks, signature; `write_eif` does the same, and
`write_sections` writes any order. Contents are views, copied in pieces: nothing is held in memory.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from nitro_eif.architecture import Architecture
from nitro_eif.errors import UsageError
from nitro_eif.files import Progress, chunks, replacing
from nitro_eif.image.format import (
    CRC_OFFSET,
    FLAG_AARCH64,
    HEADER_BYTES,
    LATEST_VERSION,
    SECTION_HEADER,
    SECTION_HEADER_BYTES,
    SECTIONS_MAX,
    Header,
    SectionType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into an image, before it is a file."""

    kernel: bytes | memoryview
    cmdline: bytes
    ramdisks: Sequence[bytes | memoryview]
    metadata: bytes | memoryview | None = None
    """Compact JSON; see `nitro_eif.Metadata`. Version 4 needs it."""
    signature: bytes | memoryview | None = None
    """CBOR; see `nitro_eif.sign`."""
    architecture: Architecture = Architecture.X86_64
    version: int = LATEST_VERSION
    header: Header = field(default_factory=Header)
    """Gives default memory and processors, and reserved fields; the rest is computed."""


SectionData = tuple[int, bytes | memoryview]
"""A section's type and data."""


def sections_of(contents: Contents) -> list[SectionData]:
    """Order sections as AWS's writer does.

    Raises:
        UsageError: The contents cannot be an image.
    """
    if b"\0" in contents.cmdline or b"\n" in contents.cmdline:
        raise UsageError("the command line has a NUL or newline in it: it must be one line of text")
    if not contents.ramdisks:
        raise UsageError("an image has at least one ramdisk: without it the kernel has no /init to run")
    sections: list[SectionData] = [
        (SectionType.KERNEL, contents.kernel),
        (SectionType.CMDLINE, contents.cmdline),
    ]
    if contents.metadata is not None:
        sections.append((SectionType.METADATA, contents.metadata))
    sections += [(SectionType.RAMDISK, ramdisk) for ramdisk in contents.ramdisks]
    if contents.signature is not None:
        sections.append((SectionType.SIGNATURE, contents.signature))
    return sections


def write_eif(contents: Contents, path: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
    """Write an image file, replacing what is there only when all is written.

    Args:
        contents: What goes into it.
        path: The file.
        progress: Called with bytes written and bytes in all.

    Raises:
        UsageError: The contents cannot be an image.
        HostError: The file cannot be written.
    """
    header = replace(
        contents.header,
        version=contents.version,
        flags=FLAG_AARCH64 if contents.architecture is Architecture.AARCH64 else 0,
    )
    sections = sections_of(contents)
    with replacing(path) as file:
        write_sections(file, header, sections, progress=progress)


def pack_eif(contents: Contents) -> bytes:
    """A small image as bytes; `write_eif` for large ones.

    Raises:
        UsageError: The contents cannot be an image.
    """
    flags = FLAG_AARCH64 if contents.architecture is Architecture.AARCH64 else 0
    header = replace(contents.header, version=contents.version, flags=flags)
    sections = sections_of(contents)
    return b"".join(_pieces(_complete(header, sections), sections))


def write_sections(
    file: IO[bytes], header: Header, sections: Sequence[SectionData], *, progress: Progress | None = None
) -> None:
    """Write header and sections in the given order; count, table and checksum are computed.

    Raises:
        UsageError: There are more sections than the table has places.
    """
    total = HEADER_BYTES + sum(SECTION_HEADER_BYTES + len(data) for _, data in sections)
    done = 0
    for piece in _pieces(_complete(header, sections), sections):
        file.write(piece)
        done += len(piece)
        if progress is not None:
            progress(done, total)


def _complete(header: Header, sections: Sequence[SectionData]) -> Header:
    if len(sections) > SECTIONS_MAX:
        raise UsageError(f"{len(sections)} sections; an image has at most {SECTIONS_MAX}: join ramdisks")
    offsets, offset = [], HEADER_BYTES
    for _, data in sections:
        offsets.append(offset)
        offset += SECTION_HEADER_BYTES + len(data)
    unused = (0,) * (SECTIONS_MAX - len(sections))
    header = replace(
        header,
        section_count=len(sections),
        section_offsets=(*offsets, *unused),
        section_sizes=(*(len(data) for _, data in sections), *unused),
        crc32=0,
    )
    crc = zlib.crc32(header.pack()[:CRC_OFFSET])
    for piece in _section_pieces(sections):
        crc = zlib.crc32(piece, crc)
    return replace(header, crc32=crc)


def _pieces(header: Header, sections: Sequence[SectionData]) -> Iterator[bytes | memoryview]:
    yield header.pack()
    yield from _section_pieces(sections)


def _section_pieces(sections: Iterable[SectionData]) -> Iterator[bytes | memoryview]:
    for section_type, data in sections:
        yield SECTION_HEADER.pack(section_type, 0, len(data))
        yield from chunks(memoryview(data))
