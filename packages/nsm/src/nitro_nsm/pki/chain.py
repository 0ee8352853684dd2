"""Whether a chain of certificates, from its root down, makes its last key worth believing (RFC 5280 §6.1).

The chain is taken in the order of the document and in no other. Revocation is not checked, because a leaf
lives for three hours and AWS does not ask anyone to look at its lists.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from nitro_nsm.errors import DocumentError, Step
from nitro_nsm.pki.certificates import Parsed, parse


def verify_chain(chain: Sequence[bytes], *, at: datetime) -> Parsed:
    """Check that each certificate of a chain vouches for the next, and return the last one.

    Args:
        chain: Certificates (DER) from the root down. The first is trusted.
        at: When all of them must be valid.

    Raises:
        DocumentError: The chain does not hold (step `certificates`).
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
    return issuer


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn the complaint about a certificate into a failed step that names the certificate."""
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
