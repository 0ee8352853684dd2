"""The layout of a saved machine's file.

A header of fixed size; the description (`Description`, as CBOR); and, from the next page on, the pages of the
guest's memory that are not zero, in the order of their addresses, so that they can be mapped as they lie in
the file. The digest in the header is over all that follows it, so that no damage goes unseen; see
`nitro_vmm.snapshot.digest`.
"""

import struct
from typing import Final, NamedTuple

from nitro_vmm.address_map import ram_ranges
from nitro_vmm.devices.state import is_tuple_of, is_whole, require, require_bytes, require_whole
from nitro_vmm.errors import StateError
from nitro_vmm.machine.machine import MachineState

FORMAT: Final = 2
"""Raised with every change of the layout."""
MAGIC: Final = b"NVMMSAVE"
# magic format digest description_bytes pages_offset file_bytes; the digest is over all behind itself, that is
# from `DIGESTED_FROM` on
HEADER: Final = struct.Struct("<8sI32sQQQ")

PAGE_BYTES: Final = 4096
MEMORY_BYTES_MAX: Final = 1 << 40
DESCRIPTION_BYTES_MAX: Final = 16 << 20
CONSOLE_BYTES_MAX: Final = 1 << 20
NAME_LENGTH_MAX: Final = 200
REGISTER_BYTES: Final = 48


class Parameters(NamedTuple):
    """Which machine was saved. Another one cannot go on from there, so all of this must be the same."""

    kind: str
    """At which point: ``kernel``, before the kernel unpacks its ramdisks; or ``image``, before the first
    instruction of the image's first program."""
    code: bytes
    """Digest of this package's files that decide what a state means."""
    accelerator: str
    """What ran it."""
    processor: str
    """Which processor the guest has found."""
    memory_bytes: int
    """How much memory it has."""
    processors: int
    """How many processors."""
    devices: tuple[str, ...]
    """Its virtio devices in the order of their slots, with what is special about them."""
    kernel: bytes
    """Digest of the kernel."""
    command_line: bytes
    """The kernel's, as the guest sees it."""
    image: bytes
    """Digest of all ramdisks with their lengths; empty for a kernel's machine, which serves all of them."""
    ramdisk_bytes: int
    """How much room for ramdisks a kernel's machine has; 0 for an image's."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        for name in ("kind", "accelerator", "processor"):
            value = getattr(self, name)
            good = isinstance(value, str) and 0 < len(value) <= NAME_LENGTH_MAX
            require(self, name, good, "a short text")
        good = is_tuple_of(lambda one: isinstance(one, str), self.devices, 32)
        require(self, "devices", good, "up to 32 names")
        for name in ("code", "kernel", "image"):
            require_bytes(self, name, 64)
        require_bytes(self, "command_line", 1 << 16)
        require_whole(self, memory_bytes=MEMORY_BYTES_MAX, processors=255, ramdisk_bytes=MEMORY_BYTES_MAX)


class Description(NamedTuple):
    """What a file says besides the memory's pages."""

    parameters: Parameters
    """Which machine it was."""
    measurements: tuple[bytes, ...]
    """PCR0, PCR1, PCR2 and, if the image is signed, PCR8 of its image."""
    cid: int
    """The vsock address that the guest had."""
    vsock_found: bool
    """Whether the guest's driver has read that address."""
    console: bytes
    """What the guest had printed."""
    state: MachineState
    """Processors, interrupt controllers and devices."""
    ramdisk_address: int
    """Where the ramdisks are, in a kernel's machine; 0 in an image's."""
    extents: tuple[tuple[int, int], ...]
    """Which pages of the memory are in the file, in order: the number of the first one, and how many. They
    are counted as they lie one behind the other, without the hole below 4 GiB."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        good = is_tuple_of(_is_register, self.measurements, 4, least=3)
        require(self, "measurements", good, "three or four registers of 48 bytes")
        require_whole(self, cid=(1 << 32) - 1, ramdisk_address=MEMORY_BYTES_MAX)
        require_bytes(self, "console", CONSOLE_BYTES_MAX)
        pages, end = self.parameters.memory_bytes // PAGE_BYTES, 0
        for first, count in self.extents:
            if not (is_whole(first, pages, least=end) and is_whole(count, pages - first, least=1)):
                raise StateError("the saved memory's extents are not in order, or not in memory")
            end = first + count


def _is_register(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == REGISTER_BYTES


class Header(NamedTuple):
    """Where in a file things are, bytes."""

    digest: bytes
    """Of all from `DIGESTED_FROM` on."""
    description_bytes: int
    """How long the description is."""
    pages_offset: int
    """Where the pages begin."""
    file_bytes: int
    """How long the file is."""


def make_header(description_bytes: int, pages: int) -> Header:
    """The header of a file, with a digest of zeros."""
    offset = -(-(HEADER.size + description_bytes) // PAGE_BYTES) * PAGE_BYTES
    return Header(bytes(32), description_bytes, offset, offset + pages * PAGE_BYTES)


def pack_header(header: Header) -> bytes:
    """As it stands in a file."""
    return HEADER.pack(MAGIC, FORMAT, *header)


def parse_header(data: bytes, *, file_bytes: int) -> Header:
    """Read the start of a file.

    Args:
        data: At least `HEADER.size` bytes, if the file has as many.
        file_bytes: How long the file is.

    Raises:
        StateError: It is no saved machine, one of another format, or its length is not what it says.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise StateError("this is no saved machine", hint="vmm snapshot makes one")
    if len(data) < HEADER.size:
        raise StateError("the saved machine is cut short")
    _, number, *rest = HEADER.unpack_from(data)
    if number != FORMAT:
        raise StateError(f"the saved machine has format {number}, this version reads {FORMAT}")
    header = Header(*rest)
    if header.file_bytes != file_bytes:
        raise StateError(f"the saved machine has {file_bytes} bytes, not {header.file_bytes} as it says")
    expected = make_header(header.description_bytes, 0)
    if header.description_bytes > DESCRIPTION_BYTES_MAX or header.pages_offset != expected.pages_offset:
        raise StateError("the saved machine's header cannot be")
    if header.pages_offset > file_bytes or file_bytes % PAGE_BYTES:
        raise StateError("the saved machine's header cannot be")
    return header


