"""Image signatures: read, check, make, replace and remove them.

The signature section is CBOR, ``[{"signing_certificate": PEM, "signature": COSE_Sign1}]``, with both values
as arrays of integers: AWS's reader and QEMU refuse byte strings. The signed payload is
``{"register_index": 0, "register_value": PCR0}``, the register again an array of integers. Only the first
entry counts (README, "EifSectionSignature").
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nitro_eif import cose
from nitro_eif.digests import Progress
from nitro_eif.errors import EifFormatError, SigningError
from nitro_eif.findings import Finding
from nitro_eif.format import SECTION_HEADER_BYTES, SIGNATURE_BYTES_MAX, Header, SectionType
from nitro_eif.keys import Signer
from nitro_eif.measure import Measurements, measure
from nitro_eif.reader import Eif
from nitro_eif.writer import SectionData, replacing, write_sections

_CERTIFICATE, _SIGNATURE = "signing_certificate", "signature"


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
            SigningError: it did not; the message says what is wrong.
        """
        message = cose.parse_sign1(self.cose_sign1)
        message.verify(_public_key(self.certificate))
        if message.payload != payload(pcr0):
            raise SigningError("the signature is of another image: its payload is not this image's PCR0")

    def is_valid_at(self, now: datetime) -> bool:
        """Tell whether the certificate is valid at a time."""
        return self.certificate.not_valid_before_utc <= now <= self.certificate.not_valid_after_utc


def payload(pcr0: bytes) -> bytes:
    """Give the bytes that an image's signature signs."""
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def read_signatures(eif: Eif) -> list[ImageSignature]:
    """Read an image's signature section; empty if it has none.

    Raises:
        EifFormatError: the section is malformed.
    """
    sections = eif.of_type(SectionType.SIGNATURE)
    if not sections:
        return []
    section = sections[-1]
    try:
        return _parse(bytes(section.data[: 2 * SIGNATURE_BYTES_MAX]))
    except SigningError as error:
        raise EifFormatError(
            f"the signature section is malformed: {error}; sign the image again",
            offset=section.offset + SECTION_HEADER_BYTES,
            section=section.index,
            path=eif.path,
            code="signature-malformed",
        ) from error


def make_signature(pcr0: bytes, signer: Signer, certificate_pem: bytes) -> bytes:
    """Make a signature section's data for an image with this PCR0.

    Raises:
        SigningError: the certificate is not of the signer's key, or signing failed.
    """
    certificate = load_certificate(certificate_pem)
    key = _public_key(certificate)
    if cose.Algorithm.of_key(key) is not signer.algorithm:
        raise SigningError("the certificate is not for the private key: they are on different curves")
    message = cose.sign1(payload(pcr0), signer.algorithm, signer.sign)
    try:
        cose.parse_sign1(message).verify(key)
    except SigningError as error:
        raise SigningError(
            "the certificate is not for the private key: it does not verify what the key signs"
        ) from error
    data = cbor2.dumps([{_CERTIFICATE: list(certificate_pem), _SIGNATURE: list(message)}])
    if len(data) > SIGNATURE_BYTES_MAX:
        raise SigningError(
            f"the signature section would have {len(data)} bytes, at most {SIGNATURE_BYTES_MAX} are allowed: "
            "use a shorter certificate file"
        )
    return data


def sign(
    path: str | os.PathLike[str],
    signer: Signer,
    certificate_pem: bytes,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Measurements:
    """Sign an image file, replacing a signature that it has; in place unless there is an output.

    A replaced signature keeps its place among the sections, a new one comes last, as with nitro-cli.

    Raises:
        EifFormatError: the file is no image.
        SigningError: key and certificate cannot sign.
        HostError: a file cannot be read or written.
    """
    with Eif.open(path) as eif:
        unsigned = Eif(
            eif.view, eif.header, tuple(s for s in eif.sections if s.type != SectionType.SIGNATURE), ()
        )
        pcr0 = measure(unsigned, progress=progress).pcr0
        data = make_signature(pcr0, signer, certificate_pem)
        header = replace(eif.header, version=max(eif.version, 3))
        _rewrite(eif, header, data, output or path)
    with Eif.open(output or path) as eif:
        return measure(eif, progress=progress)


def remove_signature(path: str | os.PathLike[str], *, output: str | os.PathLike[str] | None = None) -> None:
    """Take an image's signature away; in place unless there is an output.

    Raises:
        EifFormatError: the file is no image.
        HostError: a file cannot be read or written.
    """
    with Eif.open(path) as eif:
        _rewrite(eif, eif.header, None, output or path)


def check_signature(
    eif: Eif, measurements: Measurements, *, now: datetime | None = None
) -> Iterator[Finding]:
    """Yield what is wrong with an image's signature section."""
    section = eif.of_type(SectionType.SIGNATURE)[-1]
    place = section.offset + SECTION_HEADER_BYTES
    try:
        first, *others = read_signatures(eif)
    except EifFormatError as error:
        yield Finding("signature-malformed", error.reason, place, section.index)
        return
    # After the array's head comes a map of two, whose first key is as QEMU wants it.
    if not bytes(section.data[1:41]).startswith(b"\xa2" + cbor2.dumps(_CERTIFICATE)):
        message = f"the map's first key is not {_CERTIFICATE}"
        yield Finding("signature-key-order", message, place, section.index)
    if others:
        message = f"there are {1 + len(others)} signatures"
        yield Finding("signature-many", message, place, section.index)
    try:
        first.verify(measurements.pcr0)
    except SigningError as error:
        other = "another image" in str(error)
        yield Finding(
            "signature-other-image" if other else "signature-invalid", str(error), place, section.index
        )
    now = now or datetime.now(UTC)
    if not first.is_valid_at(now):
        certificate = first.certificate
        dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        message = f"the signing certificate is valid from {dates}, not on {now:%Y-%m-%d}"
        yield Finding("certificate-expired", message, place, section.index)


def load_certificate(pem: bytes) -> x509.Certificate:
    """Read the first certificate of a PEM text.

    Raises:
        SigningError: there is none, or it is broken.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:  # noqa: BLE001 - hostile certificates raise several kinds
        raise SigningError(f"the certificate cannot be read as PEM: {error}") from None
    return certificate


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except Exception as error:  # noqa: BLE001 - as above
        raise SigningError(f"the certificate's key cannot be read: {error}") from None


def _parse(data: bytes) -> list[ImageSignature]:
    value = cose.decode(data)
    if not isinstance(value, list) or not value:
        raise SigningError("it is no array with a signature in it")
    entries = []
    for entry in value:
        if not isinstance(entry, dict):
            raise SigningError("an entry is no map")
        pem, message = (_octets(entry.get(key), key) for key in (_CERTIFICATE, _SIGNATURE))
        entries.append(ImageSignature(pem, message, load_certificate(pem)))
    return entries


def _octets(value: object, key: str) -> bytes:
    if not isinstance(value, list):
        raise SigningError(f"{key} is no array of integers")
    try:
        return bytes(value)
    except (ValueError, TypeError):
        raise SigningError(f"{key} is not all integers from 0 to 255") from None


def _rewrite(eif: Eif, header: Header, signature: bytes | None, output: str | os.PathLike[str]) -> None:
    sections: list[SectionData] = []
    written = False
    for section in eif.sections:
        if section.type != SectionType.SIGNATURE:
            sections.append((section.type, section.data))
        elif signature is not None and not written:
            sections.append((SectionType.SIGNATURE, signature))
            written = True
    if signature is not None and not written:
        sections.append((SectionType.SIGNATURE, signature))
    with replacing(Path(output)) as file:
        write_sections(file, header, sections)
