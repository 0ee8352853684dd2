"""``eif verify``: would Nitro boot this image, and is it the one that is expected."""

import argparse
import re
from datetime import UTC, datetime

from nitro_eif.commands.options import read_file
from nitro_eif.errors import EifFormatError, UsageError
from nitro_eif.findings import Fate, Severity
from nitro_eif.measure import Measurements, measure_and_checksum
from nitro_eif.reader import Eif
from nitro_eif.terminal import Meter, print_json, printable
from nitro_eif.validate import validate


def run(options: argparse.Namespace) -> int:
    """Check format, checksum, signature and expected registers; 0 if all is well, else 1."""
    expected = _expected(options)
    with Eif.open(options.image, salvage=True) as eif, Meter("Measuring") as meter:
        measured = measure_and_checksum(eif, ignore_bad_signature=True, progress=meter)
        findings = validate(eif, measured=measured, now=datetime.now(UTC))
        problems = [
            finding.message
            for finding in findings
            if finding.severity is Severity.ERROR or finding.rule.hypervisor is Fate.REFUSES
        ]
        signed = eif.signature is not None
        if not signed and (options.signed or options.signing_certificate):
            problems.append("the image is not signed")
        if signed and options.signing_certificate:
            problems += _other_certificate(eif, options.signing_certificate)
    problems += _other_registers(measured[0], expected)
    if options.json:
        print_json(
            {
                "Valid": not problems,
                "Signed": signed,
                "Problems": problems,
                "Measurements": measured[0].as_json(),
            }
        )
    else:
        for problem in problems:
            print(f"{options.image}: {printable(problem)}")
        if not problems:
            print(f"{options.image}: valid, {'signed' if signed else 'not signed'}")
    return 1 if problems else 0


def _expected(options: argparse.Namespace) -> dict[str, str]:
    expected = {}
    for name in ("PCR0", "PCR1", "PCR2", "PCR8"):
        value = getattr(options, name.lower())
        if value is not None:
            if not re.fullmatch(r"[0-9a-fA-F]{96}", value):
                raise UsageError(f"--{name.lower()} {value!r}: a register is 96 hexadecimal digits")
            expected[name] = value.lower()
    return expected


def _other_registers(measurements: Measurements, expected: dict[str, str]) -> list[str]:
    values = measurements.as_json()
    return [
        f"{name} is {values.get(name, 'zero')}, not {value}"
        for name, value in expected.items()
        if values.get(name) != value
    ]


def _other_certificate(eif: Eif, path: str) -> list[str]:
    from nitro_eif.signature import load_certificate, read_signatures  # noqa: PLC0415 - slow to import

    wanted = load_certificate(read_file(path))
    try:
        found = read_signatures(eif)[0].certificate
    except EifFormatError:
        return []
    return [] if found == wanted else ["the image is signed with another certificate"]
