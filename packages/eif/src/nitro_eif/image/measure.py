"""What Nitro measures of an image, and the file's checksum (README, "EIF Measurements" and "eif_crc32").

Kernel, command line and ramdisks go into PCR0 in file order. PCR1 leaves out all ramdisks but the first, and
PCR2 is of those others. All digests and the checksum are computed in one pass, each in a lane of its own.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from nitro_eif.files import Progress
from nitro_eif.image.digests import Lane, run
from nitro_eif.image.format import (
    CRC_OFFSET,
    HEADER_BYTES,
    MEASURED,
    SECTION_HEADER,
    SECTION_HEADER_BYTES,
    Section,
    SectionType,
)
from nitro_eif.image.reader import Eif
from nitro_eif.image.registers import pcr8, pcr_of_digest

if TYPE_CHECKING:
    from nitro_eif.image.signature import SignatureSection
    from nitro_eif.image.writer import Contents


class Measurements(NamedTuple):
    """The registers that an image decides; 48 bytes each."""

    pcr0: bytes
    """Kernel, command line and all ramdisks, in file order."""
    pcr1: bytes
    """Kernel, command line and the first ramdisk."""
    pcr2: bytes
    """The other ramdisks: the application."""
    pcr8: bytes | None = None
    """The signing certificate, if the image is signed."""

    def as_json(self) -> dict[str, str]:
        """The registers as nitro-cli prints them."""
        values = {"PCR0": self.pcr0.hex(), "PCR1": self.pcr1.hex(), "PCR2": self.pcr2.hex()}
        if self.pcr8 is not None:
            values["PCR8"] = self.pcr8.hex()
        return {"HashAlgorithm": HASH_ALGORITHM, **values}


HASH_ALGORITHM: Final = "Sha384 { ... }"
"""What nitro-cli prints: the name of the hash as its language shows it."""


class Checksums(NamedTuple):
    """The CRC-32 of a file as its readers compute it; equal where it has no gaps or trailing bytes."""

    specification: int
    """Everything but the checksum's own field (README, "eif_crc32")."""
    aws_reader: int | None
    """Header, then sections one after the other up to the end; `None` where that reading fails."""
    qemu: int
    """Header, then the sections of the table."""
    without_trailing: int
    """Everything up to the end of the last section."""


class Measured(NamedTuple):
    """What one pass over an image gives."""

    measurements: Measurements
    checksums: Checksums
    signature_section: "SignatureSection | None" = None
    """`None` where the image is not signed."""


def measure(eif: Eif, *, progress: Progress | None = None) -> Measurements:
    """Compute PCR0, PCR1, PCR2 and, where the image is signed, PCR8.

    Raises:
        EifFormatError: The signature section holds no certificate.
    """
    plan = _Plan(eif.sections)
    run(plan.lanes, progress)
    section = _signature_section(eif)
    if section is not None and section.error is not None:
        raise section.error
    return plan.measurements(_certificate_pcr(section))


def checksum(eif: Eif, *, progress: Progress | None = None) -> Checksums:
    """Compute the file's checksum as each of its readers does."""
    crc = _Crc32()
    run([_crc_lane(eif.view, crc)], progress)
    return _checksums(eif, crc.value)


def measure_and_checksum(eif: Eif, *, progress: Progress | None = None) -> Measured:
    """Do the work of `measure` and `checksum` side by side, and read the signature section.

    A signature section that cannot be read is not an error here: there is no PCR8 then.

    Args:
        eif: The image, which may be broken.
        progress: Called with bytes done and bytes in all.
    """
    plan, crc = _Plan(eif.sections), _Crc32()
    run([*plan.lanes, _crc_lane(eif.view, crc)], progress)
    section = _signature_section(eif)
    return Measured(plan.measurements(_certificate_pcr(section)), _checksums(eif, crc.value), section)


def measure_contents(contents: "Contents", *, progress: Progress | None = None) -> Measurements:
    """Compute PCR0, PCR1 and PCR2 of an image before it is written; PCR8 comes with the signature.

    Raises:
        UsageError: The contents cannot be an image.
    """
    from nitro_eif.image.writer import sections_of  # noqa: PLC0415 - who only reads images needs no writer

    sections, offset = [], HEADER_BYTES
    for index, (kind, data) in enumerate(sections_of(contents)):
        sections.append(Section(index, kind, 0, offset, memoryview(data).cast("B")))
        offset += SECTION_HEADER_BYTES + len(data)
    plan = _Plan(sections)
    run(plan.lanes, progress)
    return plan.measurements(None)


