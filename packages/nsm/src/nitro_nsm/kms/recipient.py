"""Whether a request's `Recipient` is an enclave, and what its document says for the conditions of policies.

The document must verify under the configured root, be no older than KMS allows, and hold an RSA key of 2048
to 4096 bits, to which the answer is encrypted (KMS guide, "Cryptographic attestation support in AWS KMS").
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nitro_nsm.document import VerifiedDocument
from nitro_nsm.errors import DocumentError
from nitro_nsm.kms.conditions import Context
from nitro_nsm.kms.errors import KmsError
from nitro_nsm.pki.trust import TrustRoot
from nitro_nsm.policy import Policy
from nitro_nsm.verification import verify

KEY_ENCRYPTION = "RSAES_OAEP_SHA_256"
KEY_BITS = range(2048, 4096 + 1)
OPERATIONS = frozenset(
    {"Decrypt", "DeriveSharedSecret", "GenerateDataKey", "GenerateDataKeyPair", "GenerateRandom"}
)
"""The operations that take a `Recipient`."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """An enclave that has proved what it is."""

    document: VerifiedDocument
    """What it says."""
    key: rsa.RSAPublicKey
    """The key that its answer is encrypted to."""

    @property
    def context(self) -> Context:
        """The condition keys of its registers: `kms:RecipientAttestation:PCR0` and so on, and ImageSha384."""
        prefix = "kms:recipientattestation"
        found = {f"{prefix}:pcr{index}": (value.hex(),) for index, value in self.document.pcrs.items()}
        if 0 in self.document.pcrs:
            found[f"{prefix}:imagesha384"] = (self.document.pcrs[0].hex(),)
        return found


def attested(document: bytes, *, root: TrustRoot, policy: Policy, at: datetime) -> Recipient:
    """The enclave whose attestation document a request carries.

    Args:
        document: The COSE_Sign1.
        root: The root that its certificates must lead to.
        policy: How old it may be, and whatever else is demanded of every enclave.
        at: The time.

    Raises:
        KmsError: The document does not verify, or holds no usable key (ValidationException).
    """
    try:
        verified = verify(document, at=at, root=root, policy=policy)
    except DocumentError as error:
        raise KmsError(
            "ValidationException",
            f"The attestation document is not valid: {error.step}.",
            detail=str(error),
        ) from error
    return Recipient(verified, _rsa_key(verified.public_key))


def _rsa_key(der: bytes | None) -> rsa.RSAPublicKey:
    if not der:
        raise KmsError("ValidationException", "The attestation document has no public key.")
    try:
        key = load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KmsError(
            "ValidationException",
            "The public key of the attestation document cannot be read.",
            detail=str(error),
        ) from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in KEY_BITS:
        raise KmsError(
            "ValidationException",
            f"The public key of the attestation document is not RSA of {KEY_BITS[0]} to {KEY_BITS[-1]} bits.",
        )
    return key
