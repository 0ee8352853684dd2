"""How documents and certificates are shown, to people and as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nitro_nsm.document import AttestationDocument

TIME = "%Y-%m-%dT%H:%M:%SZ"
SHOWN_BYTES_MAX = 64
"""Longer values are shown by their beginning."""
KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def print_json(value: Mapping[str, Any]) -> None:
    """Print the answer of a command, which is the only thing on standard output."""
    print(json.dumps(value, indent=2))


def document_json(document: AttestationDocument) -> dict[str, Any]:
    """A document as data; bytes are hexadecimal."""
    chain = (*document.cabundle, document.certificate)
    return {
        "module_id": document.module_id,
        "digest": document.digest,
        "timestamp": document.timestamp_ms,
        "time": document.time.isoformat(timespec="milliseconds"),
        "debug_mode": document.debug_mode,
        "pcrs": {str(index): value.hex() for index, value in document.pcrs.items()},
        "public_key": _hex(document.public_key),
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "payload_map": document.payload_map,
        "unknown": list(document.unknown),
        "certificates": [certificate_json(certificate) for certificate in chain],
    }


def certificate_json(der: bytes) -> dict[str, Any]:
    """A certificate as data; if it cannot be read, the reason under `error`."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return {
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "serial": f"{certificate.serial_number:x}",
            "not_before": certificate.not_valid_before_utc.strftime(TIME),
            "not_after": certificate.not_valid_after_utc.strftime(TIME),
            "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
            "extensions": [_extension_json(extension) for extension in certificate.extensions],
        }
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        return {"error": f"cannot be read: {error}", "der": der.hex()}


def _extension_json(extension: x509.Extension[x509.ExtensionType]) -> dict[str, Any]:
    shown: dict[str, Any] = {"oid": extension.oid.dotted_string, "critical": extension.critical}
    match extension.value:
        case x509.BasicConstraints(ca=ca, path_length=path_length):
            return shown | {"basic_constraints": {"ca": ca, "path_length": path_length}}
        case x509.KeyUsage() as usage:
            return shown | {"key_usage": [name for name in KEY_USAGES if getattr(usage, name)]}
        case x509.SubjectKeyIdentifier(digest=digest):
            return shown | {"subject_key_identifier": digest.hex()}
        case x509.AuthorityKeyIdentifier(key_identifier=bytes(identifier)):
            return shown | {"authority_key_identifier": identifier.hex()}
        case x509.CRLDistributionPoints() as points:
            names = [name.value for point in points for name in point.full_name or ()]
            return shown | {"crl_distribution_points": [str(name) for name in names]}
        case other:
            return shown | {"der": other.public_bytes().hex()}


def document_text(document: AttestationDocument) -> str:
    """A document for people: registers that are zero are left out."""
    shown = document_json(document)
    mode = "  (debug mode: the image is not attested)" if document.debug_mode else ""
    zero = [index for index, value in document.pcrs.items() if not any(value)]
    lines = [
        f"module      {document.module_id}",
        f"time        {shown['time']}",
        *(f"PCR{index:<9}{value.hex()}" for index, value in document.pcrs.items() if any(value)),
        f"zero PCRs   {_ranges(zero)}{mode}",
        *(f"{name:<12}{_shown(getattr(document, name))}" for name in ("public_key", "user_data", "nonce")),
        *(f"unknown     {name}" for name in document.unknown),
        "certificates, from the root down",
    ]
    for certificate in shown["certificates"]:
        if "error" in certificate:
            lines.append(f"  {certificate['error']}")
            continue
        lines += [
            f"  {certificate['subject']}",
            f"      valid   {certificate['not_before']} to {certificate['not_after']}",
            f"      serial  {certificate['serial']}",
            f"      sha256  {certificate['sha256']}",
        ]
    return "\n".join(map(_printable, lines))


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _shown(value: bytes | None) -> str:
    if value is None:
        return "none"
    if not value:
        return "empty"
    more = f"… ({len(value)} bytes)" if len(value) > SHOWN_BYTES_MAX else ""
    return value[:SHOWN_BYTES_MAX].hex() + more


def _ranges(numbers: list[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def _printable(line: str) -> str:
    """Replace what could steer a terminal, because names in documents are whatever their maker wrote."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )
