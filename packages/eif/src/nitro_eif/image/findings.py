"""What can be wrong with an image, as data: what the specification says, and which reader objects.

Three programs read images and differ: AWS's `EifReader` (behind `nitro-cli describe-eif`) reads sections one
after the other and ignores the table; QEMU 10.0's nitro-enclave machine goes by the table but parses less;
the hypervisor is the one that counts. What it does is known from the specification and from the maintainers'
words in public threads; where neither says, the fate is unknown.
"""

from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from nitro_eif.errors import EifFormatError


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """The specification forbids it."""
    WARNING = "warning"
    """Allowed or unspecified, but some reader refuses or misreads it."""
    NOTE = "note"
    """Harmless, and worth knowing."""


class Fate(StrEnum):
    """What the Nitro hypervisor does with an image that has the finding."""

    BOOTS = "boots"
    REFUSES = "refuses"
    UNKNOWN = "unknown"


class Rule(NamedTuple):
    """One rule of the format, and what each reader does when it is broken."""

    severity: Severity
    specification: str
    aws_reader: str
    qemu: str
    hypervisor: Fate


class Finding(NamedTuple):
    """A rule that an image breaks, and where."""

    code: str
    """Key of `RULES`."""
    message: str
    offset: int
    """Bytes from the start of the file."""
    section: int | None = None
    """Index in the section table."""

    @property
    def rule(self) -> Rule:
        """The rule that is broken."""
        return RULES[self.code]

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return self.rule.severity

    def as_error(self, path: Path | None = None) -> EifFormatError:
        """The error to raise where an image must be refused for this.

        Args:
            path: Where the image came from, for the message.
        """
        return EifFormatError(
            self.message, offset=self.offset, section=self.section, path=path, code=self.code
        )

    def as_json(self) -> dict[str, object]:
        """The finding and its rule as plain data."""
        return {
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
            "offset": self.offset,
            "section": self.section,
            "specification": self.rule.specification,
            "aws_reader": self.rule.aws_reader,
            "qemu": self.rule.qemu,
            "hypervisor": str(self.rule.hypervisor),
        }


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_B, _R, _U = Fate.BOOTS, Fate.REFUSES, Fate.UNKNOWN

