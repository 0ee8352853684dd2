"""COSE_Sign1 with ECDSA (RFC 9052 §4.2, RFC 9053 §2.1): four elements, signed by one key.

    [protected header (bytes of a map), unprotected header, payload, signature (r and s, one after the other)]

What is signed is not these bytes but a Sig_structure made of them (RFC 9052 §4.4).
"""

from dataclasses import dataclass
from typing import Self

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from nitro_nsm.cbor import Value, decode
from nitro_nsm.errors import CborError, DocumentError, Step

SIGN1_TAG = b"\xd2"
"""Tag 18, which a message may have or lack (RFC 9052 §2)."""
ALGORITHM = 1
"""The header parameter that names the algorithm (RFC 9052 §3.1)."""
ES256, ES384, ES512 = -7, -35, -36
HASHES: dict[int, hashes.HashAlgorithm] = {
    ES256: hashes.SHA256(),
    ES384: hashes.SHA384(),
    ES512: hashes.SHA512(),
}
ES384_PROTECTED = cbor2.dumps({ALGORITHM: ES384})
ES384_BYTES = 48
"""The length of r, and that of s."""


@dataclass(frozen=True, slots=True)
class Sign1:
    """A COSE_Sign1 message. None of it is verified until `verify` has returned."""

    protected: bytes
    """The protected header as it was signed: an encoded map, or empty."""
    headers: dict[int | str, Value]
    """The protected header, decoded."""
    unprotected: dict[int | str, Value]
    """The header that the signature does not cover, decoded."""
    payload: bytes
    """What was signed."""
    signature: bytes
    """The numbers r and s, of equal length, one after the other."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a message, with or without its tag.

        Raises:
            DocumentError: It is not a COSE_Sign1 (step `structure`).
        """
        try:
            message = decode(data.removeprefix(SIGN1_TAG), strict=True)
        except CborError as error:
            raise DocumentError(Step.STRUCTURE, f"not a COSE_Sign1: {error}") from error
        match message:
            case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
                return cls(protected, _headers(protected), unprotected, payload, signature)
            case list():
                kinds = ", ".join(type(element).__name__ for element in message)
                raise DocumentError(
                    Step.STRUCTURE,
                    f"not a COSE_Sign1: wanted bytes, a map, bytes, bytes; it has {kinds or 'nothing'}",
                )
        raise DocumentError(Step.STRUCTURE, "not a COSE_Sign1: it is not an array")

    def verify(self, key: ec.EllipticCurvePublicKey, *, external_aad: bytes = b"") -> None:
        """Check that `key` made the signature.

        Args:
            key: The public key.
            external_aad: Data that was signed along with the message and is not in it (RFC 9052 §4.3).

        Raises:
            DocumentError: The algorithm is not ECDSA (step `algorithm`), or the signature is not by `key`
                (step `signature`).
        """
        algorithm = self.headers.get(ALGORITHM)
        hash_ = HASHES.get(algorithm) if isinstance(algorithm, int) else None
        if hash_ is None:
            raise DocumentError(Step.ALGORITHM, f"the algorithm {algorithm!r} is not ECDSA (-7, -35, -36)")
        size = (key.curve.key_size + 7) // 8
        if len(self.signature) != 2 * size:
            raise DocumentError(
                Step.SIGNATURE, f"{len(self.signature)} bytes, but {key.curve.name} makes {2 * size}"
            )
        der = encode_dss_signature(
            int.from_bytes(self.signature[:size], "big"), int.from_bytes(self.signature[size:], "big")
        )
        try:
            key.verify(der, to_be_signed(self.protected, self.payload, external_aad), ec.ECDSA(hash_))
        except InvalidSignature:
            raise DocumentError(Step.SIGNATURE, "it is not by the key of the certificate") from None


def to_be_signed(protected: bytes, payload: bytes, external_aad: bytes = b"") -> bytes:
    """The bytes that are signed: the Sig_structure (RFC 9052 §4.4)."""
    return cbor2.dumps(["Signature1", protected, external_aad, payload])


def sign1(payload: bytes, key: ec.EllipticCurvePrivateKey, algorithm: ec.ECDSA) -> bytes:
    """Make an untagged message.

    Args:
        payload: What to sign.
        key: A P-384 key.
        algorithm: ECDSA with SHA-384, which the message's header names.
    """
    r, s = decode_dss_signature(key.sign(to_be_signed(ES384_PROTECTED, payload), algorithm))
    signature = r.to_bytes(ES384_BYTES, "big") + s.to_bytes(ES384_BYTES, "big")
    return cbor2.dumps([ES384_PROTECTED, {}, payload, signature])


def _headers(protected: bytes) -> dict[int | str, Value]:
    if not protected:
        return {}
    try:
        headers = decode(protected, strict=True)
    except CborError as error:
        raise DocumentError(Step.STRUCTURE, f"the protected header: {error}") from error
    if not isinstance(headers, dict):
        raise DocumentError(Step.STRUCTURE, "the protected header is not a map")
    return headers
