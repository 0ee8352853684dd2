"""Take an image apart into files, and put it together again bit for bit.

A directory of parts has a file for each section and ``image.json``, which says the header's fields and the
sections' order.
"""

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from nitro_eif.errors import EifFormatError, HostError, UsageError
from nitro_eif.files import chunks, map_file, replacing
from nitro_eif.image.format import Header, Section, SectionType, type_name
from nitro_eif.image.measure import checksum, gaps
from nitro_eif.image.reader import Eif
from nitro_eif.image.writer import SectionData, write_sections

MANIFEST: Final = "image.json"
_FILES: Final = {
    SectionType.KERNEL: "kernel",
    SectionType.CMDLINE: "cmdline",
    SectionType.METADATA: "metadata.json",
    SectionType.SIGNATURE: "signature.cbor",
}


def extract(eif: Eif, directory: Path, *, written: Callable[[Path, int], None] | None = None) -> None:
    """Write every section to a file in a directory, which is made where it is missing.

    Also writes the signing certificate, where there is one. Of a broken image, what can be read is written.

    Args:
        eif: The image.
        directory: Where to; it must be empty.
        written: Called with each file and its size in bytes.

    Raises:
        UsageError: The directory is not empty.
        HostError: A file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty: choose another directory")
    except OSError as error:
        raise HostError(f"{directory}: cannot write there: {error.strerror}") from error
    names = _names(eif)
    for section in eif.sections:
        _write(directory / names[section.index], section.data, written)
    certificate = _certificate(eif)
    if certificate is not None:
        _write(directory / "signing-certificate.pem", memoryview(certificate), written)
    manifest = _manifest(eif, names)
    _write(directory / MANIFEST, memoryview(json.dumps(manifest, indent=2).encode() + b"\n"), written)


def assemble(directory: Path, output: Path) -> bool:
    """Put an image together from a directory of parts, perhaps with some changed.

    Returns whether the result is the image that was extracted, bit for bit, as far as its checksum tells.

    Raises:
        EifFormatError: The directory's ``image.json`` is malformed.
        HostError: A file cannot be read or written.
    """
    place = directory / MANIFEST
    with ExitStack() as stack:
        try:
            manifest = json.loads(bytes(stack.enter_context(map_file(place))))
            header = Header(
                version=int(manifest["version"]),
                flags=int(manifest["flags"]),
                default_memory_bytes=int(manifest["default_memory_bytes"]),
                default_cpus=int(manifest["default_cpus"]),
                reserved=int(manifest["reserved"]),
                unused=int(manifest["unused"]),
            )
            header.pack()
            files = [(int(entry["type"]), str(entry["file"])) for entry in manifest["sections"]]
            expected = int(manifest["crc32"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as error:
            raise EifFormatError(f"{MANIFEST} is not as extract writes it: {error!r}", path=place) from None
        except struct.error as error:
            raise EifFormatError(f"{MANIFEST} has a number out of range: {error}", path=place) from None
        sections: list[SectionData] = []
        for kind, name in files:
            if "/" in name or name in {"", ".", ".."}:
                raise EifFormatError(f"{MANIFEST} names {name!r}, which is not a file beside it", path=place)
            sections.append((kind, stack.enter_context(map_file(directory / name))))
        with replacing(output) as file:
            write_sections(file, header, sections)
    with Eif.open(output, salvage=True) as eif:
        return eif.header.crc32 == expected


def rebuilds_exactly(eif: Eif) -> bool:
    """Whether `assemble` gives these bytes again: no gaps, no trailing bytes, a right checksum."""
    header = eif.header
    used = header.section_count
    ordinary = (
        not eif.findings
        and eif.end == len(eif.view)
        and not any(gaps(eif))
        and not any(section.flags for section in eif.sections)
        and not any(header.section_offsets[used:])
        and not any(header.section_sizes[used:])
    )
    return ordinary and checksum(eif).specification == header.crc32


def _names(eif: Eif) -> dict[int, str]:
    names: dict[int, str] = {}
    ramdisks = 0
    for section in eif.sections:
        if section.type == SectionType.RAMDISK:
            name = f"ramdisk-{ramdisks}.cpio"
            ramdisks += 1
        else:
            name = _file_name(section)
            if name in names.values():
                name = f"section-{section.index}-{name}"
        names[section.index] = name
    return names


def _file_name(section: Section) -> str:
    for kind, name in _FILES.items():
        if section.type == kind:
            return name
    return f"section-{section.index}-type-{section.type}"


def _manifest(eif: Eif, names: dict[int, str]) -> dict[str, Any]:
    header = eif.header
    return {
        "version": header.version,
        "flags": header.flags,
        "architecture": str(header.architecture),
        "default_memory_bytes": header.default_memory_bytes,
        "default_cpus": header.default_cpus,
        "reserved": header.reserved,
        "unused": header.unused,
        "crc32": header.crc32,
        "sections": [
            {"type": section.type, "name": type_name(section.type), "file": names[section.index]}
            for section in eif.sections
        ],
    }


def _certificate(eif: Eif) -> bytes | None:
    if eif.signature is None:
        return None
    from nitro_eif.image.signature import read_signatures  # noqa: PLC0415 - cryptography is slow to import

    try:
        return read_signatures(eif)[0].certificate_pem
    except EifFormatError:
        return None


def _write(path: Path, data: memoryview, written: Callable[[Path, int], None] | None) -> None:
    with replacing(path) as file:
        for piece in chunks(data):
            file.write(piece)
    if written is not None:
        written(path, len(data))
