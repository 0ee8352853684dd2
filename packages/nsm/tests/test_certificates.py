"""Chains that are almost right."""

import os
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nitro_nsm import DocumentError, Step
from nitro_nsm.pki.authority import (
    P384_ORDER,
    Authority,
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
from nitro_nsm.pki.chain import verify_chain
from nitro_nsm.testing import seeded_entropy

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LIFE = (NOW - timedelta(hours=1), NOW + timedelta(hours=1))
LEAF_USAGE = (key_usage(digital_signature=True), False)
NO_AUTHORITY = (x509.BasicConstraints(ca=False, path_length=None), True)


def child(
    issuer: Authority,
    *extensions: Extension,
    name: str = "child",
    life: tuple[datetime, datetime] = LIFE,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Authority:
    return issuer.issue(
        name_of([("CN", name)]),
        key or new_key(os.urandom),
        serial=7,
        life=life,
        extensions=extensions,
    )


def refusal(*chain: bytes, at: datetime = NOW) -> str:
    with pytest.raises(DocumentError) as caught:
        verify_chain(chain, at=at)
    assert caught.value.step is Step.CERTIFICATES
    return str(caught.value)


def test_a_new_root_has_the_name_and_the_life_of_awss(root: Root) -> None:
    certificate = root.certificate

    assert certificate.subject.rfc4514_string() == "CN=aws.nitro-enclaves,OU=AWS,O=Amazon,C=US"
    assert certificate.issuer == certificate.subject
    assert certificate.not_valid_before_utc == datetime(2019, 10, 28, 13, 28, 5, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(2049, 10, 28, 14, 28, 5, tzinfo=UTC)
    assert isinstance(root.key.curve, ec.SECP384R1)


@pytest.mark.parametrize(
    ("random", "length", "serial"),
    [
        (b"\xff" * 16, 16, 2**128 - 1),
        (b"\xff" * 20, 20, 2**159 - 1),
        (b"\xff" * 19, 19, 2**152 - 1),
        (bytes(16), 16, 1),
        (bytes(20), 20, 1),
    ],
)
def test_a_serial_number_is_positive_and_no_longer_than_is_allowed(
    random: bytes, length: int, serial: int
) -> None:
    assert new_serial(lambda count: random[:count], length) == serial


@pytest.mark.parametrize(("secret", "scalar"), [(0, 1), (1, 2), (P384_ORDER - 1, 1), (P384_ORDER, 2)])
def test_a_key_is_never_zero_nor_the_curves_order(secret: int, scalar: int) -> None:
    key = new_key(lambda count: secret.to_bytes(count, "big"))

    assert key.private_numbers().private_value == scalar


def test_the_curves_order_is_that_of_the_standard() -> None:
    """SP 800-186 §3.2.1.4: n times a point is nothing, so the keys n-1 and 1 differ in a sign only."""
    one, last = (ec.derive_private_key(n, ec.SECP384R1()) for n in (1, P384_ORDER - 1))

    points = [key.public_key().public_numbers() for key in (one, last)]
    assert points[0].x == points[1].x
    assert points[0].y != points[1].y


@pytest.fixture
def authority(root: Root) -> Authority:
    return child(root, authority_constraint(0), authority_usage(), name="authority")


def test_a_chain_that_is_right(root: Root, authority: Authority) -> None:
    leaf = child(authority, NO_AUTHORITY, LEAF_USAGE)

    assert verify_chain([root.der, authority.der, leaf.der], at=NOW).key == leaf.key.public_key()
    verify_chain([root.der, child(root, LEAF_USAGE).der], at=NOW)


def test_the_leaf(root: Root, authority: Authority) -> None:
    def said(*extensions: Extension) -> str:
        return refusal(root.der, authority.der, child(authority, *extensions).der)

    assert "may not sign documents" in said(NO_AUTHORITY)
    assert "may not sign documents" in said(NO_AUTHORITY, (key_usage(content_commitment=True), True))
    assert "is that of an authority" in said(authority_constraint(0), authority_usage())
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    assert "critical extension that is not known: 1.2.3.4" in said(NO_AUTHORITY, LEAF_USAGE, (unknown, True))
    constraint = x509.NameConstraints([x509.DNSName("example.com")], None)
    assert "critical extension that is not known" in said(NO_AUTHORITY, LEAF_USAGE, (constraint, True))


@pytest.mark.parametrize("serial", [0, 1])
def test_serial_numbers_are_positive(root: Root, serial: int) -> None:
    leaf = child(root, NO_AUTHORITY, LEAF_USAGE).der
    numbered = leaf.replace(b"\2\1\7", bytes([2, 1, serial]), 1)
    assert numbered != leaf

    with pytest.raises(DocumentError) as caught, warnings.catch_warnings(action="ignore"):
        verify_chain([root.der, numbered], at=NOW)

    assert ("has a serial number that is not positive" in str(caught.value)) is (serial == 0)


def test_authorities(root: Root) -> None:
    def said(*extensions: Extension) -> str:
        middle = child(root, *extensions, name="authority")
        return refusal(root.der, middle.der, child(middle, LEAF_USAGE).der)

    assert "cabundle[1] is not that of an authority" in said(authority_usage())
    assert "cabundle[1] is not that of an authority" in said(NO_AUTHORITY, authority_usage())
    assert "cabundle[1] may not sign certificates" in said(authority_constraint(0))
    assert "cabundle[1] may not sign certificates" in said(authority_constraint(0), LEAF_USAGE)


def test_the_length_of_the_path(root: Root) -> None:
    first = child(root, authority_constraint(0), authority_usage(), name="first")
    second = child(first, authority_constraint(0), authority_usage(), name="second")

    assert "cabundle[1] allows 0 authorities below it and has 1" in refusal(
        root.der, first.der, second.der, child(second, LEAF_USAGE).der
    )


def test_order_and_completeness(root: Root, authority: Authority) -> None:
    leaf = child(authority, LEAF_USAGE)

    assert "was not issued by the one before it" in refusal(root.der, leaf.der)
    assert "cabundle[1] is not that of an authority" in refusal(root.der, leaf.der, authority.der)
    assert "there are none" in refusal()


def test_a_signature_by_another_key_of_the_same_name(root: Root, authority: Authority) -> None:
    twin = child(
        root, authority_constraint(0), authority_usage(), name="authority", key=new_key(seeded_entropy(77))
    )

    assert "is not signed by the one before it" in refusal(
        root.der, authority.der, child(twin, LEAF_USAGE).der
    )


def test_key_identifiers_must_agree_where_both_are_there(root: Root) -> None:
    key = new_key(seeded_entropy(78))
    authority = child(
        root, authority_constraint(0), authority_usage(), subject_key(key), name="authority", key=key
    )
    good = child(authority, LEAF_USAGE, authority_key(authority))
    bad = child(authority, LEAF_USAGE, authority_key(root))

    verify_chain([root.der, authority.der, good.der], at=NOW)
    assert "names another key" in refusal(root.der, authority.der, bad.der)


def test_dates(root: Root) -> None:
    early, late = (
        child(root, LEAF_USAGE, life=(NOW + shift, NOW + shift + timedelta(hours=1))).der
        for shift in (timedelta(hours=-2), timedelta(hours=2))
    )

    assert "the document's certificate expired on 2026-11-22T23:00:00Z" in refusal(root.der, early)
    assert "the document's certificate is not valid before 2026-11-23T02:00:00Z" in refusal(root.der, late)


def test_keys_and_signatures_of_another_kind(root: Root) -> None:
    def leaf(key: ec.EllipticCurvePrivateKey, hash_: hashes.SHA256 | hashes.SHA384) -> bytes:
        builder = x509.CertificateBuilder(
            root.certificate.subject, name_of([("CN", "leaf")]), key.public_key(), 1, *LIFE
        )
        extension, critical = LEAF_USAGE
        return (
            builder.add_extension(extension, critical=critical)
            .sign(root.key, hash_)
            .public_bytes(Encoding.DER)
        )

    assert "a key that is not P-384" in refusal(
        root.der, leaf(ec.generate_private_key(ec.SECP256R1()), hashes.SHA384())
    )
    assert "not signed with ECDSA and SHA-384" in refusal(
        root.der, leaf(new_key(seeded_entropy(79)), hashes.SHA256())
    )


@pytest.mark.parametrize("der", [b"\0", b"0\x80", bytes(64)])
def test_what_is_no_certificate(root: Root, der: bytes) -> None:
    assert "the document's certificate cannot be read" in refusal(root.der, der)


def test_something_after_a_certificate(root: Root) -> None:
    assert "cannot be read" in refusal(root.der, child(root, LEAF_USAGE).der + b"\0")
