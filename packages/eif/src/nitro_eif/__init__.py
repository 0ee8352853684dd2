"""Read, measure, build, sign and explain AWS Nitro Enclave Image Files.

>>> import nitro_eif
>>> with nitro_eif.Eif.open("hello.eif") as eif:  # doctest: +SKIP
...     print(nitro_eif.measure(eif).pcr0.hex())

Importing this is fast: what needs cryptography is loaded when first used.
"""

from nitro_eif.errors import EifError, EifFormatError, HostError, RegistryError, SigningError, UsageError
from nitro_eif.findings import RULES, Fate, Finding, Rule, Severity
from nitro_eif.format import Architecture, Header, Section, SectionType
from nitro_eif.measure import (
    Checksums,
    Measurements,
    checksum,
    extend,
    measure,
    measure_and_checksum,
    pcr3,
    pcr4,
    pcr8,
    pcr_of_data,
    pcr_of_digest,
)
from nitro_eif.metadata import BuildMetadata, Metadata
from nitro_eif.reader import Eif
from nitro_eif.validate import refusals, validate
from nitro_eif.writer import Contents, pack_eif, write_eif, write_sections

__all__ = [
    "RULES",
    "Architecture",
    "BuildMetadata",
    "Checksums",
    "Contents",
    "Eif",
    "EifError",
    "EifFormatError",
    "Fate",
    "Finding",
    "Header",
    "HostError",
    "Measurements",
    "Metadata",
    "RegistryError",
    "Rule",
    "Section",
    "SectionType",
    "Severity",
    "SigningError",
    "UsageError",
    "checksum",
    "extend",
    "measure",
    "measure_and_checksum",
    "pack_eif",
    "pcr3",
    "pcr4",
    "pcr8",
    "pcr_of_data",
    "pcr_of_digest",
    "refusals",
    "validate",
    "write_eif",
    "write_sections",
]
