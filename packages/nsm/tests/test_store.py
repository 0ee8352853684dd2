"""The test root's file: made once, whole, and for its owner only."""

import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from nitro_nsm import HostError, InputError, Root, ensure_test_root, read_test_root, rotate_test_root
from nitro_nsm.pki.authority import key_usage, new_key
from nitro_nsm.pki.store import data_directory, root_path
from nitro_nsm.testing import seeded_entropy


def test_the_directory_is_that_of_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert data_directory() == Path("/home/someone/.local/share/nitro-nsm")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert data_directory() == Path("/home/someone/.local/share/nitro-nsm")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert data_directory() == Path("/data/nitro-nsm")


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no test root yet"):
        read_test_root(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_root_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "nitro-nsm"

    made = ensure_test_root(directory)

    assert ensure_test_root(directory).der == made.der == read_test_root(directory).der
    assert stat.S_IMODE(root_path(directory).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert list(directory.iterdir()) == [root_path(directory)]


def test_processes_that_start_together_agree_on_the_root(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from nitro_nsm import ensure_test_root; print('ready', flush=True); "
        "sys.stdin.readline(); print(ensure_test_root(pathlib.Path(sys.argv[1])).trust.fingerprint)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    fingerprints = {process.communicate()[0] for process in processes}

    assert fingerprints == {read_test_root(tmp_path).trust.fingerprint + "\n"}
    assert list(tmp_path.iterdir()) == [root_path(tmp_path)]


def test_rotation_replaces_the_root(tmp_path: Path) -> None:
    old = ensure_test_root(tmp_path)

    new = rotate_test_root(tmp_path)

    assert new.der != old.der
    assert read_test_root(tmp_path).der == new.der
    assert list(tmp_path.iterdir()) == [root_path(tmp_path)]


def test_a_damaged_file_is_reported_with_its_remedy(tmp_path: Path) -> None:
    root_path(tmp_path).write_bytes(b"damaged")

    with pytest.raises(InputError, match=r"test-root\.pem: ") as caught:
        ensure_test_root(tmp_path)

    assert "nsm pki rotate" in caught.value.hint


def test_a_directory_that_cannot_be_made_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match="cannot be made") as caught:
        ensure_test_root(tmp_path / "file" / "directory")

    assert "XDG_DATA_HOME" in caught.value.hint


def own_root(
    *,
    path_length: int | None = 3,
    usage: x509.KeyUsage | None = None,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> bytes:
    """A root as a user would make it with other tools."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "our own")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage or key_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("path_length", [None, 3, 7])
def test_an_own_root_heads_chains_that_verify(path_length: int | None) -> None:
    import cbor2

    from nitro_nsm import Nsm, NsmConfig, verify

    root = Root.load("mine", own_root(path_length=path_length))
    reply = cbor2.loads(Nsm(NsmConfig(), root=root).handle(cbor2.dumps({"Attestation": {}})))

    assert verify(reply["Attestation"]["document"], at=datetime.now(UTC), root=root.trust).root == "mine"


def test_what_is_no_root_is_refused_with_the_reason() -> None:
    good = own_root()
    other = own_root()
    key, certificate = good.split(b"-----BEGIN CERTIFICATE")
    encrypted = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    for pem, why in (
        (b"", "is not a root"),
        (key, "is not a root"),
        (b"-----BEGIN CERTIFICATE" + certificate, "is not a root"),
        (
            other.split(b"-----BEGIN CERTIFICATE")[0] + b"-----BEGIN CERTIFICATE" + certificate,
            "the key is not that",
        ),
        (encrypted + b"-----BEGIN CERTIFICATE" + certificate, "is not a root"),
        (own_root(path_length=2), "allows 2 authorities"),
        (own_root(usage=key_usage(digital_signature=True)), "may not sign others"),
        (own_root(key=ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (own_root(key=rsa.generate_private_key(65537, 2048)), "ECDSA"),
    ):
        with pytest.raises(InputError, match=why):
            Root.load("mine", pem)


def test_a_root_survives_being_written_and_read(root: Root) -> None:
    again = Root.load("test", root.pem())

    assert again.der == root.der
    assert again.key.private_numbers() == root.key.private_numbers()


def test_keys_are_made_of_the_entropy_given() -> None:
    first, second = (new_key(seeded_entropy(9)).private_numbers() for _ in range(2))

    assert first == second


def test_rotation_makes_the_directory_where_there_is_none(tmp_path: Path) -> None:
    new = rotate_test_root(tmp_path / "new")

    assert read_test_root(tmp_path / "new").der == new.der
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
