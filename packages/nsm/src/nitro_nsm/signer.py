"""What makes a module's documents: the enclave's certificates, and the signature."""

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm.cose import sign1
from nitro_nsm.document import DIGEST, AttestationDocument, encode_payload
from nitro_nsm.identity import Identity
from nitro_nsm.pki.authority import Root
from nitro_nsm.pki.issuer import Issuer


class Signer:
    """Signs the documents of one enclave.

    Args:
        root: What its certificates are issued under.
        identity: Whose documents they are.
        entropy: Returns as many random bytes as it is asked for.
        deterministic: Sign as in RFC 6979.
    """

    def __init__(
        self, root: Root, identity: Identity, *, entropy: Callable[[int], bytes], deterministic: bool
    ) -> None:
        self._identity = identity
        self._issuer = Issuer(
            root,
            region=identity.region,
            instance_id=identity.instance_id,
            enclave_id=identity.enclave_id,
            entropy=entropy,
            deterministic=deterministic,
        )
        self._ecdsa = ec.ECDSA(hashes.SHA384(), deterministic_signing=deterministic)

    def sign(
        self,
        pcrs: Mapping[int, bytes],
        *,
        now_ms: int,
        public_key: bytes | None,
        user_data: bytes | None,
        nonce: bytes | None,
    ) -> bytes:
        """A document, as a signed COSE message.

        Args:
            pcrs: The registers that are locked, by index.
            now_ms: The time, in milliseconds since 1970.
            public_key: What the enclave gave for this field.
            user_data: The same.
            nonce: The same.
        """
        credentials = self._issuer.credentials(now_ms // 1000)
        document = AttestationDocument(
            module_id=self._identity.module_id,
            digest=DIGEST,
            timestamp_ms=now_ms,
            pcrs=pcrs,
            certificate=credentials.certificate,
            cabundle=credentials.cabundle,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
            payload_map=self._identity.payload_map,
            unknown=(),
        )
        return sign1(encode_payload(document), credentials.key, self._ecdsa)
