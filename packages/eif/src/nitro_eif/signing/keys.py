"""Private keys that sign images: PEM files, and keys that stay in AWS KMS."""

import re
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key

from nitro_eif.errors import HostError, SigningError
from nitro_eif.image.cose import Algorithm

KMS_ARN: Final = re.compile(
    r"arn:(aws|aws-cn|aws-us-gov):kms:([a-z0-9-]+):\d{12}:(key|alias)[:/][\w/-]+", re.ASCII
)
"""What nitro-cli takes for a KMS key in ``--private-key``; anything else is a file."""


class Signer(Protocol):
    """A private key that can sign, wherever it is."""

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that goes with the key's curve."""

    def sign(self, data: bytes) -> bytes:
        """The DER signature of ``data``.

        Raises:
            SigningError: The key cannot sign.
        """


class KeySigner:
    """A private key in memory.

    Raises:
        SigningError: The key is not on P-256, P-384 or P-521.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.algorithm: Algorithm = Algorithm.of_key(key.public_key())

    def sign(self, data: bytes) -> bytes:
        """The DER signature of ``data``."""
        return self._key.sign(data, ec.ECDSA(self.algorithm.hash))


class KmsSigner:
    """A key in AWS KMS, by its ARN; needs the extra ``kms``.

    Args:
        arn: Of an ECC_NIST key with SIGN_VERIFY use.
        client: A boto3 KMS client; by default one for the ARN's region, with the environment's credentials.

    Raises:
        HostError: Boto3 is missing.
        SigningError: The ARN is not one, or the key cannot be used.
    """

    def __init__(self, arn: str, client: Any = None) -> None:  # noqa: ANN401 - boto3 has no types
        match = KMS_ARN.fullmatch(arn)
        if match is None:
            raise SigningError(
                f"{arn!r} is not a KMS key ARN",
                hint="write it like arn:aws:kms:eu-west-1:123456789012:key/ID",
            )
        self._arn = arn
        self._client = client if client is not None else _kms_client(match[2])
        public = self._call("get_public_key", KeyId=arn)["PublicKey"]
        self.algorithm: Algorithm = Algorithm.of_key(load_der_public_key(public))

    def sign(self, data: bytes) -> bytes:
        """Let KMS hash and sign ``data``, at most 4096 bytes.

        Raises:
            SigningError: KMS refuses or cannot be reached.
        """
        name = {
            Algorithm.ES256: "ECDSA_SHA_256",
            Algorithm.ES384: "ECDSA_SHA_384",
            Algorithm.ES512: "ECDSA_SHA_512",
        }[self.algorithm]
        reply = self._call("sign", KeyId=self._arn, Message=data, MessageType="RAW", SigningAlgorithm=name)
        return bytes(reply["Signature"])

    def _call(self, operation: str, **arguments: object) -> Any:  # noqa: ANN401 - boto3 has no types
        try:
            return getattr(self._client, operation)(**arguments)
        except Exception as error:  # boto3 makes its exceptions at run time
            raise SigningError(f"KMS key {self._arn}: {operation} failed: {error}") from error


def _kms_client(region: str) -> Any:  # noqa: ANN401 - boto3 has no types
    try:
        import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415 - an extra
    except ImportError:
        raise HostError("signing with a KMS key needs boto3: pip install 'nitro-eif[kms]'") from None
    try:
        return boto3.client("kms", region_name=region)
    except Exception as error:  # as above
        raise HostError(f"no KMS client for region {region}: {error}") from error


def load_signer(key: str, *, passphrase: bytes | None = None) -> Signer:
    """The signer that ``--private-key`` means: a KMS key's ARN or a PEM file.

    Raises:
        SigningError: The file holds no usable key, or the passphrase is missing or wrong.
        HostError: The file cannot be read; boto3 is missing.
    """
    if key.startswith("arn:"):
        return KmsSigner(key)
    try:
        pem = Path(key).read_bytes()
    except OSError as error:
        raise HostError(f"{key}: cannot read the private key: {error.strerror}") from error
    try:
        private = load_pem_private_key(pem, passphrase)
    except TypeError:
        if passphrase is None:
            raise SigningError(f"{key}: the private key is encrypted; give its passphrase") from None
        private = load_pem_private_key(pem, None)
    except Exception as error:  # noqa: BLE001 - the library lets several kinds through
        raise SigningError(f"{key}: no readable private key in PEM, or a wrong passphrase: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise SigningError(f"{key}: not an elliptic curve key; images are signed with P-256, P-384 or P-521")
    return KeySigner(private)
