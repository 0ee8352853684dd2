"""Certificates for HTTPS: a local authority in the user's data directory, and what it issues to a KMS.

Clients connect to `kms.REGION.amazonaws.com` and check that name, so a local KMS needs a certificate for
it, from an authority that the client is told to trust (`AWS_CA_BUNDLE`). The authority is made on first
use. Its key stays in a file of its owner's, because who has it can pose as any AWS service to those who
trust it.
"""

import ipaddress
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nitro_nsm.errors import HostError, InputError
from nitro_nsm.pki.authority import key_usage
from nitro_nsm.pki.store import data_directory

FILE_NAME = "kms-authority.pem"
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
CLOCK_SKEW = timedelta(days=1)
"""Guests' clocks may be behind."""


def authority_path(directory: Path | None = None) -> Path:
    """The file with the authority's key and certificate, by default in `data_directory`."""
    return (directory or data_directory()) / FILE_NAME


def authority_pem(directory: Path | None = None) -> bytes:
    """The authority's certificate, for clients to trust; it is made now if there is none.

    Raises:
        InputError: The file is damaged.
        HostError: The file can be neither read nor made.
    """
    _, certificate = _authority(directory)
    return certificate.public_bytes(Encoding.PEM)


def server_context(
    region: str, *, names: tuple[str, ...] = (), directory: Path | None = None
) -> ssl.SSLContext:
    """What a server needs to speak HTTPS as the KMS of a region.

    Args:
        region: Such as `us-east-1`.
        names: More host names or IP addresses under which clients find it.
        directory: Where the authority is kept.

    Raises:
        InputError: The authority's file is damaged.
        HostError: It can be neither read nor made.
    """
    key, certificate = _authority(directory)
    own = ec.generate_private_key(ec.SECP256R1())
    hosts = (f"kms.{region}.amazonaws.com", f"kms-fips.{region}.amazonaws.com", "localhost", *names)
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
    alternatives: list[x509.GeneralName] = [*map(x509.DNSName, hosts), *addresses]
    now = datetime.now(UTC)
    issued = (
        _builder(hosts[0], own, now, SERVER_LIFE)
        .issuer_name(certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.NamedTemporaryFile() as file:  # the ssl module reads keys from files only
        file.write(_pem(own) + issued.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _authority(directory: Path | None) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path = authority_path(directory)
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(path)
        pem = path.read_bytes()
    except OSError as error:
        raise HostError(f"the authority for HTTPS cannot be kept: {error}") from error
    try:
        key, certificate = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}", hint="remove it, and a new one is made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} has another kind of key", hint="remove it, and a new one is made")
    return key, certificate


def _make(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = "nitro-nsm local KMS"
    certificate = (
        _builder(name, key, datetime.now(UTC), AUTHORITY_LIFE)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        new = Path(directory, "new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_pem(key) + certificate.public_bytes(Encoding.PEM))
        if not path.exists():
            new.replace(path)


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
