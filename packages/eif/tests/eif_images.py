"""Images that are wrong in one way, made from one that is right."""

import struct
import zlib
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from nitro_eif import Architecture, Contents, Eif, Header, SectionType, pack_eif, require_bootable
from nitro_eif.image.format import CRC_OFFSET, HEADER, HEADER_BYTES, SECTION_HEADER
from nitro_eif.image.reader import Buffer
from nitro_eif.testing import example_contents

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = (
    SectionType.KERNEL,
    SectionType.CMDLINE,
    SectionType.RAMDISK,
    SectionType.SIGNATURE,
    SectionType.METADATA,
)


def good() -> bytes:
    return pack_eif(example_contents())


def bootable(data: Buffer) -> Eif:
    """Parse an image, and ask that the hypervisor would boot it."""
    eif = Eif.parse(data)
    require_bootable(eif)
    return eif


def parts() -> list[tuple[int, bytes]]:
    """The sections of the good image."""
    contents = example_contents()
    assert contents.metadata is not None
    return [
        (KERNEL, bytes(contents.kernel)),
        (CMDLINE, contents.cmdline),
        (METADATA, bytes(contents.metadata)),
        *((RAMDISK, bytes(ramdisk)) for ramdisk in contents.ramdisks),
    ]


def image(
    sections: Sequence[tuple[int, bytes]],
    *,
    version: int = 4,
    flags: int = 0,
    count: int | None = None,
    gap: bytes = b"",
    tail: bytes = b"",
    magic: bytes = b".eif",
    section_flags: int = 0,
    edit: Callable[[list[int], list[int]], None] = lambda *_: None,
) -> bytes:
    """Write an image by hand: any order, a gap before the last section, bytes at the end, an edited table."""
    body, offsets, sizes = bytearray(), [], []
    for index, (kind, data) in enumerate(sections):
        if index == len(sections) - 1:
            body += gap
        offsets.append(HEADER_BYTES + len(body))
        sizes.append(len(data))
        body += SECTION_HEADER.pack(kind, section_flags, len(data)) + data
    edit(offsets, sizes)
    offsets, sizes = ((numbers + [0] * 32)[:32] for numbers in (offsets, sizes))
    count = len(sections) if count is None else count
    header = HEADER.pack(magic, version, flags, 1 << 30, 2, 0, count, *offsets, *sizes, 0, 0)
    return fix_crc(header + bytes(body) + tail)


def fix_crc(data: bytes) -> bytes:
    """Put the checksum right, by the specification."""
    crc = zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[:CRC_OFFSET]))
    return data[:CRC_OFFSET] + struct.pack(">I", crc) + data[HEADER_BYTES:]


def legal_contents() -> st.SearchStrategy[Contents]:
    """Any contents that the writer takes."""
    blob = st.binary(max_size=200)
    return st.builds(
        Contents,
        kernel=blob,
        cmdline=st.binary(max_size=60).filter(lambda text: b"\0" not in text and b"\n" not in text),
        ramdisks=st.lists(blob, min_size=1, max_size=28),
        metadata=st.none() | blob,
        signature=st.none() | blob,
        architecture=st.sampled_from(Architecture),
        version=st.sampled_from([2, 3, 4]),
        header=st.builds(
            Header,
            default_memory_bytes=st.integers(0, 2**64 - 1),
            default_cpus=st.integers(0, 2**64 - 1),
            reserved=st.integers(0, 2**16 - 1),
            unused=st.integers(0, 2**32 - 1),
        ),
    )
