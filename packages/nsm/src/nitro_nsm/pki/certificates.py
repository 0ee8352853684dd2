"""Reading one certificate, and refusing what Nitro's never have (RFC 5280 §4).

Nitro's certificates are P-384 with SHA-384 throughout, and know neither policies nor name constraints. So a
critical extension other than basic constraints and key usage is refused.
"""

from dataclasses import dataclass
from typing import TypeGuard, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

UNDERSTOOD_CRITICAL = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}
E = TypeVar("E", bound=x509.ExtensionType)
PARSER_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,  # the parser warns of what it will refuse one day, and callers may turn warnings into errors
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the checks need of a certificate, read from it once."""

    certificate: x509.Certificate
    """The whole of it."""
    key: ec.EllipticCurvePublicKey
    """The public key of its holder."""
    basic_constraints: x509.BasicConstraints | None
    """Whether it may issue others, and how deep; `None` if it does not say."""
    key_usage: x509.KeyUsage | None
    """What its key is for; `None` if it does not say."""
    subject_key: bytes | None
    """The identifier of its key, if it has one."""
    authority_key: bytes | None
    """The identifier of its issuer's key, if it has one."""


def parse(der: bytes) -> Parsed:
    """Read a certificate.

    Raises:
        ValueError: It cannot be one of Nitro's; the message continues a sentence that starts with its name.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        _ = certificate.extensions  # the parser reads them when asked, and keeps them
    except PARSER_ERRORS as error:
        raise ValueError(f"cannot be read: {error}") from error
    if certificate.version is not x509.Version.v3:
        raise ValueError("is not of version 3")
    if certificate.serial_number <= 0:
        raise ValueError("has a serial number that is not positive")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise ValueError("is not signed with ECDSA and SHA-384")
    if not is_p384(key):
        raise ValueError("has a key that is not P-384")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in UNDERSTOOD_CRITICAL:
            raise ValueError(f"has a critical extension that is not known: {extension.oid.dotted_string}")
    subject_key = _extension(certificate, x509.SubjectKeyIdentifier)
    authority_key = _extension(certificate, x509.AuthorityKeyIdentifier)
    return Parsed(
        certificate=certificate,
        key=key,
        basic_constraints=_extension(certificate, x509.BasicConstraints),
        key_usage=_extension(certificate, x509.KeyUsage),
        subject_key=subject_key.digest if subject_key else None,
        authority_key=authority_key.key_identifier if authority_key else None,
    )


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def is_p384(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether `key` is a public key on the only curve that Nitro uses."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
