"""Check an image against every rule of the format: see `nitro_eif.RULES`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nitro_eif.architecture import Architecture
from nitro_eif.errors import EifFormatError, SigningError, SigningProblem
from nitro_eif.files import Progress
from nitro_eif.filesystem.magic import COMPRESSIONS, CPIO, CPIO_CHECKSUM
from nitro_eif.image.findings import RULES, Fate, Finding
from nitro_eif.image.format import (
    CRC_OFFSET,
    HEADER_BYTES,
    LATEST_VERSION,
    MEASURED,
    SECTION_COUNT_OFFSET,
    SECTION_HEADER,
    SECTION_HEADER_BYTES,
    SECTIONS_MAX,
    SIGNATURE_BYTES_MAX,
    TABLE_OFFSET,
    VERSIONS,
    Section,
    SectionType,
    type_name,
)
from nitro_eif.image.kernel import kernel_problem
from nitro_eif.image.measure import Checksums, Measured, gaps, measure_and_checksum
from nitro_eif.image.metadata import Metadata, load_json
from nitro_eif.image.reader import Eif

if TYPE_CHECKING:
    from datetime import datetime

    from nitro_eif.image.signature import SignatureSection

CMDLINE_BYTES_MAX: Final = 2047
"""COMMAND_LINE_SIZE of x86 and arm64 Linux, less the final NUL."""

_SIGNATURE_START: Final = b"\xa2\x73signing_certificate"
"""After the array's head comes a map of two, whose first key is a text of 19 bytes: QEMU wants it so."""

_RAMDISK_MAGICS: Final = (CPIO, CPIO_CHECKSUM, *COMPRESSIONS)


