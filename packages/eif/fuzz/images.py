"""Fuzz what reads files from anyone: ``python images.py [-runs=1000000] [CORPUS]``; needs atheris.

The first byte chooses the reader; the rest is its file. Each takes any bytes, or raises the package's errors.
"""

import resource
import sys
import tempfile
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from nitro_eif import (
        Architecture,
        Eif,
        EifError,
        EifFormatError,
        Tree,
        read_package,
        read_ramdisk,
        require_bootable,
        tree_of,
        validate,
    )
    from nitro_eif.build.kernel_package import module_dependencies
    from nitro_eif.filesystem.compression import unpacked
    from nitro_eif.filesystem.tar import apply_tar
    from nitro_eif.image.cose import parse_sign1
    from nitro_eif.image.format import CRC_OFFSET, HEADER, HEADER_BYTES, SECTION_HEADER
    from nitro_eif.image.metadata import Metadata


CPU_S_MAX = 5.0
"""What one input may take; libFuzzer's are 4 KiB, unless a corpus has longer ones."""
MEMORY_BYTES_MAX = 512 << 20
"""By how much one input may raise the peak of memory."""


def image(data: bytes) -> None:
    """Any bytes are an image or a format error."""
    validate(Eif.salvage(data))
    try:
        require_bootable(Eif.parse(data))
    except EifFormatError as error:
        if not 0 <= error.offset <= max(len(data), HEADER_BYTES):
            raise AssertionError(f"an error outside of the file: {error}") from error


def sections(data: bytes) -> None:
    """Any sections in a sound file are read; two bytes of the input say type and size of each."""
    body, offsets, sizes, at = b"", [], [], 0
    while at + 2 <= len(data) and len(offsets) < 32:
        kind, size = data[at] % 8, data[at + 1]
        content = data[at + 2 : at + 2 + size]
        offsets.append(HEADER_BYTES + len(body))
        sizes.append(len(content))
        body += SECTION_HEADER.pack(kind, 0, len(content)) + content
        at += 2 + size
    unused = [0] * (32 - len(offsets))
    header = HEADER.pack(b".eif", 4, 0, 0, 0, 0, len(offsets), *offsets, *unused, *sizes, *unused, 0, 0)
    image(header[:CRC_OFFSET] + bytes(4) + body)


def ramdisk(data: bytes) -> None:
    """Any bytes are a ramdisk or an error."""
    tree_of(read_ramdisk(memoryview(data)))


def layer(data: bytes) -> None:
    """Any bytes are a tar archive or an error."""
    apply_tar(Tree(), memoryview(data))


def packed(data: bytes) -> None:
    """Any bytes are a compressed archive, or an error."""
    with ExitStack() as stack:
        apply_tar(Tree(), unpacked(memoryview(data), stack))


def package(data: bytes) -> None:
    """Any bytes, one after the other, are the members of a Debian package, or an error."""
    with tempfile.NamedTemporaryFile() as file, ExitStack() as stack:
        file.write(data)
        file.flush()
        read_package(Path(file.name), Architecture.X86_64, stack)


READERS = [
    packed,
    package,
    image,
    sections,
    ramdisk,
    layer,
    module_dependencies,
    Metadata.unpack,
    parse_sign1,
]


def one_input(data: bytes) -> None:
    """Give an input to the reader that its first byte chooses, and watch its time and memory."""
    if not data:
        return
    before = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(EifError):
        READERS[data[0] % len(READERS)](data[1:])
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown_bytes = (after.ru_maxrss - before.ru_maxrss) << 10
    if cpu_s > CPU_S_MAX or grown_bytes > MEMORY_BYTES_MAX:
        raise AssertionError(f"{len(data)} bytes cost {cpu_s:.1f} s and {grown_bytes >> 20} MiB")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