def check_pages(header: Header, description: Description) -> None:
    """See that a file has the pages that its description says.

    Raises:
        StateError: It has not.
    """
    pages = sum(count for _, count in description.extents)
    if pages * PAGE_BYTES != header.file_bytes - header.pages_offset:
        raise StateError("the saved machine has not the pages that it says")
    if description.parameters.memory_bytes % PAGE_BYTES:
        raise StateError("the saved machine's memory has no whole number of pages")


def difference(saved: Parameters, wanted: Parameters) -> str:
    """The first thing in which two machines differ, for people; empty if there is none."""
    for name, what in (
        ("kind", "was saved at another point"),
        ("code", "was saved by another version of vmm"),
        ("accelerator", "ran on another accelerator"),
        ("processor", "has another processor"),
        ("memory_bytes", "has another size of memory"),
        ("processors", "has another number of processors"),
        ("devices", "has other devices"),
        ("kernel", "has another kernel"),
        ("command_line", "has another command line"),
        ("image", "is of another image"),
        ("ramdisk_bytes", "has other room for ramdisks"),
    ):
        ours, theirs = getattr(wanted, name), getattr(saved, name)
        if ours != theirs:
            values = "" if isinstance(ours, bytes) else f": {theirs}, and here it is {ours}"
            return f"it {what}{values}"
    return ""


def pieces(description: Description) -> list[tuple[int, int, int]]:
    """Where the pages of a file belong.

    Returns:
        For each piece that is in one stretch of RAM: its guest-physical address, where it is behind
        `Header.pages_offset`, and its length; bytes.
    """
    found, at = [], 0
    ranges = ram_ranges(description.parameters.memory_bytes)
    for first, count in description.extents:
        start, left = first * PAGE_BYTES, count * PAGE_BYTES
        before = 0
        for address, size in ranges:
            here = min(left, before + size - start)
            if left and start >= before and here > 0:
                found.append((address + start - before, at, here))
                at, start, left = at + here, start + here, left - here
            before += size
    return found
