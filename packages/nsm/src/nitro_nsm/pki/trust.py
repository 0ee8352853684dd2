"""The roots that a verifier trusts: certificates, each known by a name and pinned by its SHA-256."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nitro_nsm.errors import InputError

AWS_FINGERPRINT = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
"""SHA-256 of the root G1 of the partition `aws` ("Verifying the root of trust", AWS Nitro Enclaves guide)."""


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A root certificate that someone has decided to trust."""

    name: str
    """What messages and verified documents call it."""
    certificate: bytes
    """The certificate, DER."""

    @classmethod
    def load(cls, name: str, certificate: bytes) -> Self:
        """Read a root from DER or PEM. Of several certificates in PEM the first one counts.

        Raises:
            InputError: It is neither.
        """
        pem = b"-----BEGIN" in certificate
        try:
            parsed = (x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate)(certificate)
        except ValueError as error:
            raise InputError(
                f"{name} is not a certificate, neither DER nor PEM: {error}",
                hint="`nsm pki export` prints that of the test root",
            ) from error
        return cls(name, parsed.public_bytes(Encoding.DER))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal."""
        return hashlib.sha256(self.certificate).hexdigest()


@cache
def aws_root() -> TrustRoot:
    """The root of the Nitro hardware in the commercial regions of AWS, G1.

    Raises:
        InputError: The installed file is damaged.
    """
    root = TrustRoot("aws", resources.files("nitro_nsm.pki").joinpath("aws_nitro_root_g1.der").read_bytes())
    if root.fingerprint != AWS_FINGERPRINT:
        raise InputError(
            "the installed copy of AWS's root certificate is damaged", hint="install nitro-nsm again"
        )
    return root