RULES: Final[dict[str, Rule]] = {
    # the header
    "header-truncated": Rule(_E, "The header has 548 bytes.", "error", "refuses", _R),
    "magic": Rule(_E, "The file starts with '.eif'.", "accepts", "refuses: Magic mismatch", _R),
    "version-unsupported": Rule(
        _E, "Versions 0 and 1 are unsupported, above 4 undefined.", "accepts", "accepts above 4", _R
    ),
    "version-old": Rule(_N, "Versions 2 and 3 are valid.", "accepts", "refuses below 4", _B),
    "aarch64": Rule(_N, "Flag bit 0 says aarch64.", "accepts", "refuses: Expected EIF flags to be 0", _B),
    "flags-reserved": Rule(_W, "Flag bits 1 to 15 are reserved.", "accepts", "refuses", _U),
    "reserved-used": Rule(_N, "Reserved fields are ignored.", "accepts", "accepts", _B),
    "sections-too-many": Rule(_E, "num_sections is 2 to 32.", "accepts", "refuses", _R),
    "sections-too-few": Rule(_E, "num_sections is 2 to 32.", "accepts", "refuses", _R),
    "table-unused-entry": Rule(_N, "Only the first num_sections entries count.", "accepts", "accepts", _B),
    # where sections are
    "section-outside": Rule(_E, "Table offsets point at sections in the file.", "accepts", "refuses", _R),
    "section-truncated": Rule(_E, "A section's data is in the file.", "error", "refuses", _R),
    "section-size-mismatch": Rule(
        _E, "Section header and table say the same size.", "accepts", "refuses", _R
    ),
    "section-overlap": Rule(_E, "Sections do not overlap.", "accepts", "accepts", _R),
    "section-order": Rule(_E, "The table lists sections in file order.", "accepts", "accepts", _R),
    "section-unlisted": Rule(
        _W, "num_sections counts every section.", "reads it as a section", "ignores it", _U
    ),
    "gap": Rule(
        _W,
        "Nothing forbids bytes between sections; the checksum covers them.",
        "reads them as a section header",
        "skips them, in the checksum too",
        _B,
    ),
    "trailing-bytes": Rule(
        _W,
        "Nothing forbids bytes after the last section; the checksum covers them.",
        "ignores up to 11 bytes, reads more as a section",
        "ignores them",
        _B,
    ),
    # what sections are
    "section-type": Rule(_E, "Section types are 1 to 5.", "error", "accepts", _R),
    "section-flags": Rule(_E, "Section flags are reserved.", "accepts", "refuses", _R),
    "section-newer": Rule(
        _W, "Signatures came with version 3, metadata with version 4.", "accepts", "refuses below 4", _U
    ),
    "kernel-missing": Rule(_E, "There is exactly one kernel.", "accepts", "refuses", _R),
    "kernel-repeated": Rule(_E, "There is exactly one kernel.", "measures all", "refuses", _R),
    "cmdline-missing": Rule(_E, "There is exactly one command line.", "accepts", "refuses", _R),
    "cmdline-repeated": Rule(_E, "There is exactly one command line.", "measures all", "refuses", _R),
    "ramdisk-missing": Rule(_E, "An enclave's file system is its ramdisks.", "accepts", "refuses", _R),
    "ramdisk-early": Rule(_E, "Every ramdisk comes after the kernel.", "accepts", "accepts", _R),
    "metadata-missing": Rule(_E, "Version 4 has metadata.", "accepts", "accepts", _R),
    "metadata-repeated": Rule(_W, "One metadata section is described.", "takes the last", "accepts", _U),
    "signature-repeated": Rule(_W, "One signature section is described.", "takes the last", "refuses", _U),
    # what is in them
    "kernel-empty": Rule(_E, "The kernel is a bzImage or an arm64 Image.", "accepts", "refuses", _R),
    "kernel-format": Rule(_E, "The kernel is a bzImage or an arm64 Image.", "accepts", "refuses", _R),
    "cmdline-empty": Rule(_N, "The command line is a string.", "accepts", "refuses: Out of memory", _U),
    "cmdline-text": Rule(_W, "The command line is a string of kernel parameters.", "accepts", "accepts", _U),
    "cmdline-long": Rule(_W, "Linux takes 2047 bytes.", "accepts", "accepts", _U),
    "ramdisk-empty": Rule(_W, "A ramdisk is a cpio archive.", "accepts", "refuses: Out of memory", _U),
    "ramdisk-format": Rule(_W, "A ramdisk is cpio, perhaps compressed.", "accepts", "accepts", _U),
    "metadata-empty": Rule(_W, "Metadata is a JSON object.", "error", "refuses: Out of memory", _B),
    "metadata-json": Rule(_W, "Metadata is a JSON object.", "error", "accepts", _B),
    "metadata-schema": Rule(_W, "Metadata has five members.", "error", "accepts", _B),
    "metadata-custom": Rule(_N, "Custom metadata is an object.", "cannot be printed", "accepts", _B),
    # signature
    "signature-large": Rule(_E, "A signature section has at most 32768 bytes.", "accepts", "accepts", _R),
    "signature-malformed": Rule(
        _E,
        "The signature section is CBOR: certificate and COSE_Sign1 as arrays of integers.",
        "error",
        "refuses",
        _R,
    ),
    "signature-key-order": Rule(
        _W, "The map has signing_certificate and signature.", "accepts", "refuses: Invalid signautre CBOR", _U
    ),
    "signature-many": Rule(
        _N, "Only the first signature is checked.", "reads the first", "reads the first", _B
    ),
    "signature-invalid": Rule(_E, "The COSE signature verifies.", "error", "accepts (never verifies)", _R),
    "signature-other-image": Rule(
        _E, "The signature is of this image's PCR0.", "SignatureCheck false", "accepts (never verifies)", _R
    ),
    "certificate-expired": Rule(
        _E, "The signing certificate is valid now.", "run-enclave: E59", "accepts (never verifies)", _R
    ),
    # checksum
    "crc": Rule(
        _E, "eif_crc32 is the CRC-32 of the rest of the file.", "CheckCRC false", "refuses: CRC mismatch", _R
    ),
    "crc-without-gaps": Rule(
        _E, "The checksum covers bytes between sections.", "CheckCRC false", "accepts", _R
    ),
    "crc-without-trailing": Rule(
        _W, "The checksum covers the whole file.", "CheckCRC true up to 11 bytes", "accepts", _B
    ),
}
"""Every code, with the rule behind it."""
