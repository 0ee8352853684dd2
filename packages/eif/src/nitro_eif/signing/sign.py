"""Sign image files, sign them anew, and take signatures away."""

import os
from dataclasses import replace
from pathlib import Path

import cbor2

from nitro_eif.errors import SigningError
from nitro_eif.files import Progress, replacing
from nitro_eif.image import cose
from nitro_eif.image.format import SIGNATURE_BYTES_MAX, Header, SectionType
from nitro_eif.image.measure import Measurements, measure
from nitro_eif.image.reader import Eif
from nitro_eif.image.signature import (
    CERTIFICATE_KEY,
    SIGNATURE_KEY,
    load_certificate,
    payload,
    public_key_of,
)
from nitro_eif.image.writer import SectionData, write_sections
from nitro_eif.signing.keys import Signer

FIRST_SIGNED_VERSION = 3
"""Signature sections came with this version of the format."""


def make_signature(pcr0: bytes, signer: Signer, certificate_pem: bytes) -> bytes:
    """The data of a signature section for an image with this PCR0.

    Raises:
        SigningError: The certificate is not of the signer's key, or signing failed.
    """
    key = public_key_of(load_certificate(certificate_pem))
    if cose.Algorithm.of_key(key) is not signer.algorithm:
        raise SigningError("the certificate is not for the private key: they are on different curves")
    message = cose.sign1(payload(pcr0), signer.algorithm, signer.sign)
    try:
        cose.parse_sign1(message).verify(key)
    except SigningError as error:
        raise SigningError(
            "the certificate is not for the private key: it does not verify what the key signs"
        ) from error
    data = cbor2.dumps([{CERTIFICATE_KEY: list(certificate_pem), SIGNATURE_KEY: list(message)}])
    if len(data) > SIGNATURE_BYTES_MAX:
        raise SigningError(
            f"the signature section would have {len(data)} bytes, at most {SIGNATURE_BYTES_MAX} are allowed",
            hint="use a certificate file with less in it: only its first certificate counts",
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
        EifFormatError: The file is not an image.
        SigningError: Key and certificate cannot sign.
        HostError: A file cannot be read or written.
    """
    # A signature that is there may be broken, as AWS's own re-signing leaves it: it is replaced anyway.
    with Eif.open(path, without=SectionType.SIGNATURE) as eif:
        pcr0 = measure(eif, progress=progress).pcr0
        data = make_signature(pcr0, signer, certificate_pem)
        header = replace(eif.header, version=max(eif.version, FIRST_SIGNED_VERSION))
        _rewrite(eif, header, data, output or path)
    with Eif.open(output or path) as eif:
        return measure(eif, progress=progress)


def remove_signature(path: str | os.PathLike[str], *, output: str | os.PathLike[str] | None = None) -> None:
    """Take an image's signature away; in place unless there is an output.

    Raises:
        EifFormatError: The file is not an image.
        HostError: A file cannot be read or written.
    """
    with Eif.open(path, without=SectionType.SIGNATURE) as eif:
        _rewrite(eif, eif.header, None, output or path)


def _rewrite(eif: Eif, header: Header, signature: bytes | None, output: str | os.PathLike[str]) -> None:
    sections: list[SectionData] = [(section.type, section.data) for section in eif.sections]
    if signature is not None:
        # Where a signature was, or at the end: all sections before the first one left out are there.
        kept = {section.index for section in eif.sections}
        place = next((index for index in range(len(kept)) if index not in kept), len(kept))
        sections.insert(place, (SectionType.SIGNATURE, signature))
    with replacing(Path(output)) as file:
        write_sections(file, header, sections)
