"""Verifiers that others have written accept our documents as they accept hardware's, but for the root."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nitro_nsm import Nsm, NsmClient, NsmConfig, Root, aws_root, ensure_test_root

PCRS = {index: bytes([index + 1]) * 48 for index in (0, 1, 2)}
REAL = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "attestation" / "aws-26-2026-08-03.cose"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return ensure_test_root(tmp_path)


@pytest.fixture
def document(root: Root) -> bytes:
    return NsmClient(Nsm(NsmConfig(pcrs=PCRS), root=root).handle).attest(
        nonce=b"nonce", user_data=b'{"said": 1}', public_key=b"key"
    )


def pem(directory: Path, certificate: bytes) -> str:
    path = directory / "root.pem"
    path.write_bytes(x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
    return str(path)


def test_epsilon_accepts_our_root_where_it_is_told_to(tmp_path: Path, document: bytes, root: Root) -> None:
    epsilon = pytest.importorskip(
        "epsilon_verifier", reason="pip install epsilon-attestation-verifier, an independent verifier"
    )
    result = epsilon.verify_attestation(
        base64.b64encode(document).decode(),
        **{f"expected_pcr{index}": value.hex() for index, value in PCRS.items()},
        aws_root_cert_path=pem(tmp_path, root.der),
    )

    assert result.valid, result.error
    assert (result.certificate_chain_valid, result.aws_signature_valid, result.pcr_verified) == (
        True,
        True,
        True,
    )
    assert result.user_data == {"said": 1}


def test_epsilon_refuses_us_under_awss_root(tmp_path: Path, document: bytes) -> None:
    epsilon = pytest.importorskip(
        "epsilon_verifier", reason="pip install epsilon-attestation-verifier, an independent verifier"
    )
    result = epsilon.verify_attestation(
        base64.b64encode(document).decode(), aws_root_cert_path=pem(tmp_path, aws_root().certificate)
    )

    assert not result.valid
    assert result.error == "Certificate chain verification failed"


def refusal_of_evervault(document: bytes) -> str:
    """What the verifier of Evervault, which has AWS's root in its code, says about a document."""
    evervault = pytest.importorskip(
        "evervault_attestation_bindings",
        reason="pip install evervault-attestation-bindings, an independent verifier",
    )
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an enclave's server")])
    now = datetime.now(UTC)
    tls = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    with pytest.raises(ValueError, match="validating") as caught:
        evervault.attest_enclave(tls.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), [], document)
    return str(caught.value)


def test_evervault_gets_as_far_as_the_root(document: bytes) -> None:
    assert refusal_of_evervault(document).endswith("UnknownIssuer")


def test_evervault_gets_further_with_a_real_document_that_has_expired() -> None:
    if not REAL.exists():
        pytest.skip(f"there is no {REAL}")
    assert refusal_of_evervault(REAL.read_bytes()).endswith("CertExpired")
