"""Places the ramdisks in guest RAM, one behind the other, as the initramfs that Linux unpacks.

Linux reads archives one after the other, compressed or not, and skips zeros between them. It accepts an
uncompressed one only at an offset that is a multiple of four, because it counts the padding within a cpio
archive from the start of the whole (init/initramfs.c, ``unpack_to_rootfs``).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot.ram import Bytes, Proceed, Ram, copy, nothing
from nitro_vmm.defaults import MEMORY_PER_IMAGE_BYTE
from nitro_vmm.errors import ImageError

ALIGNMENT = 4
PAGE_BYTES = 4096
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_END = 4
"""How many zeros follow an lz4 archive. The format has no end mark, so Linux reads on until it finds a block
of length zero (lib/decompress_unlz4.c)."""


class Initramfs(NamedTuple):
    """Where the ramdisks are: guest-physical address, and size in bytes. Both are 0 if there are none."""

    address: int
    size: int


def place(
    ramdisks: Sequence[Bytes],
    ram: Ram,
    ram_ranges: Sequence[RamRange],
    *,
    start_min: int,
    end_max: int,
    proceed: Proceed = nothing,
) -> Initramfs:
    """Copy the ramdisks, in order, to the top of the lowest RAM range that has room for all of them.

    Args:
        ramdisks: Each is an archive.
        ram: The guest's RAM.
        ram_ranges: Where RAM is.
        start_min: The first free address behind the kernel.
        end_max: The first address at which the kernel does not take ramdisks any more.
        proceed: See `Proceed`.

    Raises:
        ImageError: They do not fit. The message names the first ramdisk that does not, and enough memory.
    """
    found = list(spans(ramdisks))
    size = found[-1].stop if found else 0
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
        for ramdisk, span in zip(ramdisks, found, strict=True):
            copy(ram, address + span.start, ramdisk, proceed)
        return Initramfs(address, size)

    number, start = next((number, span.start) for number, span in enumerate(found, 1) if span.stop > room)
    # The guest holds its ramdisks both packed and unpacked while it boots.
    least = max(start_min + size, MEMORY_PER_IMAGE_BYTE * size)
    raise ImageError(
        f"ramdisk {number} of {len(ramdisks)} has {len(ramdisks[number - 1])} bytes, but memory has room for "
        f"{max(0, room - start)} of them behind the kernel and the ramdisks before it; "
        f"give --memory-mib {-(-least // MIB)}",
        section=f"ramdisk {number}",
    )


def spans(ramdisks: Sequence[Bytes]) -> Iterator[range]:
    """Where each ramdisk is, counted from the start of the first."""
    start = 0
    for ramdisk in ramdisks:
        end = start + len(ramdisk)
        yield range(start, end)
        if ramdisk[:4] == LZ4_LEGACY_MAGIC:
            end += LZ4_END
        start = -(-end // ALIGNMENT) * ALIGNMENT
