"""`CiphertextForRecipient`: a secret in a CMS envelope that only the enclave's RSA key opens (RFC 5652 §6).

AWS encodes it in BER as a stream, and its own decoder (aws-nitro-enclaves-sdk-c, `cms.c`) reads no other
form. What is in angle brackets has an indefinite length (80 … 00 00), the rest is DER:

    <ContentInfo            envelopedData
      <[0] <EnvelopedData   version 2
        ber.SET { KeyTransRecipientInfo
              version 2, [0] key identifier, RSAES-OAEP with SHA-256 and MGF1 with SHA-256, encrypted key }
        <EncryptedContentInfo
          data, AES-256-CBC with its IV
          <[0] OCTET STRING, OCTET STRING … >>>>>

The key identifier is the SHA-256 of the public key (SubjectPublicKeyInfo). AWS's has 32 bytes, too; what it
is the hash of is not documented, and decoders that were looked at do not compare it.
"""

import hashlib
from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nitro_nsm.kms import ber
from nitro_nsm.kms.errors import EnvelopeError

ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")
DATA = bytes.fromhex("06092a864886f70d010701")
AES_256_CBC = bytes.fromhex("060960864801650304012a")
RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")
MGF1 = bytes.fromhex("06092a864886f70d010108")
SHA_256 = bytes.fromhex("0609608648016503040201")

INTEGER_2 = bytes.fromhex("020102")
NULL = bytes.fromhex("0500")

CHUNK_BYTES = 1000
"""The content is cut into pieces of so many bytes, as AWS cuts it."""
KEY_BYTES, IV_BYTES, BLOCK_BITS = 32, 16, 128
ENVELOPE_BYTES_MAX = 1 << 16
"""Many times what the longest plaintext of KMS, 4096 bytes, takes."""


def oaep() -> padding.OAEP:
    """RSAES-OAEP with SHA-256, the only key encryption that KMS offers to enclaves."""
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def key_identifier(key: rsa.RSAPublicKey) -> bytes:
    """What an envelope calls its recipient: the SHA-256 of the public key in DER."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def seal(plaintext: bytes, recipient: rsa.RSAPublicKey, *, entropy: Callable[[int], bytes]) -> bytes:
    """Put a secret into an envelope.

    Args:
        plaintext: The secret.
        recipient: The key of the enclave.
        entropy: Returns as many random bytes as it is asked for. The padding of the encrypted key is random
            besides, from the operating system.
    """
    key, iv = entropy(KEY_BYTES), entropy(IV_BYTES)
    padder = PKCS7(BLOCK_BITS).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    content = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    hash_ = ber.der(ber.SEQUENCE, SHA_256, NULL)
    oaep_parameters = ber.der(
        ber.SEQUENCE,
        ber.der(ber.CONTEXT_0_CONSTRUCTED, hash_),
        ber.der(ber.CONTEXT_1_CONSTRUCTED, ber.der(ber.SEQUENCE, MGF1, hash_)),
    )
    recipient_info = ber.der(
        ber.SEQUENCE,
        INTEGER_2,
        ber.der(ber.CONTEXT_0, key_identifier(recipient)),
        ber.der(ber.SEQUENCE, RSAES_OAEP, oaep_parameters),
        ber.der(ber.OCTET_STRING, recipient.encrypt(key, oaep())),
    )
    pieces = (
        ber.der(ber.OCTET_STRING, content[start : start + CHUNK_BYTES])
        for start in range(0, len(content), CHUNK_BYTES)
    )
    encrypted_content = ber.stream(
        ber.SEQUENCE,
        DATA,
        ber.der(ber.SEQUENCE, AES_256_CBC, ber.der(ber.OCTET_STRING, iv)),
        ber.stream(ber.CONTEXT_0_CONSTRUCTED, *pieces),
    )
    enveloped = ber.stream(ber.SEQUENCE, INTEGER_2, ber.der(ber.SET, recipient_info), encrypted_content)
    return ber.stream(ber.SEQUENCE, ENVELOPED_DATA, ber.stream(ber.CONTEXT_0_CONSTRUCTED, enveloped))


def open_envelope(envelope: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Take the secret out of an envelope, as the enclave does.

    Args:
        envelope: The envelope, in BER of any form.
        key: The private key whose public half was in the attestation document.

    Raises:
        EnvelopeError: The envelope is malformed, or for another key.
    """
    try:
        encrypted_key, iv, content = _parts(envelope)
        content_key = key.decrypt(encrypted_key, oaep())
        decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).decryptor()
        unpadder = PKCS7(BLOCK_BITS).unpadder()
        padded = decryptor.update(content) + decryptor.finalize()
        return unpadder.update(padded) + unpadder.finalize()
    except (ValueError, UnsupportedAlgorithm) as error:
        # One error for all, because what went wrong inside may help somebody who forges envelopes.
        raise EnvelopeError(
            "the envelope does not open", hint="is it for this key, and from a KMS?"
        ) from error


def _parts(envelope: bytes) -> tuple[bytes, bytes, bytes]:
    """The encrypted key, the IV and the encrypted content.

    Raises:
        ValueError: It is not an envelope of KMS.
    """
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise ValueError("too long")
    match ber.read(envelope):
        case (
            ber.SEQUENCE,
            [
                (ber.OBJECT_IDENTIFIER, kind),
                (
                    ber.CONTEXT_0_CONSTRUCTED,
                    [(ber.SEQUENCE, [(ber.INTEGER, _), (ber.SET, [recipient]), (ber.SEQUENCE, inner)])],
                ),
            ],
        ):
            pass
        case _:
            raise ValueError("not EnvelopedData with one recipient")
    match recipient:
        case (
            ber.SEQUENCE,
            [
                (ber.INTEGER, _),
                (ber.CONTEXT_0, _),
                (ber.SEQUENCE, [(ber.OBJECT_IDENTIFIER, transport), *_]),
                (ber.OCTET_STRING, bytes(encrypted_key)),
            ],
        ):
            pass
        case _:
            raise ValueError("not a recipient by key identifier")
    match inner:
        case [
            _,
            (ber.SEQUENCE, [(ber.OBJECT_IDENTIFIER, cipher), (ber.OCTET_STRING, bytes(iv))]),
            (ber.CONTEXT_0 | ber.CONTEXT_0_CONSTRUCTED, content),
        ]:
            pass
        case _:
            raise ValueError("not content with one cipher")
    known = (ENVELOPED_DATA[2:], RSAES_OAEP[2:], AES_256_CBC[2:])
    if (kind, transport, cipher) != known:
        raise ValueError("other algorithms")
    if isinstance(content, list):
        pieces = [piece for tag, piece in content if tag == ber.OCTET_STRING and isinstance(piece, bytes)]
        if len(pieces) != len(content):
            raise ValueError("not pieces of octets")
        content = b"".join(pieces)
    return encrypted_key, iv, content
