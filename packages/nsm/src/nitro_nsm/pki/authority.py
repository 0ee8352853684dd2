"""Keys and certificates that sign others, and the root: the test root, or an authority of the user's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from nitro_nsm.errors import InputError
from nitro_nsm.pki.certificates import parse
from nitro_nsm.pki.trust import TrustRoot

Entropy = Callable[[int], bytes]
"""Returns as many random bytes as it is asked for."""
Extension = tuple[x509.ExtensionType, bool]
"""An extension, and whether it is critical."""

P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
"""The number n of the curve P-384 (SP 800-186 §3.2.1.4)."""
AUTHORITIES_BELOW_ROOT = 3
ROOT_NAME = (("C", "US"), ("O", "Amazon"), ("OU", "AWS"), ("CN", "aws.nitro-enclaves"))
# The root's dates are those of AWS's own, so that nothing of it depends on the clock that it was made by.
ROOT_NOT_BEFORE = datetime(2019, 10, 28, 13, 28, 5, tzinfo=UTC)
ROOT_NOT_AFTER = datetime(2049, 10, 28, 14, 28, 5, tzinfo=UTC)
NAME_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}


@dataclass(frozen=True, slots=True)
class Authority:
    """A private key, and the certificate that says what it may sign."""

    key: ec.EllipticCurvePrivateKey
    """Signs certificates, or documents if this is a leaf."""
    certificate: x509.Certificate
    """Of `key`."""

    @property
    def der(self) -> bytes:
        """The certificate as documents carry it."""
        return self.certificate.public_bytes(Encoding.DER)

    def issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        serial: int,
        life: tuple[datetime, datetime],
        extensions: Iterable[Extension],
        deterministic: bool = False,
    ) -> "Authority":
        """Make the holder of `key` an authority or a leaf, as `extensions` say.

        Args:
            subject: The name of the new certificate's holder.
            key: The holder's key.
            serial: The certificate's number, positive and at most 20 bytes long (RFC 5280 §4.1.2.2).
            life: The first and the last moment at which the certificate is valid.
            extensions: What the holder may do, and identifiers, in their order.
            deterministic: Sign as in RFC 6979.
        """
        builder = _certificate(
            self.certificate.subject, subject, key, serial=serial, life=life, extensions=extensions
        )
        return Authority(key, builder.sign(self.key, hashes.SHA384(), ecdsa_deterministic=deterministic))


@dataclass(frozen=True, slots=True)
class Root(Authority):
    """Where a chain starts."""

    name: str
    """What a verifier that trusts it calls it."""

    @classmethod
    def create(cls, name: str, *, entropy: Entropy) -> Self:
        """A new root, which differs from AWS's in its key, its serial number and its signature."""
        key = new_key(entropy)
        subject = name_of(ROOT_NAME)
        builder = _certificate(
            subject,
            subject,
            key,
            serial=new_serial(entropy),
            life=(ROOT_NOT_BEFORE, ROOT_NOT_AFTER),
            extensions=(authority_constraint(None), subject_key(key), authority_usage()),
        )
        return cls(key, builder.sign(key, hashes.SHA384()), name)

    @classmethod
    def load(cls, name: str, pem: bytes) -> Self:
        """Read an unencrypted private key and its certificate, one after the other in PEM.

        Raises:
            InputError: They are not there, do not belong together or cannot head a chain.
        """
        try:
            key = load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate(pem)
            parsed = parse(certificate.public_bytes(Encoding.DER))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InputError(
                f"{name} is not a root: {error}",
                hint="give an unencrypted P-384 key and its certificate, both in PEM",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != parsed.key:
            raise InputError(
                f"{name} is not a root: the key is not that of the certificate",
                hint="put the certificate that was made for this key into the file",
            )
        constraints, usage = parsed.basic_constraints, parsed.key_usage
        if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
            raise InputError(
                f"{name} is not a root: its certificate may not sign others",
                hint="it needs basic constraints with CA true, and a key usage with keyCertSign",
            )
        if constraints.path_length is not None and constraints.path_length < AUTHORITIES_BELOW_ROOT:
            raise InputError(
                f"{name} is not a root: it allows {constraints.path_length} authorities below it, "
                f"and a document has {AUTHORITIES_BELOW_ROOT}",
                hint="make its certificate without a path length",
            )
        return cls(key, certificate, name)

    def pem(self) -> bytes:
        """Key and certificate, as `load` reads them."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)

    @property
    def trust(self) -> TrustRoot:
        """What a verifier needs in order to trust it."""
        return TrustRoot(self.name, self.der)


def new_key(entropy: Entropy) -> ec.EllipticCurvePrivateKey:
    """Make a P-384 key of 56 random bytes, 64 bits more than its order has (FIPS 186-5 §A.2.1)."""
    secret = int.from_bytes(entropy(56), "big") % (P384_ORDER - 1) + 1
    return ec.derive_private_key(secret, ec.SECP384R1())


def new_serial(entropy: Entropy, length: int = 16) -> int:
    """A random serial number of at most `length` bytes, positive and at most 2**159 (RFC 5280 §4.1.2.2)."""
    return int.from_bytes(entropy(length), "big") >> (length == 20) or 1


def name_of(parts: Iterable[tuple[str, str]]) -> x509.Name:
    """A distinguished name, in the order given."""
    return x509.Name([x509.NameAttribute(NAME_OIDS[kind], value) for kind, value in parts])


def authority_constraint(path_length: int | None) -> Extension:
    """The right to sign certificates, with at most `path_length` authorities below; `None` sets no limit."""
    return x509.BasicConstraints(ca=True, path_length=path_length), True


def subject_key(key: ec.EllipticCurvePrivateKey) -> Extension:
    """The identifier of the certificate's own key."""
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False


def authority_key(issuer: Authority) -> Extension:
    """The identifier of the issuer's key, as its certificate gives it."""
    identifier = parse(issuer.der).subject_key
    if identifier is None:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False
    return x509.AuthorityKeyIdentifier(identifier, None, None), False


def authority_usage() -> Extension:
    """What the root, the regional and the zonal key are for."""
    return key_usage(digital_signature=True, key_cert_sign=True, crl_sign=True), True


def key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    """A key usage of those that Nitro's certificates know."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    serial: int,
    life: tuple[datetime, datetime],
    extensions: Iterable[Extension],
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), serial, *life)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder
