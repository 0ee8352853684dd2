"""The signature section of an image: what is in it, and what was signed.

The section is CBOR, ``[{"signing_certificate": PEM, "signature": COSE_Sign1}]``, with both values as arrays
of integers: AWS's reader and QEMU refuse byte strings. The signed payload is
``{"register_index": 0, "register_value": PCR0}``, the register again an array of integers. Only the first
entry counts (README, "EifSectionSignature").
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import cbor2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from nitro_eif.errors import EifFormatError, SigningError, SigningProblem
from nitro_eif.image import cose
from nitro_eif.image.format import SECTION_HEADER_BYTES, SIGNATURE_BYTES_MAX, SectionType
from nitro_eif.image.reader import Eif

CERTIFICATE_KEY: Final = "signing_certificate"
SIGNATURE_KEY: Final = "signature"

_BAD_CERTIFICATE: Final = (ValueError, TypeError, OverflowError, x509.InvalidVersion, UnsupportedAlgorithm)
"""What cryptography raises of a certificate that it cannot read, or whose key it does not know."""


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """One entry of the signature section."""

    certificate_pem: bytes
    cose_sign1: bytes
    certificate: x509.Certificate
    """The first certificate of the PEM text."""

    @property
    def certificate_der(self) -> bytes:
        """What PCR8 measures."""
        return self.certificate.public_bytes(Encoding.DER)

    def verify(self, pcr0: bytes) -> None:
        """Check that the certificate's key signed this PCR0.

        Raises:
            SigningError: It did not; `SigningError.problem` says in which way.
        """
        message = cose.parse_sign1(self.cose_sign1)
        message.verify(public_key_of(self.certificate))
        if message.payload != payload(pcr0):
            raise SigningError(
                "the signature is of another image: its payload is not this image's PCR0",
                problem=SigningProblem.OTHER_IMAGE,
            )

    def is_valid_at(self, now: datetime) -> bool:
        """Whether the certificate is valid at a time."""
        return self.certificate.not_valid_before_utc <= now <= self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class SignatureSection:
    """An image's signature section, parsed once: measuring, checking and printing all need it."""

    signatures: tuple[ImageSignature, ...]
    """At least one, or `None` where there is an error."""
    error: EifFormatError | None = None
    """Why the section cannot be read."""

    @classmethod
    def of(cls, eif: Eif) -> "SignatureSection | None":
        """The signature section of an image; `None` if it has none."""
        if eif.signature is None:
            return None
        try:
            return cls(tuple(read_signatures(eif)))
        except EifFormatError as error:
            return cls((), error)


def payload(pcr0: bytes) -> bytes:
    """The bytes that an image's signature signs."""
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def read_signatures(eif: Eif) -> list[ImageSignature]:
    """The entries of an image's signature section; empty if it has none.

    Raises:
        EifFormatError: The section is malformed.
    """
    sections = eif.of_type(SectionType.SIGNATURE)
    if not sections:
        return []
    section = sections[-1]
    try:
        # A longer section is against the rules anyway, and need not be decoded to the end.
        return _parse(bytes(section.data[: 2 * SIGNATURE_BYTES_MAX]))
    except SigningError as error:
        raise EifFormatError(
            f"the signature section is malformed: {error}",
            offset=section.offset + SECTION_HEADER_BYTES,
            section=section.index,
            path=eif.path,
            code="signature-malformed",
            hint="sign the image again with eif sign, or take the signature away with eif unsign",
        ) from error


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM text.

    Raises:
        SigningError: There is none, or it is broken.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        # These are parsed when they are asked for, and must not fail later.
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _BAD_CERTIFICATE as error:
        raise SigningError(
            f"the certificate cannot be read as PEM: {error}", problem=SigningProblem.MALFORMED
        ) from None
    return certificate


def public_key_of(certificate: x509.Certificate) -> object:
    """A certificate's public key, of whatever kind.

    Raises:
        SigningError: The key is broken, or of an unknown kind.
    """
    try:
        return certificate.public_key()
    except _BAD_CERTIFICATE as error:
        raise SigningError(
            f"the certificate's key cannot be read: {error}", problem=SigningProblem.MALFORMED
        ) from None


def _parse(data: bytes) -> list[ImageSignature]:
    value = cose.decode(data)
    if not isinstance(value, list) or not value:
        raise _malformed("it is not an array with a signature in it")
    entries = []
    for entry in value:
        if not isinstance(entry, dict):
            raise _malformed("an entry is not a map")
        pem, message = (_octets(entry.get(key), key) for key in (CERTIFICATE_KEY, SIGNATURE_KEY))
        entries.append(ImageSignature(pem, message, load_certificate(pem)))
    return entries


def _octets(value: object, key: str) -> bytes:
    if not isinstance(value, list):
        raise _malformed(f"{key} is not an array of integers")
    try:
        return bytes(value)
    except (ValueError, TypeError):
        raise _malformed(f"{key} has an element that is not an integer from 0 to 255") from None


def _malformed(message: str) -> SigningError:
    return SigningError(message, problem=SigningProblem.MALFORMED)
