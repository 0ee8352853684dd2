"""The certificates of one enclave, which look like those of Nitro hardware.

    root        aws.nitro-enclaves                              30 years
    regional    <16 hex>.<region>.aws.nitro-enclaves            20 days and an hour
    zonal       <16 hex>.zonal.<region>.aws.nitro-enclaves      5 days and 16 hours
    instance    <instance id>.<region>.aws.nitro-enclaves       a day
    leaf        <module id>.<region>.aws                        3 hours and 3 seconds

Subjects, serial numbers, lifetimes and extensions, and the order of each, are those of documents from 2024 to
2026; hardware gives the zonal certificate some hours more or less.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nitro_nsm.pki.authority import (
    AUTHORITIES_BELOW_ROOT,
    Authority,
    Entropy,
    Extension,
    Root,
    authority_constraint,
    authority_key,
    authority_usage,
    key_usage,
    name_of,
    new_key,
    new_serial,
    subject_key,
)

SHORT_NAME = (("C", "US"), ("O", "Amazon"), ("OU", "AWS"))
LONG_NAME = (("C", "US"), ("ST", "Washington"), ("L", "Seattle"), ("O", "Amazon"), ("OU", "AWS"))
ZONAL_NAME_END = (("OU", "AWS"), ("O", "Amazon"), ("C", "US"), ("ST", "WA"), ("L", "Seattle"))
ROOT_CRL = "http://aws-nitro-enclaves-crl.s3.amazonaws.com/crl/{uuid}.crl"
REGIONAL_CRL = "http://crl-{region}-aws-nitro-enclaves.s3.{region}.amazonaws.com/crl/{uuid}.crl"


class Life(NamedTuple):
    """How long a certificate lives, and how much of that lies before the moment at which it is made."""

    before: timedelta
    after: timedelta


REGIONAL_LIFE = Life(timedelta(hours=1), timedelta(days=20))
ZONAL_LIFE = Life(timedelta(hours=1), timedelta(days=5, hours=15))
INSTANCE_LIFE = Life(timedelta(minutes=1), timedelta(hours=23, minutes=59))
LEAF_LIFE = Life(timedelta(seconds=3), timedelta(hours=3))


class Credentials(NamedTuple):
    """What a document is signed with."""

    key: ec.EllipticCurvePrivateKey
    """The leaf's key."""
    certificate: bytes
    """The leaf, DER."""
    cabundle: tuple[bytes, ...]
    """The certificates above it (DER), from the root down."""


