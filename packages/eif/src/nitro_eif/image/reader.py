"""Read an image where it lies: the file is mapped, sections are views, nothing is copied.

The header's section table is followed, as the hypervisor does (README, "section_offsets"); AWS's own reader
ignores it. `Eif.parse` refuses what cannot be read without guessing; `Eif.salvage` takes anything, keeps what
can be read and says what is wrong. What the hypervisor would refuse is the business of `nitro_eif.validate`.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from nitro_eif.architecture import Architecture
from nitro_eif.errors import EifFormatError
from nitro_eif.files import map_file
from nitro_eif.image.findings import Finding
from nitro_eif.image.format import (
    HEADER_BYTES,
    MAGIC,
    MEASURED,
    SECTION_COUNT_OFFSET,
    SECTION_HEADER,
    SECTION_HEADER_BYTES,
    SECTIONS_MAX,
    SECTIONS_MIN,
    SIZES_OFFSET,
    TABLE_OFFSET,
    Header,
    Section,
    SectionType,
    type_name,
)

Buffer = bytes | bytearray | memoryview | mmap.mmap


class Eif:
    """An image: its header and its sections, in the order of the section table.

    Made by `parse`, `open` or `salvage`. Sections' data are views of the buffer, and valid as long as it is.
    """

    def __init__(
        self,
        view: memoryview,
        header: Header,
        sections: tuple[Section, ...],
        findings: tuple[Finding, ...],
        path: Path | None = None,
    ) -> None:
        self.view = view
        """The whole file."""
        self.header = header
        self.sections = sections
        self.findings = findings
        """What is wrong with the header and the places of sections; `nitro_eif.validate` looks further."""
        self.path = path
        """Where the image came from, for messages."""

    @classmethod
    def parse(cls, data: Buffer, *, path: Path | None = None, without: SectionType | None = None) -> Self:
        """Read an image from memory; `nitro_eif.require_bootable` asks for more.

        Args:
            data: The whole file.
            path: Where the bytes came from, for messages.
            without: Sections of this type are left out, and may be broken.

        Raises:
            EifFormatError: The bytes are not an image, or can be read in more than one way.
        """
        eif = cls.salvage(data, path=path, without=without)
        for finding in eif.findings:
            if finding.code in _UNREADABLE:
                raise finding.as_error(path)
        return eif

    @classmethod
    def salvage(cls, data: Buffer, *, path: Path | None = None, without: SectionType | None = None) -> Self:
        """Read what can be read of a broken image; `findings` says what cannot.

        Args:
            data: The whole file.
            path: Where the bytes came from, for messages.
            without: Sections of this type are left out.
        """
        view = memoryview(data).cast("B").toreadonly()
        header, sections, findings = _scan(view, without)
        return cls(view, header, sections, findings, path)

    @classmethod
    @contextmanager
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        salvage: bool = False,
        without: SectionType | None = None,
    ) -> Iterator[Self]:
        """Map a file and read the image in it, as `parse` does, or as `salvage` does where asked.

        Args:
            path: The file.
            salvage: Read what can be read of a broken image.
            without: As for `parse`.

        Raises:
            EifFormatError: As `parse`.
            HostError: The file cannot be opened or mapped.
        """
        with map_file(path) as view:
            place = Path(path)
            read = cls.salvage if salvage else cls.parse
            yield read(view, path=place, without=without)

    @property
    def version(self) -> int:
        """The version of the format, 2 to 4."""
        return self.header.version

    @property
    def architecture(self) -> Architecture:
        """The processor the image is for."""
        return self.header.architecture

    @property
    def kernel(self) -> memoryview:
        """The kernel image: a bzImage for x86_64, an Image for aarch64."""
        return self._single(SectionType.KERNEL)

    @property
    def cmdline(self) -> bytes:
        """The kernel's command line as it is measured."""
        return bytes(self._single(SectionType.CMDLINE))

    @property
    def ramdisks(self) -> list[memoryview]:
        """The ramdisks in file order; together they are the initramfs."""
        return [section.data for section in self.of_type(SectionType.RAMDISK)]

    @property
    def metadata(self) -> memoryview | None:
        """The metadata section's JSON text, if there is one."""
        return self._optional(SectionType.METADATA)

    @property
    def signature(self) -> memoryview | None:
        """The signature section's CBOR, if there is one."""
        return self._optional(SectionType.SIGNATURE)

    @property
    def measured(self) -> list[Section]:
        """Kernel, command line and ramdisks in file order (README, "PCR0")."""
        return [section for section in self.sections if section.type in MEASURED]

    @property
    def end(self) -> int:
        """Where the last section ends."""
        return max((section.end for section in self.sections), default=min(HEADER_BYTES, len(self.view)))

    def of_type(self, section_type: SectionType) -> list[Section]:
        """The sections of one type, in table order."""
        return [section for section in self.sections if section.type == section_type]

    def _single(self, section_type: SectionType) -> memoryview:
        found = self.of_type(section_type)
        if len(found) != 1:
            name = type_name(section_type)
            many = f"{len(found)} {name} sections" if found else f"no {name} section"
            raise EifFormatError(
                f"the image has {many}, it must have exactly one; rebuild it",
                offset=found[1].offset if found else SECTION_COUNT_OFFSET,
                section=found[1].index if found else None,
                path=self.path,
                code=f"{name}-{'repeated' if found else 'missing'}",
            )
        return found[0].data

    def _optional(self, section_type: SectionType) -> memoryview | None:
        found = self.of_type(section_type)
        return found[-1].data if found else None


