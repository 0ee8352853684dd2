"""Loads the segments of a 64-bit x86 ELF kernel (System V ABI, "Program loading").

The file comes in pieces, as a decompressor yields them, and each is copied to guest RAM before the next is
made. So a kernel is never in the host's memory as a whole.
"""

import struct
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import NamedTuple

from nitro_vmm.address_map import HIGH_RAM_START, HOLE_START, MIB, RamRange
from nitro_vmm.boot.ram import Bytes, Ram
from nitro_vmm.errors import ImageError

# e_ident e_type e_machine e_version e_entry e_phoff e_shoff e_flags e_ehsize e_phentsize e_phnum, and the
# section headers' e_shentsize e_shnum e_shstrndx
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
# p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")

IDENT_64_LITTLE = b"\x7fELF\x02\x01"
EM_X86_64 = 62
PT_LOAD = 1
HEADERS_BYTES_MAX = 1 << 16
"""How far into the file the program headers may reach. They come first in every kernel, and are collected
until they are complete, so this bounds the memory that they take."""
SEGMENTS_MAX = 64
"""Linux has five. Every piece of the file is compared with every segment, so this bounds the time that
takes."""


class Segment(NamedTuple):
    """A PT_LOAD program header."""

    number: int
    """Which of the program headers it is, from 0."""
    offset: int
    """Where its bytes are in the file."""
    virtual_address: int
    address: int
    """Where it is loaded to: a physical address."""
    file_bytes: int
    """How many bytes it has in the file."""
    memory_bytes: int
    """How many it has in memory; those that the file lacks are zeros."""

    @property
    def end(self) -> int:
        """The first physical address behind it."""
        return self.address + self.memory_bytes


class LoadedElf(NamedTuple):
    """Where a kernel has been loaded to."""

    entry: int
    """Physical address of its first instruction."""
    end: int
    """The first physical address behind it; its zero-filled parts belong to it."""


def load(pieces: Iterator[Bytes], ram: Ram, low_ram: RamRange) -> LoadedElf:
    """Copy an ELF kernel's segments to their physical addresses.

    Memory of a segment beyond its bytes in the file stays as it is, because RAM is full of zeros already.

    Args:
        pieces: The file from its start on.
        ram: The guest's RAM.
        low_ram: The RAM below 4 GiB; the kernel must not touch its first MiB.

    Raises:
        ImageError: The file is not an x86-64 kernel or is cut short, or its segments overlap or do not fit
            the RAM.
    """
    head = _headers(pieces)
    segments, entry = _parse(head, low_ram)
    position = 0
    for piece in chain((head,), pieces):
        view = memoryview(piece)
        for segment in segments:
            start = max(segment.offset, position)
            end = min(segment.offset + segment.file_bytes, position + len(view))
            if start < end:  # the piece and the segment have bytes in common
                ram.slice(segment.address + start - segment.offset, end - start)[:] = view[
                    start - position : end - position
                ]
        position += len(view)
    for segment in segments:
        if segment.file_bytes and segment.offset + segment.file_bytes > position:
            raise ImageError(
                f"segment {segment.number} is {segment.file_bytes} bytes at {segment.offset:#x} of the ELF "
                f"file, which ends after {position} bytes; it is cut short",
                section="kernel",
            )
    return LoadedElf(entry, max(segment.end for segment in segments))


def _headers(pieces: Iterator[Bytes]) -> Bytes:
    """As many of the first pieces, joined, as the ELF header and all program headers take."""
    head: Bytes = b""
    needed = HEADER.size
    while len(head) < needed:
        piece = next(pieces, None)
        if piece is None:
            raise ImageError(
                f"the ELF file ends after {len(head)} bytes; its headers need {needed}", section="kernel"
            )
        head = b"".join((head, piece)) if head else piece
        # Once the ELF header is there, it says where the program headers end.
        if needed == HEADER.size <= len(head):
            needed = max(needed, _program_headers_end(head))
    return head


def _program_headers_end(head: Bytes) -> int:
    ident, _, machine, _, _, offset, _, _, _, entry_bytes, count, *_ = HEADER.unpack_from(head)
    if not ident.startswith(IDENT_64_LITTLE):
        raise ImageError(
            f"what is to be loaded is no 64-bit little-endian ELF file: it starts with {ident[:6].hex(' ')}",
            section="kernel",
        )
    if machine != EM_X86_64:
        raise ImageError(f"the ELF file is for machine {machine}; this one is x86-64 (62)", section="kernel")
    if entry_bytes != PROGRAM_HEADER.size:
        raise ImageError(
            f"the ELF file's program headers are {entry_bytes} bytes each, not 56", section="kernel"
        )
    end: int = offset + count * entry_bytes
    if end > HEADERS_BYTES_MAX:
        raise ImageError(
            f"the ELF file's {count} program headers end at {end:#x}; a kernel's are in its first "
            f"{HEADERS_BYTES_MAX:#x} bytes",
            section="kernel",
        )
    return end


def _parse(head: Bytes, low_ram: RamRange) -> tuple[list[Segment], int]:
    _, _, _, _, entry, table, _, _, _, _, count, *_ = HEADER.unpack_from(head)
    segments: list[Segment] = []
    for number in range(count):
        type_, _, offset, virtual, address, file_bytes, memory_bytes, _ = PROGRAM_HEADER.unpack_from(
            head, table + number * PROGRAM_HEADER.size
        )
        if type_ == PT_LOAD and memory_bytes:
            segments.append(Segment(number, offset, virtual, address, file_bytes, memory_bytes))
    if not 1 <= len(segments) <= SEGMENTS_MAX:
        raise ImageError(
            f"the ELF file has {len(segments)} segments to load; a kernel has 1 to {SEGMENTS_MAX}",
            section="kernel",
        )
    for segment in segments:
        _check(segment, low_ram)
    for one, next_one in pairwise(sorted(segments, key=lambda segment: segment.address)):
        if next_one.address < one.end:
            raise ImageError(
                f"segments {one.number} and {next_one.number} overlap at {next_one.address:#x}",
                section="kernel",
            )
    return segments, _physical_entry(entry, segments)


def _check(segment: Segment, low_ram: RamRange) -> None:
    where = f"segment {segment.number} at {segment.address:#x}"
    if segment.file_bytes > segment.memory_bytes:
        raise ImageError(
            f"{where} has {segment.file_bytes} bytes in the file but {segment.memory_bytes} in memory",
            section="kernel",
        )
    if segment.address < HIGH_RAM_START:
        raise ImageError(f"{where} lies below 1 MiB, which is the boot loader's", section="kernel")
    ram_end = low_ram.address + low_ram.size
    if segment.end > ram_end:
        remedy = (
            f"the kernel alone needs --memory-mib {-(-segment.end // MIB)}"
            if segment.end <= HOLE_START
            else f"no memory of this machine reaches beyond {HOLE_START:#x} there"
        )
        raise ImageError(
            f"{where} ends at {segment.end:#x}, and the memory below 4 GiB at {ram_end:#x}; {remedy}",
            section="kernel",
        )


def _physical_entry(entry: int, segments: list[Segment]) -> int:
    """The entry point's physical address, which Linux has in the file; others have the virtual one there."""
    for segment in segments:
        if segment.address <= entry < segment.end:
            return entry
    for segment in segments:
        if segment.virtual_address <= entry < segment.virtual_address + segment.memory_bytes:
            return segment.address + entry - segment.virtual_address
    raise ImageError(f"the entry point {entry:#x} is in none of the segments", section="kernel")
