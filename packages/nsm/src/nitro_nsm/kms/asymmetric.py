"""Encrypt and Decrypt under RSA keys, which moto lacks (KMS guide, "RSA key specs").

A ciphertext is what anybody with the public key can make, so it does not name its key as symmetric ones do.
"""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from nitro_nsm.kms.errors import KmsError

SYMMETRIC = "SYMMETRIC_DEFAULT"
PADDINGS = {
    "RSAES_OAEP_SHA_1": padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None),  # noqa: S303 - AWS's
    "RSAES_OAEP_SHA_256": padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
}


def check_algorithm(algorithm: str, *, key_spec: str, key_usage: str, arn: str) -> None:
    """See that a key encrypts, and by this algorithm.

    Raises:
        KmsError: It does not (InvalidKeyUsageException).
    """
    if key_usage != "ENCRYPT_DECRYPT":
        raise KmsError("InvalidKeyUsageException", f"{arn} key usage is {key_usage}.")
    fits = algorithm in PADDINGS if key_spec.startswith("RSA_") else algorithm == SYMMETRIC
    if not fits:
        raise KmsError(
            "InvalidKeyUsageException", f"Algorithm {algorithm} is incompatible with key spec {key_spec}."
        )


def encrypt(key: rsa.RSAPrivateKey, algorithm: str, plaintext: bytes) -> bytes:
    """Encrypt to a key.

    Raises:
        KmsError: The plaintext is too long for it (ValidationException).
    """
    try:
        return key.public_key().encrypt(plaintext, PADDINGS[algorithm])
    except ValueError as error:
        raise KmsError(
            "ValidationException",
            f"{len(plaintext)} bytes are too many for an RSA key of {key.key_size} bits.",
        ) from error


def decrypt(key: rsa.RSAPrivateKey, algorithm: str, ciphertext: bytes) -> bytes:
    """Decrypt what was encrypted to a key.

    Raises:
        KmsError: It was not (InvalidCiphertextException).
    """
    try:
        return key.decrypt(ciphertext, PADDINGS[algorithm])
    except ValueError as error:
        raise KmsError("InvalidCiphertextException", "The ciphertext is not one of this key.") from error
