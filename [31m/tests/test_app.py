"""The application, as its clients see it. Each test has an enclave of its own, which has booted."""

import secrets
from datetime import UTC, datetime

import cbor2
import pytest

from nitro_nsm import DocumentError, read_test_root, verify


@pytest.fixture
def enclave(nitro_enclave):
    """The enclave, whose application is ready."""
    nitro_enclave.wait_for_output(b"ready", timeout_s=60)
    return nitro_enclave


def ask(enclave, nonce):
    """A document with this nonce."""
    with enclave.connect(5000) as connection:
        connection.sendall(nonce)
        reply = connection.makefile("rb").read()
    return cbor2.loads(reply)["Attestation"]["document"]


def test_the_enclave_proves_what_it_runs(enclave):
    nonce = secrets.token_bytes(32)

    document = ask(enclave, nonce)

    believed = verify(document, at=datetime.now(UTC), root=read_test_root().trust, nonce=nonce)
    assert believed.pcrs[0] == enclave.measurements.pcr0
    with pytest.raises(DocumentError, match="nonce"):
        verify(document, at=datetime.now(UTC), root=read_test_root().trust, nonce=secrets.token_bytes(32))


def test_who_sends_too_little_gets_nothing(enclave):
    with enclave.connect(5000) as connection:
        connection.sendall(b"too little")
        connection.shutdown(1)

        assert connection.recv(1) == b""
