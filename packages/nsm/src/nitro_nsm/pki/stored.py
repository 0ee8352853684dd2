"""The test root in the form that it is stored in, which tells its fingerprint before anybody needs its key.

An enclave's name is made of the fingerprint of the root, and most enclaves are started long before they ask
for a document, if they ever do. So what takes cryptography waits until then.
"""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, NamedTuple, Self

from nitro_nsm.errors import InputError

if TYPE_CHECKING:
    from nitro_nsm.pki.authority import Root

LABELS = ("PRIVATE KEY", "CERTIFICATE")
SEQUENCE_OF_256_OR_MORE = b"\x30\x82"
"""How a DER sequence begins whose length takes two bytes (X.690 §8.1.3.5), as those of certificates do."""


class StoredRoot(NamedTuple):
    """The PEM of the test root."""

    name: str
    """What a verifier that trusts it calls it."""
    pem: bytes
    """Key and certificate, as `Root.load` reads them."""
    fingerprint: str
    """SHA-256 of the certificate, in hexadecimal."""

    @classmethod
    def of(cls, name: str, pem: bytes) -> Self | None:
        """A root that looks as those do that this package has written; `None` if it does not.

        `Root.load` finds out what is wrong with it then, if anything is.
        """
        blocks = [_block(pem, label) for label in LABELS]
        if pem.count(b"-----BEGIN ") != len(LABELS) or not all(blocks):
            return None
        certificate = blocks[1]
        length = int.from_bytes(certificate[2:4], "big")
        if certificate[:2] != SEQUENCE_OF_256_OR_MORE or len(certificate) != 4 + length:
            return None
        return cls(name, pem, hashlib.sha256(certificate).hexdigest())

    def load(self) -> "Root":
        """The root itself.

        Raises:
            InputError: It is none.
        """
        from nitro_nsm.pki.authority import Root  # noqa: PLC0415 - takes cryptography

        try:
            return Root.load(self.name, self.pem)
        except InputError as error:
            raise InputError(str(error), hint="`nsm pki rotate` makes a new one") from error


def _block(pem: bytes, label: str) -> bytes:
    """The bytes of a block of PEM (RFC 7468 §2); none if there is no such block."""
    begin, end = (f"-----{word} {label}-----\n".encode() for word in ("BEGIN", "END"))
    _, found, rest = pem.partition(begin)
    text, ended, _ = rest.partition(end)
    try:
        return base64.b64decode(text.replace(b"\n", b""), validate=True) if found and ended else b""
    except binascii.Error:
        return b""