def validate(
    eif: Eif,
    *,
    measured: Measured | None = None,
    now: "datetime | None" = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Find what is wrong with an image, by where it stands in the file.

    Args:
        eif: The image, from `Eif.salvage` if it may be broken.
        measured: What `measure_and_checksum` gave, where it has been called already.
        now: When the signing certificate must be valid; the present time where not given.
        progress: Called with bytes done and bytes in all.
    """
    findings = list(eif.findings)
    if len(eif.view) < HEADER_BYTES:
        return findings
    findings += _header(eif)
    findings += _between(eif)
    findings += _inventory(eif)
    for section in eif.sections:
        findings += _content(eif, section)
    if measured is None:
        measured = measure_and_checksum(eif, progress=progress)
    if measured.signature_section is not None:
        findings += _signature(eif, measured.signature_section, measured.measurements.pcr0, now)
    findings += _checksum(eif, measured.checksums)
    return sorted(findings, key=lambda finding: (finding.offset, finding.code))


def refusals(
    eif: Eif,
    *,
    measured: Measured | None = None,
    now: "datetime | None" = None,
) -> list[Finding]:
    """The findings for which the hypervisor refuses the image, the gravest kind first.

    Args:
        eif: The image.
        measured: As for `validate`.
        now: As for `validate`.
    """
    order = list(RULES)
    found = [
        finding
        for finding in validate(eif, measured=measured, now=now)
        if finding.rule.hypervisor is Fate.REFUSES
    ]
    return sorted(found, key=lambda finding: order.index(finding.code))


def require_bootable(eif: Eif, *, measured: Measured | None = None, now: "datetime | None" = None) -> None:
    """Ask that the hypervisor would boot an image; reads all of its bytes.

    Args:
        eif: The image.
        measured: As for `validate`.
        now: As for `validate`.

    Raises:
        EifFormatError: It would not, for the gravest of the reasons.
    """
    for finding in refusals(eif, measured=measured, now=now):
        raise finding.as_error(eif.path)


def _header(eif: Eif) -> Iterator[Finding]:
    header = eif.header
    if header.version not in VERSIONS:
        yield Finding("version-unsupported", f"version {header.version}; 2, 3 and 4 are known", 4)
    elif header.version < LATEST_VERSION:
        yield Finding(
            "version-old", f"version {header.version} of the format, {LATEST_VERSION} is the latest", 4
        )
    if header.architecture is Architecture.AARCH64:
        yield Finding("aarch64", "the image is for aarch64", 6)
    if header.flags & ~1:
        yield Finding("flags-reserved", f"flags are {header.flags:#06x}; only bit 0 has a meaning", 6)
    if header.reserved or header.unused:
        offset = 0x18 if header.reserved else 0x21C
        yield Finding("reserved-used", "a reserved field of the header is not 0", offset)
    for index in range(min(header.section_count, SECTIONS_MAX), SECTIONS_MAX):
        if header.section_offsets[index] or header.section_sizes[index]:
            message = (
                f"entry {index} of the section table is filled, but there are {header.section_count} sections"
            )
            yield Finding("table-unused-entry", message, TABLE_OFFSET + 8 * index)
            break


def _between(eif: Eif) -> Iterator[Finding]:
    for start, end in gaps(eif):
        yield Finding("gap", f"{end - start} bytes between sections belong to none", start)
    trailing = len(eif.view) - eif.end
    if trailing <= 0:
        return
    if trailing >= SECTION_HEADER_BYTES and eif.header.section_count < SECTIONS_MAX:
        section_type, _, size = SECTION_HEADER.unpack_from(eif.view, eif.end)
        if (
            SectionType.KERNEL <= section_type <= SectionType.METADATA
            and size <= trailing - SECTION_HEADER_BYTES
        ):
            message = f"a {type_name(section_type)} section follows that the table does not list"
            yield Finding("section-unlisted", message, eif.end)
    yield Finding("trailing-bytes", f"{trailing} bytes follow the last section", eif.end)


def _inventory(eif: Eif) -> Iterator[Finding]:
    kinds = {kind: eif.of_type(kind) for kind in SectionType}
    complete = not any(finding.code == "section-outside" for finding in eif.findings)
    for kind in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK):
        if not kinds[kind] and complete:
            name = type_name(kind)
            yield Finding(f"{name}-missing", f"there is no {name} section", SECTION_COUNT_OFFSET)
    for kind in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA, SectionType.SIGNATURE):
        for section in kinds[kind][1:]:
            message = f"there are {len(kinds[kind])} {type_name(kind)} sections"
            yield Finding(f"{type_name(kind)}-repeated", message, section.offset, section.index)
    if not kinds[SectionType.METADATA] and complete and eif.version >= 4:
        yield Finding("metadata-missing", "there is no metadata section", SECTION_COUNT_OFFSET)
    for kind, since in ((SectionType.SIGNATURE, 3), (SectionType.METADATA, 4)):
        for section in kinds[kind]:
            if eif.version < since:
                message = f"version {eif.version} has no {type_name(kind)} sections"
                yield Finding("section-newer", message, section.offset, section.index)
    if kinds[SectionType.KERNEL]:
        kernel = kinds[SectionType.KERNEL][0]
        for section in kinds[SectionType.RAMDISK]:
            if section.offset < kernel.offset:
                message = "the ramdisk comes before the kernel"
                yield Finding("ramdisk-early", message, section.offset, section.index)


def _content(eif: Eif, section: Section) -> Iterator[Finding]:
    place = section.offset + SECTION_HEADER_BYTES
    if not SectionType.KERNEL <= section.type <= SectionType.METADATA:
        message = f"section type {section.type}; 1 to 5 are known"
        yield Finding("section-type", message, section.offset, section.index)
        return
    if section.flags:
        message = f"section flags are {section.flags:#06x}, not 0"
        yield Finding("section-flags", message, section.offset + 2, section.index)
    name = section.type_name
    if not section.data and section.type in MEASURED | {SectionType.METADATA}:
        yield Finding(f"{name}-empty", f"the {name} section has no data", section.offset, section.index)
        return
    match section.type:
        case SectionType.KERNEL:
            problem = kernel_problem(section.data, eif.architecture)
            if problem is not None:
                yield Finding("kernel-format", problem, place, section.index)
        case SectionType.CMDLINE:
            yield from _cmdline(section)
        case SectionType.RAMDISK:
            if not bytes(section.data[:6]).startswith(_RAMDISK_MAGICS):
                message = "the ramdisk is neither a newc cpio archive nor a compressed one"
                yield Finding("ramdisk-format", message, place, section.index)
        case SectionType.METADATA:
            yield from _metadata(section)
        case SectionType.SIGNATURE if len(section.data) > SIGNATURE_BYTES_MAX:
            message = f"the signature section has {len(section.data)} bytes, more than {SIGNATURE_BYTES_MAX}"
            yield Finding("signature-large", message, section.offset, section.index)


def _cmdline(section: Section) -> Iterator[Finding]:
    place = section.offset + SECTION_HEADER_BYTES
    if len(section.data) > CMDLINE_BYTES_MAX:
        message = f"the command line has {len(section.data)} bytes"
        yield Finding("cmdline-long", message, place + CMDLINE_BYTES_MAX, section.index)
    for at, byte in enumerate(bytes(section.data[: CMDLINE_BYTES_MAX + 1])):
        if byte in b"\0\n":
            message = f"the command line has a {'NUL' if byte == 0 else 'newline'} at its byte {at}"
            yield Finding("cmdline-text", message, place + at, section.index)
            return


def _metadata(section: Section) -> Iterator[Finding]:
    try:
        Metadata.unpack(section.data)
        custom = load_json(section.data)["CustomMetadata"]
    except EifFormatError as error:
        code = error.code or "metadata-json"
        place = section.offset + SECTION_HEADER_BYTES + error.offset
        yield Finding(code, error.reason, place, section.index)
        return
    if custom is not None and not isinstance(custom, dict):
        message = "the custom metadata is not an object"
        yield Finding("metadata-custom", message, section.offset, section.index)


def _signature(eif: Eif, read: "SignatureSection", pcr0: bytes, now: "datetime | None") -> Iterator[Finding]:
    section = eif.of_type(SectionType.SIGNATURE)[-1]
    place = section.offset + SECTION_HEADER_BYTES

    def found(code: str, message: str) -> Finding:
        return Finding(code, message, place, section.index)

    if read.error is not None:
        yield found("signature-malformed", read.error.reason)
        return
    first, *others = read.signatures
    if bytes(section.data[1 : 1 + len(_SIGNATURE_START)]) != _SIGNATURE_START:
        yield found("signature-key-order", "the map's first key is not signing_certificate")
    if others:
        yield found("signature-many", f"there are {1 + len(others)} signatures")
    try:
        first.verify(pcr0)
    except SigningError as error:
        other = error.problem is SigningProblem.OTHER_IMAGE
        yield found("signature-other-image" if other else "signature-invalid", str(error))
    from datetime import UTC, datetime  # noqa: PLC0415 - most images are not signed

    now = now or datetime.now(UTC)
    if not first.is_valid_at(now):
        certificate = first.certificate
        dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        message = f"the signing certificate is valid from {dates}, not on {now:%Y-%m-%d}"
        yield found("certificate-expired", message)


def _checksum(eif: Eif, computed: Checksums) -> Iterator[Finding]:
    stored = eif.header.crc32
    if stored == computed.specification:
        return
    aws = "fails" if computed.aws_reader is None else f"{computed.aws_reader:#010x}"
    readings = f"the file has {stored:#010x}; computed {computed.specification:#010x}"
    if len({computed.specification, computed.aws_reader, computed.qemu}) > 1:
        readings += f" (AWS's reader {aws}, QEMU {computed.qemu:#010x})"
    code = "crc"
    if stored == computed.without_trailing:
        code = "crc-without-trailing"
    elif stored == computed.qemu:
        code = "crc-without-gaps"
        readings += "; it covers the sections only, as QEMU has it, and not the bytes between them"
    yield Finding(code, f"checksum: {readings}", CRC_OFFSET)
