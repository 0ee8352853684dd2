"""COSE_Sign1 with ECDSA (RFC 9052 §4.2, RFC 9053 §2.1), as far as image signatures use it."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from nitro_eif.errors import SigningError, SigningProblem

_ALGORITHM_LABEL: Final = 1
_SIGN1_TAG: Final = 18


class Algorithm(IntEnum):
    """ECDSA algorithms of COSE; images tie each to one curve (image-format README, "EifSectionSignature")."""

    ES256 = -7
    ES384 = -35
    ES512 = -36

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """The hash that the algorithm signs."""
        return {self.ES256: hashes.SHA256(), self.ES384: hashes.SHA384(), self.ES512: hashes.SHA512()}[self]

    @property
    def number_bytes(self) -> int:
        """Bytes of each of the signature's two numbers."""
        return {self.ES256: 32, self.ES384: 48, self.ES512: 66}[self]

    @classmethod
    def of_key(cls, key: object) -> "Algorithm":
        """The algorithm that goes with a public key's curve.

        Raises:
            SigningError: The key is not on P-256, P-384 or P-521.
        """
        if isinstance(key, ec.EllipticCurvePublicKey):
            found = {"secp256r1": cls.ES256, "secp384r1": cls.ES384, "secp521r1": cls.ES512}.get(
                key.curve.name
            )
            if found is not None:
                return found
            raise SigningError(
                f"the key is on curve {key.curve.name}; images are signed with P-256, P-384 or P-521"
            )
        raise SigningError(
            "the key is not an elliptic curve key; images are signed with P-256, P-384 or P-521"
        )


@dataclass(frozen=True, slots=True)
class Sign1:
    """A COSE_Sign1 message, taken apart."""

    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that the protected header names.

        Raises:
            SigningError: It names none of these.
        """
        header = decode(self.protected)
        value = header.get(_ALGORITHM_LABEL) if isinstance(header, Mapping) else None
        for algorithm in Algorithm:
            if value == algorithm:
                return algorithm
        raise _malformed("the COSE header does not name ES256, ES384 or ES512")

    def verify(self, key: object) -> None:
        """Check the signature with a public key.

        Raises:
            SigningError: It is not that key's signature of the payload.
        """
        algorithm = Algorithm.of_key(key)
        if self.algorithm is not algorithm:
            raise SigningError(
                f"the COSE header says {self.algorithm.name}, the certificate's key is for {algorithm.name}",
                problem=SigningProblem.INVALID,
            )
        size = algorithm.number_bytes
        if len(self.signature) != 2 * size:
            raise SigningError(
                f"the signature has {len(self.signature)} bytes, {algorithm.name} has {2 * size}",
                problem=SigningProblem.INVALID,
            )
        der = encode_dss_signature(
            int.from_bytes(self.signature[:size]), int.from_bytes(self.signature[size:])
        )
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - of_key has seen to it
        try:
            key.verify(der, to_be_signed(self.protected, self.payload), ec.ECDSA(algorithm.hash))
        except InvalidSignature:
            raise SigningError(
                "the signature is not of this payload by the certificate's key",
                problem=SigningProblem.INVALID,
            ) from None


def sign1(payload: bytes, algorithm: Algorithm, sign: Callable[[bytes], bytes]) -> bytes:
    """Make an untagged COSE_Sign1; ``sign`` gives the DER signature of the bytes that it gets."""
    protected = cbor2.dumps({_ALGORITHM_LABEL: int(algorithm)})
    r, s = decode_dss_signature(sign(to_be_signed(protected, payload)))
    size = algorithm.number_bytes
    return cbor2.dumps([protected, {}, payload, r.to_bytes(size) + s.to_bytes(size)])


def parse_sign1(data: bytes) -> Sign1:
    """Take a COSE_Sign1 apart, tagged or not.

    Raises:
        SigningError: The bytes are not a COSE_Sign1 message.
    """
    value = decode(data)
    if isinstance(value, cbor2.CBORTag) and value.tag == _SIGN1_TAG:
        value = value.value
    match value:
        case [bytes() as protected, Mapping(), bytes() as payload, bytes() as signature]:
            return Sign1(protected, payload, signature)
    raise _malformed("it is not a COSE_Sign1: an array of protected header, map, payload and signature")


def to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """The Sig_structure (RFC 9052 §4.4), without external data."""
    return cbor2.dumps(["Signature1", protected, b"", payload])


def decode(data: bytes) -> Any:  # noqa: ANN401 - CBOR
    """Decode CBOR from anyone.

    Raises:
        SigningError: The bytes are not CBOR, or go on after its end.
    """
    stream = io.BytesIO(data)
    try:
        value = cbor2.load(stream)
    except cbor2.CBORDecodeError as error:
        raise _malformed(f"it is not CBOR: {error}") from None
    if stream.read(1):
        raise _malformed("it is CBOR with more bytes after its end")
    return value


def _malformed(message: str) -> SigningError:
    return SigningError(message, problem=SigningProblem.MALFORMED)