def _signature_section(eif: Eif) -> "SignatureSection | None":
    if eif.signature is None:
        return None
    from nitro_eif.image.signature import SignatureSection  # noqa: PLC0415 - cryptography is slow to import

    return SignatureSection.of(eif)


def _certificate_pcr(section: "SignatureSection | None") -> bytes | None:
    if section is None or not section.signatures:
        return None
    return pcr8(section.signatures[0].certificate_der)


class _Plan:
    """Which digests an image needs.

    In the order of AWS's writer, PCR1's content is a prefix of PCR0's: kernel, command line, first ramdisk.
    Then PCR1 costs nothing, because its hash is a copy of PCR0's at the end of that prefix.
    """

    def __init__(self, sections: Iterable[Section]) -> None:
        measured = [section for section in sections if section.type in MEASURED]
        later = [section.index for section in measured if section.type == SectionType.RAMDISK][1:]
        boot = [section for section in measured if section.index not in later]
        prefix_bytes = sum(len(section.data) for section in boot)
        self._pcr0, self._pcr2 = _ForkingDigest(prefix_bytes), hashlib.sha384()
        self.lanes = [Lane(self._pcr0, _stretches(measured))]
        self._pcr1: _ForkingDigest | None = None
        # A command line after the second ramdisk, for one, makes PCR1's content something else than a prefix.
        if [section.index for section in measured[: len(boot)]] != [section.index for section in boot]:
            self._pcr1 = _ForkingDigest(prefix_bytes)
            self.lanes.append(Lane(self._pcr1, _stretches(boot)))
        self.lanes.append(Lane(self._pcr2, _stretches([s for s in measured if s.index in later])))

    def measurements(self, certificate: bytes | None) -> Measurements:
        return Measurements(
            pcr_of_digest(self._pcr0.whole.digest()),
            pcr_of_digest((self._pcr1 or self._pcr0).prefix.digest()),
            pcr_of_digest(self._pcr2.digest()),
            certificate,
        )


class _ForkingDigest:
    """SHA-384 of a stream, and of its first ``prefix_bytes``, where one of the updates must end."""

    def __init__(self, prefix_bytes: int) -> None:
        self.whole = hashlib.sha384()
        self.prefix = self.whole.copy()
        self._left = prefix_bytes

    def update(self, data: memoryview, /) -> None:
        self.whole.update(data)
        if self._left:
            self._left -= len(data)
            if not self._left:
                self.prefix = self.whole.copy()


class _Crc32:
    """CRC-32/ISO-HDLC, running."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview, /) -> None:
        self.value = zlib.crc32(data, self.value)


def _stretches(sections: Iterable[Section]) -> list[tuple[int, memoryview]]:
    return [(section.offset + SECTION_HEADER_BYTES, section.data) for section in sections]


def _crc_lane(view: memoryview, crc: _Crc32) -> Lane:
    return Lane(crc, [(0, view[:CRC_OFFSET]), (HEADER_BYTES, view[HEADER_BYTES:])])


def _checksums(eif: Eif, whole: int) -> Checksums:
    view = eif.view
    # All readers agree on ordinary files; only of others are parts hashed once more.
    if eif.end == len(view) and not any(gaps(eif)):
        return Checksums(whole, whole, whole, whole)
    table = [view[section.offset : section.end] for section in eif.sections]
    return Checksums(
        whole,
        _crc_of(view, [view[HEADER_BYTES:aws_end]]) if (aws_end := _aws_reader_end(view)) else None,
        _crc_of(view, table),
        _crc_of(view, [view[HEADER_BYTES : eif.end]]),
    )


def gaps(eif: Eif) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch between sections that no section covers."""
    end = HEADER_BYTES
    for section in sorted(eif.sections, key=lambda section: section.offset):
        if section.offset > end:
            yield end, section.offset
        end = max(end, section.end)


def _crc_of(view: memoryview, parts: Iterable[memoryview]) -> int:
    crc = _Crc32()
    run([Lane(crc, [(0, part) for part in (view[:CRC_OFFSET], *parts)])])
    return crc.value


def _aws_reader_end(view: memoryview) -> int | None:
    """Where AWS's reader stops, which takes sections one after the other; `None` where it fails."""
    at = HEADER_BYTES
    for _ in range(_AWS_READER_SECTIONS_MAX):
        if at + SECTION_HEADER_BYTES > len(view):
            return at
        section_type, _, size = SECTION_HEADER.unpack_from(view, at)
        at += SECTION_HEADER_BYTES + size
        if not SectionType.KERNEL <= section_type <= SectionType.METADATA or at > len(view):
            return None
    return None


_AWS_READER_SECTIONS_MAX = 4096
"""AWS's reader has no limit; a file made of empty sections must not hold us for minutes."""