class Issuer:
    """Keeps an enclave's chain, and renews those of its certificates that run out.

    Args:
        root: What the chain starts with.
        region: Where the enclave says that it runs.
        instance_id: The parent instance.
        enclave_id: 16 hexadecimal digits.
        entropy: Returns as many random bytes as it is asked for; keys and serial numbers are made of them.
        deterministic: Sign as in RFC 6979, so that the same entropy and times give the same certificates.
    """

    def __init__(
        self,
        root: Root,
        *,
        region: str,
        instance_id: str,
        enclave_id: str,
        entropy: Entropy,
        deterministic: bool = False,
    ) -> None:
        self._root = root
        self._region = region
        self._instance_id = instance_id
        self._enclave_id = enclave_id
        self._entropy = entropy
        self._deterministic = deterministic
        self._links: list[Authority] = []
        self._current: Credentials | None = None
        self._current_lives_s = range(0)

    def credentials(self, now_s: int) -> Credentials:
        """The leaf's key and the chain at `now_s`, in seconds since 1970.

        They stay the same until the leaf expires, because hardware keeps its leaf as long.
        """
        if self._current is None or now_s not in self._current_lives_s:
            self._renew(datetime.fromtimestamp(now_s, UTC))
            *above, leaf = self._links
            self._current = Credentials(leaf.key, leaf.der, (self._root.der, *(link.der for link in above)))
            # Without the last second: the leaf is valid at its beginning only, and the clock has fractions.
            self._current_lives_s = range(
                int(leaf.certificate.not_valid_before_utc.timestamp()),
                int(leaf.certificate.not_valid_after_utc.timestamp()),
            )
        return self._current

    def _renew(self, now: datetime) -> None:
        """Make a new leaf, after the uppermost authority that would not outlive it and all below that."""
        issuer: Authority = self._root
        for position, make in enumerate((self._regional, self._zonal, self._instance)):
            if len(self._links) <= position or not _outlives_leaf(self._links[position].certificate, now):
                self._links[position:] = [make(issuer, now)]
            issuer = self._links[position]
        self._links[AUTHORITIES_BELOW_ROOT:] = [self._leaf(issuer, now)]

    def _regional(self, issuer: Authority, now: datetime) -> Authority:
        key = new_key(self._entropy)
        common_name = f"{self._entropy(8).hex()}.{self._region}.aws.nitro-enclaves"
        return self._issue(
            issuer,
            name_of((*SHORT_NAME, ("CN", common_name))),
            key,
            serial=new_serial(self._entropy),
            now=now,
            life=REGIONAL_LIFE,
            extensions=(
                authority_constraint(2),
                authority_key(issuer),
                subject_key(key),
                authority_usage(),
                self._revocations(ROOT_CRL),
            ),
        )

    def _zonal(self, issuer: Authority, now: datetime) -> Authority:
        key = new_key(self._entropy)
        common_name = f"{self._entropy(8).hex()}.zonal.{self._region}.aws.nitro-enclaves"
        return self._issue(
            issuer,
            name_of((("CN", common_name), *ZONAL_NAME_END)),
            key,
            serial=new_serial(self._entropy),
            now=now,
            life=ZONAL_LIFE,
            extensions=(
                authority_constraint(1),
                authority_key(issuer),
                subject_key(key),
                authority_usage(),
                self._revocations(REGIONAL_CRL),
            ),
        )

    def _instance(self, issuer: Authority, now: datetime) -> Authority:
        key = new_key(self._entropy)
        common_name = f"{self._instance_id}.{self._region}.aws.nitro-enclaves"
        return self._issue(
            issuer,
            name_of((*LONG_NAME, ("CN", common_name))),
            key,
            serial=new_serial(self._entropy, 20),
            now=now,
            life=INSTANCE_LIFE,
            extensions=(
                authority_constraint(0),
                (key_usage(key_cert_sign=True), True),
                subject_key(key),
                authority_key(issuer),
            ),
        )

    def _leaf(self, issuer: Authority, now: datetime) -> Authority:
        common_name = f"{self._instance_id}-enc{self._enclave_id}.{self._region}.aws"
        return self._issue(
            issuer,
            name_of((*LONG_NAME, ("CN", common_name))),
            new_key(self._entropy),
            serial=int(self._enclave_id, 16) << 64 | int(now.timestamp()),
            now=now,
            life=LEAF_LIFE,
            extensions=(
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (key_usage(digital_signature=True, content_commitment=True), False),
            ),
        )

    def _issue(
        self,
        issuer: Authority,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        serial: int,
        now: datetime,
        life: Life,
        extensions: tuple[Extension, ...],
    ) -> Authority:
        return issuer.issue(
            subject,
            key,
            serial=serial,
            life=(now - life.before, now + life.after),
            extensions=extensions,
            deterministic=self._deterministic,
        )

    def _revocations(self, form: str) -> Extension:
        """A list of the form that hardware names; there is nothing behind it."""
        url = form.format(region=self._region, uuid=UUID(bytes=self._entropy(16), version=4))
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
        return x509.CRLDistributionPoints([point]), False


def _outlives_leaf(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate is valid now and still will be when a leaf that is made now ends."""
    return (
        certificate.not_valid_before_utc <= now and now + LEAF_LIFE.after <= certificate.not_valid_after_utc
    )
