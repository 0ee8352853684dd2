"""``eif describe``: what an image is, what it measures, and what is wrong with it."""

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import Meter, print_json, printable, size, story, table
from nitro_eif.errors import EifFormatError, SigningError
from nitro_eif.image.findings import Fate, Finding, Severity
from nitro_eif.image.format import HEADER_BYTES
from nitro_eif.image.measure import Measured, Measurements, measure_and_checksum
from nitro_eif.image.metadata import Metadata, load_json
from nitro_eif.image.reader import Eif
from nitro_eif.image.validate import validate

if TYPE_CHECKING:
    from cryptography import x509

    from nitro_eif.image.signature import ImageSignature

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

EXAMPLES = ("eif describe hello.eif", "eif describe --json hello.eif | jq -r .Measurements.PCR0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("image", metavar="EIF")
    parser.add_argument("--findings", action="store_true", help="say of each finding who minds, and why")
    add_json(parser, " in nitro-cli describe-eif's shape")


def run(options: argparse.Namespace) -> int:
    """Describe the image, as far as it can be read; 3 if it breaks the format."""
    now = datetime.now(UTC)
    with Eif.open(options.image, salvage=True) as eif, Meter("Measuring") as meter:
        measured = measure_and_checksum(eif, progress=meter)
        findings = validate(eif, measured=measured, now=now)
        if options.json:
            answer = as_json(eif, measured)
            if options.findings:
                answer["Findings"] = [finding.as_json() for finding in findings]
            print_json(answer)
        else:
            _print(eif, measured)
            if findings:
                print("Findings")
            if not options.findings:
                print(table(_row(finding) for finding in findings), end="\n" if findings else "")
            else:
                for finding in findings:
                    _explain(finding)
        errors = [finding for finding in findings if finding.severity is Severity.ERROR]
        for finding in errors if options.json else ():
            story(f"eif: {options.image}: {finding.message} ({_place(finding)})")
    return 3 if errors else 0


def as_json(eif: Eif, measured: Measured) -> dict[str, Any]:
    """What ``nitro-cli describe-eif`` prints."""
    measurements = measured.measurements
    answer: dict[str, Any] = {
        "EifVersion": eif.version,
        "Measurements": measurements.as_json(),
        "IsSigned": eif.signature is not None,
    }
    signature = _signature(measured)
    if signature is not None:
        answer["SigningCertificate"] = certificate_json(signature.certificate)
    answer["CheckCRC"] = eif.header.crc32 == measured.checksums.specification
    if signature is not None:
        answer["SignatureCheck"] = signature_problem(signature, measurements) is None
    if eif.metadata is not None:
        answer |= _metadata_json(eif.metadata)
    return answer


def certificate_json(certificate: "x509.Certificate") -> dict[str, Any]:
    """A signing certificate as nitro-cli prints it."""
    signature = certificate.signature
    issuer = {attribute.oid._name: str(attribute.value) for attribute in certificate.issuer}  # noqa: SLF001
    return {
        "IssuerName": dict(sorted(issuer.items())),
        "Algorithm": certificate.signature_algorithm_oid._name,  # noqa: SLF001 - OpenSSL's long name
        "NotBefore": _openssl_time(certificate.not_valid_before_utc),
        "NotAfter": _openssl_time(certificate.not_valid_after_utc),
        "Signature": ":".join(f"{byte:02X}" for byte in signature),
    }


def signature_problem(signature: "ImageSignature", measurements: Measurements) -> str | None:
    """Why a signature is not of this image; `None` if it is."""
    try:
        signature.verify(measurements.pcr0)
    except SigningError as error:
        return str(error)
    return None


def _signature(measured: Measured) -> "ImageSignature | None":
    section = measured.signature_section
    return section.signatures[0] if section is not None and section.signatures else None


def _metadata_json(data: memoryview) -> dict[str, Any]:
    try:
        metadata = Metadata.unpack(data)
    except EifFormatError:
        try:
            return {"Metadata": load_json(data)}
        except EifFormatError:
            return {}
    build = metadata.build
    return {
        "ImageName": metadata.image_name,
        "ImageVersion": metadata.image_version,
        "Metadata": {
            "BuildTime": build.build_time,
            "BuildTool": build.build_tool,
            "BuildToolVersion": build.build_tool_version,
            "OperatingSystem": build.operating_system,
            "KernelVersion": build.kernel_version,
            "DockerInfo": metadata.docker_info,
            **(metadata.custom if isinstance(metadata.custom, dict) else {}),
        },
    }


def _openssl_time(moment: datetime) -> str:
    return f"{_MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S} {moment.year} GMT"


def _print(eif: Eif, measured: Measured) -> None:
    header, measurements = eif.header, measured.measurements
    stored, computed = header.crc32, measured.checksums.specification
    verdict = "ok" if stored == computed else f"{stored:#010x} in the file, {computed:#010x} computed"
    version = f"EIF version {header.version} for {header.architecture}"
    print(f"{eif.path}: {version}, {size(len(eif.view))}, CRC {verdict}")
    if len(eif.view) < HEADER_BYTES:
        return
    print("Sections")
    rows = [("", "type", "offset", "bytes", "")]
    rows += [
        (str(s.index), s.type_name, f"{s.offset:#x}", str(len(s.data)), size(len(s.data)))
        for s in eif.sections
    ]
    print(table(rows))
    if eif.measured:
        print("Measurements (SHA-384)")
        values = measurements.as_json()
        print(table((name, values[name]) for name in ("PCR0", "PCR1", "PCR2", "PCR8") if name in values))
    cmdlines = [section.data for section in eif.sections if section.type_name == "cmdline"]
    for cmdline in cmdlines[:1]:
        print(f"Command line\n  {printable(bytes(cmdline[:4096]).decode(errors='surrogateescape'))}")
    signature = _signature(measured)
    if signature is not None:
        _print_signature(signature, measurements)
    if eif.metadata is not None:
        _print_metadata(eif.metadata)


def _print_signature(signature: "ImageSignature", measurements: Measurements) -> None:
    certificate = signature.certificate
    problem = signature_problem(signature, measurements)
    rows = [
        ("subject", printable(certificate.subject.rfc4514_string())),
        ("issuer", printable(certificate.issuer.rfc4514_string())),
        (
            "valid",
            f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}",
        ),
        ("check", problem or "the signature is of this image by this certificate's key"),
    ]
    print("Signature")
    print(table(rows))


