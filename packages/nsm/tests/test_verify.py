"""Every verdict on documents of real hardware and on what was made of them, and each step of verification."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from nitro_nsm import (
    DocumentError,
    InputError,
    Nsm,
    NsmConfig,
    Policy,
    Root,
    Sign1,
    Step,
    TrustRoot,
    UsageError,
    aws_root,
    parse_document,
    verify,
)
from nitro_nsm.pki.authority import P384_ORDER
from nitro_nsm.pki.trust import AWS_FINGERPRINT
from nitro_nsm.testing import seeded_entropy
from vectors import expectations

NOW = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)


def by_file(entry: dict[str, Any]) -> str:
    return str(entry["file"])


@pytest.fixture(scope="module")
def ours(root: Root) -> bytes:
    nsm = Nsm(
        NsmConfig(pcrs={0: b"\1" * 48}, instance_id="i-0123456789abcdef0"),
        root=root,
        entropy=seeded_entropy(2),
        clock=lambda: int(NOW.timestamp() * 1000) * 1_000_000,
    )
    request = {"Attestation": {"nonce": b"nonce", "user_data": b"", "public_key": b"key"}}
    document: bytes = cbor2.loads(nsm.handle(cbor2.dumps(request)))["Attestation"]["document"]
    return document


def test_the_root_is_the_one_that_aws_publishes(vectors: Path) -> None:
    assert aws_root().certificate == (vectors / "certs" / "aws-nitro-root-g1.der").read_bytes()
    assert hashlib.sha256(aws_root().certificate).hexdigest() == AWS_FINGERPRINT


@pytest.mark.parametrize("entry", expectations("attestation"), ids=by_file)
def test_hardware_verifies_while_its_certificates_are_valid(vectors: Path, entry: dict[str, Any]) -> None:
    document = (vectors / "attestation" / entry["file"]).read_bytes()
    at = datetime.fromisoformat(entry["time"])

    verified = verify(document, at=at)

    assert verified.root == "aws"
    assert verified.module_id == entry["module_id"]
    assert verified.digest == entry["digest"]
    assert verified.timestamp_ms == entry["timestamp"]
    assert verified.time == at
    assert verified.payload_map == entry["payload_map"]
    assert list(verified.pcrs) == entry["pcr_indexes"]
    assert {str(index): value.hex() for index, value in verified.pcrs.items() if any(value)} == entry[
        "nonzero_pcrs"
    ]
    for field in ("public_key", "user_data", "nonce"):
        value = getattr(verified, field)
        assert (None if value is None else value.hex()) == entry[field]
    assert len(verified.cabundle) == entry["cabundle_len"]
    for edge in ("chain_valid_from", "chain_valid_until"):
        verify(document, at=datetime.fromisoformat(entry[edge]), policy=Policy(max_skew_s=86400))
    for outside in (
        datetime.fromisoformat(entry["chain_valid_from"]) - timedelta(seconds=1),
        datetime.fromisoformat(entry["chain_valid_until"]) + timedelta(seconds=1),
        NOW,
    ):
        with pytest.raises(DocumentError) as caught:
            verify(document, at=outside)
        assert caught.value.step is Step.CERTIFICATES


@pytest.mark.parametrize("entry", expectations("attestation/negative"), ids=by_file)
def test_what_was_made_of_hardware_gets_its_verdict(vectors: Path, entry: dict[str, Any]) -> None:
    document = (vectors / "attestation" / "negative" / entry["file"]).read_bytes()
    base = vectors / "attestation" / "aws-06-2022-10-13.cose"
    checked = entry["checked"].get("time")
    at = datetime.fromisoformat(checked) if checked else parse_document(base.read_bytes()).time

    if "must PASS" in entry["expect"] and "must FAIL" not in entry["expect"]:
        assert verify(document, at=at).root == "aws"
        return
    with pytest.raises(DocumentError) as caught:
        verify(document, at=at)
    step = {"neg-01": "signature", "neg-04": "certificates", "der-02": "algorithm", "der-05": "algorithm"}
    assert caught.value.step == step.get(entry["file"][:6], "structure")
    if "PASS with its own root" in entry["expect"]:
        own = TrustRoot.load("own", parse_document(document).cabundle[0])
        assert verify(document, at=at, root=own).root == "own"


@pytest.mark.parametrize("entry", expectations("cose"), ids=by_file)
def test_cose_vectors(vectors: Path, entry: dict[str, Any]) -> None:
    vector = json.loads((vectors / "cose" / entry["file"]).read_text())
    operation = vector.get("sign1::verify") or vector["sign1::sign"]
    message = operation.get("taggedCOSESign1") or operation["expectedOutput"]
    x, y = (int.from_bytes(_unbase64(vector["key"][part]), "big") for part in "xy")
    curve = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}[vector["key"]["crv"]]
    key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    external_aad = bytes.fromhex(operation.get("external") or "")

    sign1 = Sign1.parse(bytes.fromhex(message["cborHex"]))

    assert entry["should_verify"]
    sign1.verify(key, external_aad=external_aad)
    with pytest.raises(DocumentError) as caught:
        sign1.verify(key, external_aad=external_aad + b"x")
    assert caught.value.step is Step.SIGNATURE


def _unbase64(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_ours_verifies_under_its_root_and_not_as_aws(ours: bytes, root: Root) -> None:
    verified = verify(ours, at=NOW, root=root.trust)

    assert (verified.root, verified.nonce, verified.user_data, verified.public_key) == (
        "test",
        b"nonce",
        b"",
        b"key",
    )
    with pytest.raises(DocumentError, match="the root is not aws") as caught:
        verify(ours, at=NOW)
    assert caught.value.step is Step.CERTIFICATES


def test_another_root_of_the_same_name_does_not_vouch(ours: bytes) -> None:
    with pytest.raises(DocumentError, match="the root is not test"):
        verify(ours, at=NOW, root=Root.create("test", entropy=seeded_entropy(3)).trust)


@pytest.mark.parametrize(
    ("expected", "step"),
    [
        ({"nonce": b"other"}, Step.NONCE),
        ({"nonce": b""}, Step.NONCE),
        ({"user_data": b"x"}, Step.USER_DATA),
        ({"public_key": b"x"}, Step.PUBLIC_KEY),
    ],
)
def test_expectations_are_checked(ours: bytes, root: Root, expected: dict[str, Any], step: Step) -> None:
    arguments: dict[str, Any] = {"at": NOW, "root": root.trust} | expected

    with pytest.raises(DocumentError) as caught:
        verify(ours, **arguments)
    assert caught.value.step is step


def test_expectations_that_hold(ours: bytes, root: Root) -> None:
    verify(
        ours,
        at=NOW,
        root=root.trust,
        policy=Policy(pcrs={0: b"\1" * 48, 5: bytes(48)}, max_age_s=0),
        nonce=b"nonce",
        user_data=b"",
        public_key=b"key",
    )


def test_a_time_without_a_zone_is_our_callers_mistake(ours: bytes) -> None:
    with pytest.raises(UsageError, match="time zone"):
        verify(ours, at=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


def test_both_halves_of_s_are_valid(ours: bytes, root: Root) -> None:
    s = int.from_bytes(ours[-48:], "big")

    verify(ours[:-48] + (P384_ORDER - s).to_bytes(48, "big"), at=NOW, root=root.trust)


def test_what_is_not_a_root_is_said_so() -> None:
    with pytest.raises(InputError, match="mine is not a certificate"):
        TrustRoot.load("mine", b"-----BEGIN nothing")


@given(data=st.data())
def test_no_byte_can_change(data: st.DataObject, ours: bytes, root: Root) -> None:
    position = data.draw(st.integers(0, len(ours) - 1))
    changed = bytearray(ours)
    changed[position] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DocumentError):
        verify(bytes(changed), at=NOW, root=root.trust)


@given(data=st.data())
def test_no_byte_can_be_added_or_missing(data: st.DataObject, ours: bytes, root: Root) -> None:
    position = data.draw(st.integers(0, len(ours)))
    more = data.draw(st.binary(min_size=1, max_size=4))

    for changed in (ours[:position] + more + ours[position:], ours[: position - 1] + ours[position:]):
        with pytest.raises(DocumentError):
            verify(changed, at=NOW, root=root.trust)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        verify(data, at=NOW)


def test_more_bytes_than_a_module_can_send_are_not_even_read() -> None:
    with pytest.raises(DocumentError, match="at most 12288"):
        verify(bytes(0x3001), at=NOW)