_UNREADABLE = frozenset(
    {
        "header-truncated",
        "magic",
        "sections-too-many",
        "section-outside",
        "section-truncated",
        "section-size-mismatch",
        "section-overlap",
        "section-order",
    }
)
"""Findings after which sections could be read in more than one way, or not at all."""


def _scan(
    view: memoryview, without: SectionType | None
) -> tuple[Header, tuple[Section, ...], tuple[Finding, ...]]:
    if len(view) < HEADER_BYTES:
        message = f"an EIF header has {HEADER_BYTES} bytes, the file has {len(view)}: truncated, or no EIF"
        findings = [Finding("header-truncated", message, len(view))]
        if bytes(view[:4]) != MAGIC[: len(view)]:
            findings.append(_magic(view))
        return Header(), (), tuple(findings)
    header = Header.unpack(view)
    findings = [] if header.magic == MAGIC else [_magic(view)]
    count = header.section_count
    if count > SECTIONS_MAX:
        message = f"the header counts {count} sections, its table has {SECTIONS_MAX} places"
        findings.append(Finding("sections-too-many", message, SECTION_COUNT_OFFSET))
    elif count < SECTIONS_MIN:
        message = f"the header counts {count} sections, an image has at least {SECTIONS_MIN}"
        findings.append(Finding("sections-too-few", message, SECTION_COUNT_OFFSET))
    sections: list[Section] = []
    end = HEADER_BYTES
    for index in range(min(count, SECTIONS_MAX)):
        if without is not None and _type_at(view, header.section_offsets[index]) == without:
            continue
        section = _section(view, header, index, findings)
        if section is None:
            continue
        if section.offset < end:
            findings.append(_collision(section, sections, end))
        end = max(end, section.end)
        sections.append(section)
    return header, tuple(sections), tuple(findings)


def _type_at(view: memoryview, offset: int) -> int | None:
    if offset + SECTION_HEADER_BYTES > len(view):
        return None
    section_type: int = SECTION_HEADER.unpack_from(view, offset)[0]
    return section_type


def _magic(view: memoryview) -> Finding:
    return Finding("magic", f"the file starts with {bytes(view[:4])!r}, not {MAGIC!r}: no EIF", 0)


def _section(view: memoryview, header: Header, index: int, findings: list[Finding]) -> Section | None:
    offset, listed = header.section_offsets[index], header.section_sizes[index]
    if offset < HEADER_BYTES or offset + SECTION_HEADER_BYTES > len(view):
        message = (
            f"the table puts the section's header at {offset:#x}, outside {HEADER_BYTES:#x}..{len(view):#x}:"
            " truncated file or broken table"
        )
        findings.append(Finding("section-outside", message, TABLE_OFFSET + 8 * index, index))
        return None
    section_type, flags, size = SECTION_HEADER.unpack_from(view, offset)
    if size != listed:
        message = f"the {type_name(section_type)} section's header says {size} bytes, the table {listed}"
        findings.append(Finding("section-size-mismatch", message, SIZES_OFFSET + 8 * index, index))
    start = offset + SECTION_HEADER_BYTES
    if start + listed > len(view):
        left = f"{len(view) - start} are left in the file"
        message = f"the {type_name(section_type)} section has {listed} bytes, {left}"
        findings.append(Finding("section-truncated", message, offset, index))
    return Section(index, section_type, flags, offset, view[start : min(start + listed, len(view))])


def _collision(section: Section, before: list[Section], end: int) -> Finding:
    for other in before:
        if section.offset < other.end and other.offset < section.end:
            message = f"the {section.type_name} section overlaps section {other.index} ({other.type_name})"
            return Finding("section-overlap", message, section.offset, section.index)
    message = (
        f"the {section.type_name} section starts before {end:#x}, before another ends: table out of order"
    )
    return Finding("section-order", message, TABLE_OFFSET + 8 * section.index, section.index)
