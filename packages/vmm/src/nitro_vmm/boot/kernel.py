"""Reads a kernel in either of its two forms: a bzImage, or the plain ELF file ``vmlinux``.

A bzImage is a compressed ``vmlinux``, the payload, with code around it that would decompress it in the guest.
Only its setup header and its payload are used, because the host decompresses it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from nitro_vmm.address_map import MIB
from nitro_vmm.boot import setup_header as header
from nitro_vmm.boot.payload import Unpack, decompress
from nitro_vmm.boot.ram import Bytes
from nitro_vmm.errors import ImageError

SECTOR_BYTES = 512
PAYLOAD_VERSION = 0x208
INIT_SIZE_VERSION = 0x20A
XLOAD_FLAGS_VERSION = 0x20C
COMMAND_LINE_SIZE_DEFAULT = 2047  # COMMAND_LINE_SIZE of x86 Linux, without the zero
INITRD_ADDRESS_MAX_DEFAULT = 0x7FFF_FFFF
VERSION_DEFAULT = 0x20F


class Kernel(NamedTuple):
    """A kernel whose header has been checked."""

    setup_header: bytes
    """The setup header for ``boot_params``, where it belongs at `setup_header.HEADER_OFFSET`."""
    elf: Iterator[Bytes]
    """``vmlinux`` in pieces. It can be read once, and raises `ImageError` where the image is at fault."""
    command_line_bytes_max: int
    """How long a command line it takes, without the terminating zero."""
    initrd_end_max: int
    """The first address at which it does not take ramdisks any more."""


def parse(image: Bytes, *, memory_bytes: int, unpack: Unpack = decompress) -> Kernel:
    """Check a kernel's header.

    Args:
        image: The kernel.
        memory_bytes: How much RAM the guest has. The kernel must not say that it needs more, and so its
            payload cannot decompress to more.
        unpack: Decompresses the payload.

    Raises:
        ImageError: The kernel is not an ELF file, nor a bzImage that the 64-bit boot protocol can start.
    """
    view = memoryview(image).cast("B")
    if bytes(view[:4]) == b"\x7fELF":
        return _elf(view)
    if len(view) >= header.HEADER_END_MAX and header.MAGIC.read(view) == header.HDRS:
        return _bzimage(view, memory_bytes, unpack)
    if bytes(view[0x38:0x3C]) == b"ARM\x64":
        raise ImageError("this is an arm64 kernel; the machine is x86-64", section="kernel", offset=0x38)
    raise ImageError(
        f"this is neither a bzImage (no HdrS at 0x202) nor an ELF file: it has {len(view)} bytes and starts "
        f"with {bytes(view[:4]).hex(' ') or 'nothing'}",
        section="kernel",
        offset=0,
    )


def _bzimage(image: memoryview, memory_bytes: int, unpack: Unpack) -> Kernel:
    version = header.VERSION.read(image)
    if version < PAYLOAD_VERSION:
        raise ImageError(
            f"the kernel speaks boot protocol {version >> 8}.{version & 0xFF:02}; 2.08 (Linux 2.6.26) is the "
            "least that says where its payload is",
            section="kernel",
            offset=header.VERSION.offset,
        )
    flags = header.XLOAD_FLAGS.read(image) if version >= XLOAD_FLAGS_VERSION else header.XLF_KERNEL_64
    if not flags & header.XLF_KERNEL_64:
        raise ImageError(
            "this is a 32-bit kernel; the machine starts kernels in 64-bit mode",
            section="kernel",
            offset=header.XLOAD_FLAGS.offset,
        )
    header_end = header.JUMP_OFFSET.offset + 1 + header.JUMP_OFFSET.read(image)
    if header_end < header.SETUP_DATA.offset:
        raise ImageError(
            f"the setup header ends at {header_end:#x}, before the fields that say where the payload is",
            section="kernel",
            offset=header.JUMP_OFFSET.offset,
        )
    payload_start = (1 + (header.SETUP_SECTORS.read(image) or 4)) * SECTOR_BYTES + header.PAYLOAD_OFFSET.read(
        image
    )
    payload_length = header.PAYLOAD_LENGTH.read(image)
    if payload_start + payload_length > len(image):
        raise ImageError(
            f"the header says that the payload is {payload_length} bytes at {payload_start:#x}, but the "
            f"kernel has {len(image)} bytes; it is cut short",
            section="kernel",
            offset=header.PAYLOAD_OFFSET.offset,
        )
    init_size = header.INIT_SIZE.read(image) if version >= INIT_SIZE_VERSION else memory_bytes
    if init_size > memory_bytes:
        raise ImageError(
            f"the kernel says that it needs {init_size} bytes of memory to start, and there are "
            f"{memory_bytes}; give at least --memory-mib {-(-init_size // MIB)}",
            section="kernel",
            offset=header.INIT_SIZE.offset,
        )
    payload = image[payload_start : payload_start + payload_length]
    return Kernel(
        setup_header=bytes(image[header.HEADER_OFFSET : min(header_end, header.HEADER_END_MAX)]),
        elf=unpack(payload, offset=payload_start, bytes_max=init_size),
        command_line_bytes_max=header.COMMAND_LINE_SIZE.read(image),
        initrd_end_max=(
            1 << 64
            if version >= XLOAD_FLAGS_VERSION and flags & header.XLF_CAN_BE_LOADED_ABOVE_4G
            else header.INITRD_ADDRESS_MAX.read(image) + 1
        ),
    )


def _elf(image: memoryview) -> Kernel:
    """A ``vmlinux``, and a setup header for it like the one that its bzImage would have."""
    made = bytearray(header.HEADER_END_MAX)
    header.BOOT_FLAG.write(made, header.BOOT_FLAG_VALUE)
    header.MAGIC.write(made, header.HDRS)
    header.VERSION.write(made, VERSION_DEFAULT)
    header.LOAD_FLAGS.write(made, header.LOADED_HIGH)
    header.INITRD_ADDRESS_MAX.write(made, INITRD_ADDRESS_MAX_DEFAULT)
    header.XLOAD_FLAGS.write(made, header.XLF_KERNEL_64 | header.XLF_CAN_BE_LOADED_ABOVE_4G)
    header.COMMAND_LINE_SIZE.write(made, COMMAND_LINE_SIZE_DEFAULT)
    return Kernel(
        setup_header=bytes(made[header.HEADER_OFFSET :]),
        elf=iter((image,)),
        command_line_bytes_max=COMMAND_LINE_SIZE_DEFAULT,
        initrd_end_max=1 << 64,
    )
