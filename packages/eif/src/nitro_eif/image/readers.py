"""Who would take an image: the hypervisor, AWS's command line, and QEMU differ.

The hypervisor follows the specification, so `nitro_eif.validate` does: its checksum covers all bytes of the
file. AWS's `EifReader` reads sections one after the other and leaves up to 11 bytes at the end out; QEMU's
nitro-enclave machine leaves out all bytes that belong to no section. What each computes is in `Checksums`.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from nitro_eif.image.findings import Fate, Finding, Rule, Severity
from nitro_eif.image.measure import Checksums, Measured
from nitro_eif.image.reader import Eif

FIRST_QEMU_VERSION = 4
"""QEMU refuses images of older versions of the format, and takes newer ones."""

_CHECKSUM_CODES = frozenset({"crc", "crc-without-gaps", "crc-without-trailing"})


class Reader(StrEnum):
    """A program that reads images and may object to them."""

    NITRO = "nitro"
    """The hypervisor of the Nitro system: what counts on AWS."""
    NITRO_CLI = "nitro-cli"
    """AWS's command line: ``describe-eif``, and what ``run-enclave`` looks at."""
    QEMU = "qemu"
    """QEMU 10.0's nitro-enclave machine."""


def objections(
    eif: Eif, findings: Sequence[Finding], measured: Measured, reader: Reader
) -> Iterator[Finding | str]:
    """What a reader objects to: findings, or sentences where its reading of the checksum is another.

    Args:
        eif: The image, perhaps from `Eif.salvage`.
        findings: What `validate` found.
        measured: What `measure_and_checksum` gave.
        reader: Whose objections are asked for.
    """
    for finding in findings:
        if finding.code == "version-unsupported" and reader is Reader.QEMU:
            if eif.version < FIRST_QEMU_VERSION:
                yield finding
        elif _refuses(finding.rule, reader) and not (
            reader is not Reader.NITRO and finding.code in _CHECKSUM_CODES
        ):
            yield finding
    if eif.findings and not eif.sections:
        return
    if (sentence := _checksum(eif.header.crc32, measured.checksums, reader)) is not None:
        yield sentence


def _refuses(rule: Rule, reader: Reader) -> bool:
    match reader:
        case Reader.NITRO:
            return rule.severity is Severity.ERROR or rule.hypervisor is Fate.REFUSES
        case Reader.NITRO_CLI:
            return rule.aws_reader.startswith(("error", "SignatureCheck false", "run-enclave"))
        case Reader.QEMU:
            return rule.qemu.startswith("refuses")


def _checksum(stored: int, computed: Checksums, reader: Reader) -> str | None:
    match reader:
        case Reader.NITRO:
            return None  # its reading is the specification's, and a finding
        case Reader.NITRO_CLI if computed.aws_reader is None:
            return "nitro-cli fails: it takes bytes that belong to no section for a section"
        case Reader.NITRO_CLI if stored != computed.aws_reader:
            return (
                f"nitro-cli says CheckCRC false: it computes {computed.aws_reader:#010x}, not {stored:#010x}"
            )
        case Reader.QEMU if stored != computed.qemu:
            return f"QEMU says CRC mismatch: it computes {computed.qemu:#010x}, not {stored:#010x}"
    return None
