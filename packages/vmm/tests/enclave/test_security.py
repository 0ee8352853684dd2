"""Which registers an enclave's documents have, and whose root they are signed under."""

import os
from pathlib import Path

import pytest

from nitro_eif import Measurements
from nitro_nsm import NsmClient, ensure_test_root, parse_document
from nitro_vmm import EnclaveConfig, HostError, UsageError
from nitro_vmm.enclave.security import security_module, signing_root, trust_of

# The bounds as they are promised, so that those of the program are held against them.
PEM_BYTES_MAX = 65536

PCR0, PCR1, PCR2, PCR8 = (bytes((number,)) * 48 for number in (10, 11, 12, 18))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnclaveConfig:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return EnclaveConfig(eif_path=tmp_path / "image")


def registers(config: EnclaveConfig, pcr8: bytes | None) -> dict[int, bytes]:
    nsm = security_module(config, Measurements(pcr0=PCR0, pcr1=PCR1, pcr2=PCR2, pcr8=pcr8))
    return dict(parse_document(NsmClient(nsm.handle).attest()).pcrs)


@pytest.mark.parametrize("pcr8", [None, PCR8])
def test_the_images_measurements_are_in_their_registers(config: EnclaveConfig, pcr8: bytes | None) -> None:
    found = registers(config, pcr8)

    assert (found[0], found[1], found[2], found[8]) == (PCR0, PCR1, PCR2, pcr8 or bytes(48))


def test_in_debug_mode_they_are_zero(config: EnclaveConfig) -> None:
    found = registers(config.model_copy(update={"debug_mode": True}), PCR8)

    assert {found[index] for index in (0, 1, 2, 8)} == {bytes(48)}


def test_a_root_whose_certificate_is_in_a_file_of_its_own(config: EnclaveConfig, tmp_path: Path) -> None:
    root = ensure_test_root()
    key, _, certificate = root.pem().partition(b"-----BEGIN CERTIFICATE")
    (tmp_path / "key").write_bytes(key.rstrip())
    (tmp_path / "certificate").write_bytes(b"-----BEGIN CERTIFICATE" + certificate)

    found = trust_of(
        config.model_copy(update={"root_key": tmp_path / "key", "root_cert": tmp_path / "certificate"})
    )

    assert found.fingerprint == root.trust.fingerprint


def test_a_root_that_is_no_file(config: EnclaveConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(UsageError, match="not a regular file"):
        signing_root(config.model_copy(update={"root_key": tmp_path / "pipe"}))
    with pytest.raises(HostError, match="No such file"):
        signing_root(config.model_copy(update={"root_key": tmp_path / "absent"}))


def test_a_root_that_is_too_long_is_none(config: EnclaveConfig, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * PEM_BYTES_MAX * 2)

    with pytest.raises(UsageError) as caught:
        signing_root(config.model_copy(update={"root_key": tmp_path / "long"}))

    assert caught.value.code == "M25"
