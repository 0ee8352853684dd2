"""The enclave's side of KMS: a key, a document for it, and envelopes opened. It needs no extra.

recipient = KmsRecipient(NsmClient(DeviceTransport()))
answer = boto3.client("kms").decrypt(CiphertextBlob=blob, Recipient=recipient.parameter())
secret = recipient.open(answer["CiphertextForRecipient"])
"""

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nitro_nsm.client import NsmClient
from nitro_nsm.kms.envelope import open_envelope

KEY_BITS = 2048
KEY_ENCRYPTION = "RSAES_OAEP_SHA_256"


class KmsRecipient:
    """An enclave that gets secrets from KMS.

    Its RSA key is made once and lives in memory only, so that nobody else can open what is sent to it.

    Args:
        nsm: The security module that attests the key.
        key_bits: How long the RSA key is: 2048 to 4096.
    """

    def __init__(self, nsm: NsmClient, *, key_bits: int = KEY_BITS) -> None:
        self._nsm = nsm
        self._key = rsa.generate_private_key(65537, key_bits)

    def parameter(
        self, *, nonce: bytes | None = None, user_data: bytes | None = None
    ) -> dict[str, str | bytes]:
        """The parameter `Recipient` of a request, with a new document, as boto3 takes it.

        KMS accepts a document for five minutes, so take a new one for each request.

        Args:
            nonce: For verifiers other than KMS.
            user_data: For verifiers other than KMS.

        Raises:
            Refusal: The security module makes no document.
        """
        public = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        document = self._nsm.attest(public_key=public, nonce=nonce, user_data=user_data)
        return {"KeyEncryptionAlgorithm": KEY_ENCRYPTION, "AttestationDocument": document}

    def open(self, envelope: bytes) -> bytes:
        """The secret in the `CiphertextForRecipient` of an answer.

        Raises:
            EnvelopeError: It is malformed, or for another key.
        """
        return open_envelope(envelope, self._key)
