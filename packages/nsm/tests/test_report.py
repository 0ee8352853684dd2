"""Certificates as data, for people who look at them."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from nitro_nsm.commands.report import certificate_json
from nitro_nsm.pki.authority import Extension, Root, key_usage, name_of, new_key
from nitro_nsm.testing import seeded_entropy

NOW = datetime(2026, 11, 26, tzinfo=UTC)
ROOT = Root.create("test", entropy=seeded_entropy(31))


def shown(extension: Extension) -> dict[str, object]:
    """How an extension of a certificate is shown."""
    key = new_key(seeded_entropy(32))
    life = (NOW, NOW + timedelta(hours=1))
    child = ROOT.issue(name_of([("CN", "child")]), key, serial=255, life=life, extensions=[extension])
    described = certificate_json(child.der)
    assert (described["subject"], described["serial"]) == ("CN=child", "ff")
    (found,) = described["extensions"]
    return dict(found)


@pytest.mark.parametrize(
    ("extension", "found"),
    [
        ((x509.BasicConstraints(ca=True, path_length=1), True), {"ca": True, "path_length": 1}),
        ((key_usage(digital_signature=True), False), ["digital_signature"]),
        ((x509.SubjectKeyIdentifier(b"\xab\xcd"), False), "abcd"),
        ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True), "0500"),
        ((x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3")]), False), "300406022a03"),
    ],
)
def test_each_kind_of_extension(extension: Extension, found: object) -> None:
    oid, critical, value = shown(extension).values()

    assert (oid, critical, value) == (extension[0].oid.dotted_string, extension[1], found)


def test_distribution_points_are_their_addresses() -> None:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl")], None, None, None)
    nameless = x509.DistributionPoint(None, None, None, [x509.DNSName("issuer")])

    found = shown((x509.CRLDistributionPoints([point, nameless]), False))

    assert found["crl_distribution_points"] == ["http://crl"]


def test_what_is_no_certificate_is_said() -> None:
    found = certificate_json(b"\1\2")

    assert found["der"] == "0102"
    assert "cannot be read" in found["error"]
