"""Ramdisks in a place and of a size that do not depend on them, for kernels that are saved before unpacking.

Until Linux unpacks its ramdisks, nothing but their address and size matters to it. So all ramdisks up to some
size look the same to it if they are filled up to that size. What fills them are archives' entries for
directories that have contents, which Linux skips (init/initramfs.c, ``do_header``):

* the first page, so that the kernel can be stopped after it has read something here, and before it has read
  anything that differs from image to image;
* what is left behind the ramdisks. Zeros would be skipped one by one.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from nitro_vmm.address_map import BOOT_PARAMS, MIB
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.initramfs import spans
from nitro_vmm.boot.ram import Bytes, Proceed, Ram, copy, nothing

PAGE_BYTES: Final = 4096
ALIGNMENT: Final = 4
ARCHIVE_MAGIC: Final = b"070701"
# magic, inode mode uid gid links mtime size, device, special device, name's size, checksum; and a name
ENTRY: Final = b"070701" + b"%08X" * 13 + b"x\0"
ENTRY_BYTES: Final = 112
DIRECTORY_0755: Final = 0o040755
BOOT_CONFIG_MAGIC: Final = b"#BOOTCONFIG\n"
"""At the end of the last ramdisk, if it holds arguments for the kernel (Linux, Documentation/admin-guide/
bootconfig.rst)."""
EARLY: Final = re.compile(rb"kernel/(?:x86/microcode|firmware/acpi)/")
"""Files that Linux looks for in an archive before it unpacks it (Documentation/arch/x86/microcode.rst,
Documentation/admin-guide/acpi/initrd_table_override.rst)."""


def is_read_early(ramdisks: Sequence[Bytes]) -> bool:
    """Whether a kernel takes something from these ramdisks before it unpacks them."""
    if not ramdisks:
        return False
    first, last = memoryview(ramdisks[0]), memoryview(ramdisks[-1])
    config = BOOT_CONFIG_MAGIC in bytes(last[-len(BOOT_CONFIG_MAGIC) - ALIGNMENT :])
    early = bytes(first[: len(ARCHIVE_MAGIC)]) == ARCHIVE_MAGIC and EARLY.search(first) is not None
    return config or early


def room_for(ramdisks: Sequence[Bytes]) -> int:
    """The size that the kernel is told, bytes: one of a few, so that images of one kernel can share it."""
    needed = PAGE_BYTES + _end(ramdisks) + ENTRY_BYTES
    return next(size for size in _sizes() if size >= needed)


def empty(size: int) -> list[Bytes]:
    """What is in that place before there are ramdisks; as ramdisks for the loader."""
    return [_filler(PAGE_BYTES), bytes(size - PAGE_BYTES)]


def fill(ram: Ram, address: int, size: int, ramdisks: Sequence[Bytes], proceed: Proceed = nothing) -> None:
    """Put ramdisks into the place behind its first page.

    Args:
        ram: The guest's RAM.
        address: Where the place is.
        size: How large it is.
        ramdisks: With `room_for` them no more than this.
        proceed: See `Proceed`.
    """
    start = address + PAGE_BYTES
    for ramdisk, span in zip(ramdisks, spans(ramdisks), strict=True):
        copy(ram, start + span.start, ramdisk, proceed)
    end = start + _end(ramdisks)
    ram.slice(end, ENTRY_BYTES)[:] = _filler(address + size - end)[:ENTRY_BYTES]


def find(ram: Ram) -> tuple[int, int]:
    """Where the loader has told the kernel that its ramdisks are: address and size."""
    page = ram.slice(BOOT_PARAMS, header.BOOT_PARAMS_BYTES)
    low, high = header.RAMDISK_IMAGE.read(page), header.EXT_RAMDISK_IMAGE.read(page)
    size_low, size_high = header.RAMDISK_SIZE.read(page), header.EXT_RAMDISK_SIZE.read(page)
    return low | high << 32, size_low | size_high << 32


def _end(ramdisks: Sequence[Bytes]) -> int:
    last = 0
    for span, ramdisk in zip(spans(ramdisks), ramdisks, strict=True):
        last = span.stop
        if bytes(memoryview(ramdisk)[:4]) != ARCHIVE_MAGIC[:4]:
            last += ALIGNMENT  # zeros, which end an lz4 archive
    return -(-last // ALIGNMENT) * ALIGNMENT


def _sizes() -> Iterator[int]:
    size = 2 * MIB
    while True:
        yield size
        yield size * 3 // 2
        size *= 2


def _filler(length: int) -> bytes:
    """A directory's entry with contents, so many bytes in all."""
    name_bytes = 2
    fields = (0, DIRECTORY_0755, 0, 0, 2, 0, length - ENTRY_BYTES, 0, 0, 0, 0, name_bytes, 0)
    return (ENTRY % fields).ljust(min(length, PAGE_BYTES), b"\0")