def _print_metadata(data: memoryview) -> None:
    try:
        metadata = Metadata.unpack(data)
    except EifFormatError:
        return
    build = metadata.build
    print("Metadata (not measured)")
    rows = [
        ("image", f"{metadata.image_name} {metadata.image_version}"),
        ("built", f"{build.build_time} by {build.build_tool} {build.build_tool_version}"),
        ("kernel", f"{build.operating_system} {build.kernel_version}"),
    ]
    if metadata.custom is not None:
        rows.append(("custom", str(metadata.custom)))
    print(table((name, printable(value)) for name, value in rows))


def _row(finding: Finding) -> tuple[str, str, str]:
    hypervisor = {Fate.BOOTS: "boots", Fate.REFUSES: "refused by Nitro", Fate.UNKNOWN: ""}[
        finding.rule.hypervisor
    ]
    text = f"{printable(finding.message)} ({_place(finding)})"
    return finding.severity, finding.code, f"{text}{f': {hypervisor}' if hypervisor else ''}"


def _place(finding: Finding) -> str:
    where = f"byte {finding.offset:#x}"
    return where if finding.section is None else f"section {finding.section}, {where}"


def _explain(finding: Finding) -> None:
    rule = finding.rule
    print(f"  {finding.severity} {finding.code}: {printable(finding.message)} ({_place(finding)})")
    rows = [
        ("specification", rule.specification),
        ("nitro-cli", rule.aws_reader),
        ("QEMU", rule.qemu),
        ("Nitro", rule.hypervisor),
    ]
    print(table(rows, indent="    "))
