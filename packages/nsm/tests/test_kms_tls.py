"""The certificates of a KMS for HTTPS: those that strict clients accept, and for how long."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from nitro_nsm.kms.tls import authority_pem, server_context

DAY = timedelta(days=1)
Lifetime = tuple[timedelta, timedelta]


def presented(directory: Path) -> x509.Certificate:
    """What a KMS shows to a client that trusts the authority."""
    server_side = server_context("eu-west-1", names=("kms.test",), directory=directory)
    client_side = ssl.create_default_context(cadata=authority_pem(directory).decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname="kms.test")
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def life_of(certificate: x509.Certificate) -> Lifetime:
    """How long before now it began, and how long from now it lasts."""
    now = datetime.now(UTC)
    return now - certificate.not_valid_before_utc, certificate.not_valid_after_utc - now


def criticalities(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, bool]:
    return {extension.oid: extension.critical for extension in certificate.extensions}


@pytest.fixture
def authority(tmp_path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority_pem(tmp_path))


def test_a_server_is_a_server_for_a_year_and_guests_whose_clock_is_behind(tmp_path: Path) -> None:
    server = presented(tmp_path)

    began, ends = life_of(server)
    assert DAY <= began < 1.1 * DAY
    assert 364.9 * DAY < ends <= 365 * DAY
    constraints = server.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)


def test_an_authority_signs_servers_only_and_for_ten_years(authority: x509.Certificate) -> None:
    began, ends = life_of(authority)

    assert DAY <= began < 1.1 * DAY
    assert 3649.9 * DAY < ends <= 3650 * DAY
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature, usage.crl_sign) == (True, False, False)


def test_what_is_critical_is_what_rfc_5280_wants(tmp_path: Path, authority: x509.Certificate) -> None:
    assert criticalities(authority) == {
        ExtensionOID.BASIC_CONSTRAINTS: True,
        ExtensionOID.KEY_USAGE: True,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    }
    assert criticalities(presented(tmp_path)) == {
        ExtensionOID.BASIC_CONSTRAINTS: True,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
        ExtensionOID.EXTENDED_KEY_USAGE: False,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    }
