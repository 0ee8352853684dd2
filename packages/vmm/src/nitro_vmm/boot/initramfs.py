"""Places the ramdisks in guest RAM as the one initramfs that Linux unpacks.

Linux reads archives one after the other, uncompressed or compressed, and skips zeros between them. It takes
an uncompressed one only where its offset is a multiple of four (init/initramfs.c, ``unpack_to_rootfs``), as
the offsets within a cpio archive are counted from the start of the whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot.ram import Bytes, Ram
from nitro_vmm.defaults import MEMORY_PER_IMAGE_BYTE
from nitro_vmm.errors import ImageError

ALIGNMENT = 4
PAGE_BYTES = 4096
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_END = 4
"""Zeros after an lz4 archive: it has no end mark of its own, so Linux reads on until a block of length zero
(lib/decompress_unlz4.c)."""


class Initramfs(NamedTuple):
    """Where the ramdisks are: guest-physical address and size, bytes; no ramdisks, no size."""

    address: int
    size: int


def place(
    ramdisks: Sequence[Bytes], ram: Ram, ram_ranges: Sequence[RamRange], *, start_min: int, end_max: int
) -> Initramfs:
    """Copy the ramdisks, in order, to the top of the lowest RAM range that takes them all.

    Args:
        ramdisks: Each an archive.
        ram: Where to.
        ram_ranges: What RAM there is.
        start_min: The first address that is free, behind the kernel.
        end_max: The first address that the kernel cannot use for this.

    Raises:
        ImageError: They do not fit; says which ramdisk is the first that does not, and what memory would do.
    """
    spans = list(_spans(ramdisks))
    size = spans[-1].stop if spans else 0
    if size == 0:
        return Initramfs(0, 0)
    room = 0
    for memory in ram_ranges:
        start = -(-max(memory.address, start_min) // PAGE_BYTES) * PAGE_BYTES
        end = min(memory.address + memory.size, end_max)
        room = max(room, end - start)
        address = (end - size) // PAGE_BYTES * PAGE_BYTES
        if address < start:
            continue
        for ramdisk, span in zip(ramdisks, spans, strict=True):
            ram.slice(address + span.start, len(ramdisk))[:] = ramdisk
        return Initramfs(address, size)

    number, start = next((number, span.start) for number, span in enumerate(spans, 1) if span.stop > room)
    # The guest holds its ramdisks both packed and unpacked while it boots.
    least = max(start_min + size, MEMORY_PER_IMAGE_BYTE * size)
    raise ImageError(
        f"ramdisk {number} of {len(ramdisks)} has {len(ramdisks[number - 1])} bytes, but memory has room for "
        f"{max(0, room - start)} of them behind the kernel and the ramdisks before it; "
        f"give --memory-mib {-(-least // MIB)}",
        section=f"ramdisk {number}",
    )


def _spans(ramdisks: Sequence[Bytes]) -> Iterator[range]:
    """Where each ramdisk is within the whole."""
    start = 0
    for ramdisk in ramdisks:
        end = start + len(ramdisk)
        yield range(start, end)
        if ramdisk[:4] == LZ4_LEGACY_MAGIC:
            end += LZ4_END
        start = -(-end // ALIGNMENT) * ALIGNMENT
