"""Whether a chain of certificates, from its root down, makes its last key worth believing (RFC 5280 §6.1).

The chain is taken in the order of the document and in no other. Nitro's certificates are P-384 with SHA-384
throughout and know neither policies nor name constraints, so a critical extension other than basic
constraints and key usage is refused. There is no revocation: a leaf lives for three hours, and AWS does not
ask anyone to look at its lists.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeGuard, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from nitro_nsm.errors import DocumentError, Step

UNDERSTOOD_CRITICAL = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}
E = TypeVar("E", bound=x509.ExtensionType)
PARSER_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,  # what the parser is going to refuse one day, for callers that turn warnings into errors
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What of a certificate the checks need, read from it once."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    basic_constraints: x509.BasicConstraints | None
    key_usage: x509.KeyUsage | None
    subject_key: bytes | None
    authority_key: bytes | None


def verify_chain(chain: Sequence[bytes], *, at: datetime) -> ec.EllipticCurvePublicKey:
    """The public key of the last certificate of `chain`, if each vouches for the next; the first is trusted.

    Raises `DocumentError`: certificates.
    """
    leaf = len(chain) - 1
    issuer: Parsed | None = None
    for position, der in enumerate(chain):
        with _naming("the document's certificate" if position == leaf else f"cabundle[{position}]"):
            parsed = parse(der)
            _check_dates(parsed.certificate, at)
            if position == leaf:
                _check_leaf(parsed)
            else:
                _check_authority(parsed, authorities_below=leaf - 1 - position)
            if issuer is not None:
                _check_issued(parsed, issuer)
        issuer = parsed
    if issuer is None:
        raise DocumentError(Step.CERTIFICATES, "there are none")
    return issuer.key


def parse(der: bytes) -> Parsed:
    """Read a certificate. Raises `ValueError`, saying what is wrong with it."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        _ = certificate.extensions  # parsed here, and kept
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
    """Whether this is a public key on the only curve that Nitro uses."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what is wrong with a certificate into the failure of a step that says which one it is."""
    try:
        yield
    except ValueError as error:
        raise DocumentError(Step.CERTIFICATES, f"{name} {error}") from error


def _check_dates(certificate: x509.Certificate, at: datetime) -> None:
    if at < certificate.not_valid_before_utc:
        raise ValueError(f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if at > certificate.not_valid_after_utc:
        raise ValueError(f"expired on {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def _check_authority(parsed: Parsed, *, authorities_below: int) -> None:
    constraints, usage = parsed.basic_constraints, parsed.key_usage
    if constraints is None or not constraints.ca:
        raise ValueError("is not that of an authority (basic constraints)")
    if constraints.path_length is not None and constraints.path_length < authorities_below:
        raise ValueError(f"allows {constraints.path_length} authorities below it and has {authorities_below}")
    if usage is None or not usage.key_cert_sign:
        raise ValueError("may not sign certificates (key usage)")


def _check_leaf(parsed: Parsed) -> None:
    if parsed.basic_constraints is not None and parsed.basic_constraints.ca:
        raise ValueError("is that of an authority, which signs no documents")
    if parsed.key_usage is None or not parsed.key_usage.digital_signature:
        raise ValueError("may not sign documents (key usage)")


def _check_issued(parsed: Parsed, issuer: Parsed) -> None:
    if None not in (parsed.authority_key, issuer.subject_key) and parsed.authority_key != issuer.subject_key:
        raise ValueError("names another key as its issuer's (authority key identifier)")
    try:
        parsed.certificate.verify_directly_issued_by(issuer.certificate)
    except InvalidSignature:
        raise ValueError("is not signed by the one before it") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"was not issued by the one before it: {error}") from error
