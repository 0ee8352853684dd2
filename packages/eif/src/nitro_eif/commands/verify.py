"""``eif verify``: would Nitro boot this image, and is it the one that is expected."""

import argparse
import re
from datetime import UTC, datetime

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import Meter, print_json, printable
from nitro_eif.errors import UsageError
from nitro_eif.files import read_file
from nitro_eif.image.findings import Finding, Severity
from nitro_eif.image.measure import Measured, Measurements, measure_and_checksum
from nitro_eif.image.reader import Eif
from nitro_eif.image.readers import Reader, objections
from nitro_eif.image.validate import validate

ALL = "all"

EXAMPLES = (
    "eif verify hello.eif",
    "eif verify --as all --strict hello.eif",
    "eif verify --signed --signing-certificate signer.pem --pcr0 $PCR0 hello.eif",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("image", metavar="EIF")
    parser.add_argument("--signed", action="store_true", help="it must be signed")
    parser.add_argument(
        "--signing-certificate", metavar="PEM", help="it must be signed with this certificate"
    )
    for register in ("pcr0", "pcr1", "pcr2", "pcr8"):
        parser.add_argument(f"--{register}", metavar="HEX", help=f"it must measure this {register.upper()}")
    parser.add_argument(
        "--as",
        dest="reader",
        choices=[*Reader, ALL],
        default=Reader.NITRO,
        help="who must not object: the hypervisor (nitro, the default), nitro-cli, qemu, or any of all",
    )
    parser.add_argument("--strict", action="store_true", help="warnings count, too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check format, checksum, signature and expected registers; 0 if all is well, else 1."""
    expected = _expected(options)
    with Eif.open(options.image, salvage=True) as eif, Meter("Measuring") as meter:
        measured = measure_and_checksum(eif, progress=meter)
        findings = validate(eif, measured=measured, now=datetime.now(UTC))
        problems = _objections(eif, findings, measured, options)
        signed = eif.signature is not None
        if not signed and (options.signed or options.signing_certificate):
            problems.append("the image is not signed")
        if signed and options.signing_certificate:
            problems += _other_certificate(measured, options.signing_certificate)
    problems += _other_registers(measured.measurements, expected)
    if options.json:
        print_json(
            {
                "Valid": not problems,
                "Signed": signed,
                "Problems": problems,
                "Measurements": measured.measurements.as_json(),
            }
        )
    else:
        for problem in problems:
            print(f"{options.image}: {printable(problem)}")
        if not problems:
            print(f"{options.image}: valid, {'signed' if signed else 'not signed'}")
    return 1 if problems else 0


def _objections(
    eif: Eif, findings: list[Finding], measured: Measured, options: argparse.Namespace
) -> list[str]:
    """What the readers that were asked for object to, each thing once."""
    readers = list(Reader) if options.reader == ALL else [Reader(options.reader)]
    found: dict[str, None] = {}
    for reader in readers:
        for objection in objections(eif, findings, measured, reader):
            found[objection if isinstance(objection, str) else objection.message] = None
    if options.strict:
        found |= {finding.message: None for finding in findings if finding.severity is not Severity.NOTE}
    return list(found)


def _expected(options: argparse.Namespace) -> dict[str, str]:
    expected = {}
    for name in ("PCR0", "PCR1", "PCR2", "PCR8"):
        value = getattr(options, name.lower())
        if value is not None:
            if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{96}", value):
                raise UsageError(f"--{name.lower()} {value!r}: a register is 96 hexadecimal digits")
            expected[name] = value[-96:].lower()
    return expected


def _other_registers(measurements: Measurements, expected: dict[str, str]) -> list[str]:
    values = measurements.as_json()
    return [
        f"{name} is {values.get(name, 'zero')}, not {value}"
        for name, value in expected.items()
        if values.get(name) != value
    ]


def _other_certificate(measured: Measured, path: str) -> list[str]:
    from nitro_eif.image.signature import load_certificate  # noqa: PLC0415 - slow to import

    wanted = load_certificate(read_file(path))
    section = measured.signature_section
    if section is None or section.error is not None:
        # That the section cannot be read is a finding of its own.
        return []
    same = section.signatures[0].certificate == wanted
    return [] if same else ["the image is signed with another certificate"]
