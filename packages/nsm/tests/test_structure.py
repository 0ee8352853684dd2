"""Messages and payloads that are almost right: rightly signed, and still refused."""

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import invariants
from nitro_nsm import DocumentError, Sign1, Step, verify
from nitro_nsm.cose import to_be_signed

ES384 = b"\xa1\x01\x38\x22"
PAYLOAD = cbor2.dumps(invariants.claims())


def signature(protected: bytes, payload: bytes = PAYLOAD) -> bytes:
    der = invariants.CREDENTIALS.key.sign(to_be_signed(protected, payload), ec.ECDSA(hashes.SHA384()))
    return b"".join(number.to_bytes(48, "big") for number in decode_dss_signature(der))


def refusal(document: bytes) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        verify(document, at=invariants.NOW, root=invariants.ROOT.trust)
    return caught.value


def test_the_message_that_the_others_differ_from() -> None:
    good = cbor2.dumps([ES384, {}, PAYLOAD, signature(ES384)])

    assert verify(good, at=invariants.NOW, root=invariants.ROOT.trust).root == "test"
    assert verify(b"\xd2" + good, at=invariants.NOW, root=invariants.ROOT.trust).root == "test"
    assert refusal(b"\xd2\xd2" + good).step is Step.STRUCTURE
    assert refusal(b"\xd8\x12" + good).step is Step.STRUCTURE
    assert refusal(b"\xd8\x62" + good).step is Step.STRUCTURE
    assert refusal(b"\x9f" + good[1:] + b"\xff").step is Step.STRUCTURE
    assert refusal(b"\x98\x04" + good[1:]).step is Step.STRUCTURE
    assert refusal(good + b"\0").step is Step.STRUCTURE


@pytest.mark.parametrize(
    ("protected", "unprotected", "step"),
    [
        (b"", {}, Step.ALGORITHM),
        (b"\xa0", {}, Step.ALGORITHM),
        (b"\xa0", {1: -35}, Step.ALGORITHM),
        (cbor2.dumps({1: -7}), {}, Step.ALGORITHM),
        (cbor2.dumps({1: "ES384"}), {}, Step.ALGORITHM),
        (cbor2.dumps({1: -35, 2: [1]}), {}, Step.ALGORITHM),
        (ES384, {4: b"kid"}, Step.ALGORITHM),
        (b"\xa1\x01\x39\x00\x22", {}, Step.STRUCTURE),
        (b"\xa2\x01\x38\x22\x01\x38\x22", {}, Step.STRUCTURE),
        (b"\x80", {}, Step.STRUCTURE),
        (ES384 + b"\0", {}, Step.STRUCTURE),
    ],
    ids=repr,
)
def test_headers(protected: bytes, unprotected: dict[int, Any], step: Step) -> None:
    assert refusal(cbor2.dumps([protected, unprotected, PAYLOAD, signature(protected)])).step is step


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        [],
        [ES384, {}, PAYLOAD],
        [ES384, {}, PAYLOAD, bytes(96), None],
        [ES384, {}, None, bytes(96)],
        [ES384, None, PAYLOAD, bytes(96)],
        [{1: -35}, {}, PAYLOAD, bytes(96)],
        [ES384, {}, PAYLOAD, "0" * 96],
    ],
    ids=lambda message: repr(message)[:40],
)
def test_shapes(message: object) -> None:
    assert refusal(cbor2.dumps(message)).step is Step.STRUCTURE


@pytest.mark.parametrize("length", [0, 64, 95, 97, 102, 192])
def test_lengths_of_the_signature(length: int) -> None:
    error = refusal(cbor2.dumps([ES384, {}, PAYLOAD, signature(ES384).ljust(length, b"\0")[:length]]))

    assert error.step is Step.SIGNATURE
    assert f"{length} bytes" in str(error)


def test_an_algorithm_that_is_not_ours_to_check() -> None:
    message = Sign1.parse(cbor2.dumps([cbor2.dumps({1: -8}), {}, b"", bytes(64)]))

    with pytest.raises(DocumentError) as caught:
        message.verify(invariants.CREDENTIALS.key.public_key())
    assert caught.value.step is Step.ALGORITHM


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"module_id": ""}, "module_id is empty"),
        ({"module_id": b"i-0123456789abcdef0"}, "module_id is bytes and must be str"),
        ({"digest": "SHA256"}, "must be SHA384"),
        ({"timestamp": 0}, "is no time"),
        ({"timestamp": 1 << 63}, "is no time"),
        ({"timestamp": True}, "timestamp is bool"),
        ({"pcrs": {}}, "pcrs is empty"),
        ({"pcrs": []}, "pcrs is list"),
        ({"pcrs": {32: bytes(48)}}, "register 32"),
        ({"pcrs": {-1: bytes(48)}}, "register -1"),
        ({"pcrs": {"0": bytes(48)}}, "register '0'"),
        ({"pcrs": {0: bytes(32)}}, "PCR0 is not 48 bytes"),
        ({"pcrs": {0: None}}, "PCR0 is not 48 bytes"),
        ({"certificate": b""}, "certificate is empty"),
        ({"certificate": None}, "certificate is NoneType"),
        ({"cabundle": []}, "cabundle is not"),
        ({"cabundle": [b""]}, "cabundle is not"),
        ({"cabundle": ["text"]}, "cabundle is not"),
        ({"cabundle": {}}, "cabundle is dict"),
        ({"nonce": "text"}, "nonce is str"),
        ({"user_data": 1}, "user_data is int"),
        ({"public_key": []}, "public_key is list"),
        ({"timestamp": 253_402_300_800_000}, "is no time"),
        ({"more": None}, "unknown field 'more'"),
        ({1: None}, "unknown field 1"),
    ],
    ids=repr,
)
def test_fields(change: dict[str, Any], why: str) -> None:
    payload = cbor2.dumps(invariants.claims() | change)
    error = refusal(cbor2.dumps([ES384, {}, payload, signature(ES384, payload)]))

    assert error.step is Step.STRUCTURE
    assert why in str(error)


@pytest.mark.parametrize("field", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
def test_fields_that_must_be_there(field: str) -> None:
    claims = invariants.claims()
    del claims[field]

    assert f"{field} is missing" in str(refusal(_signed(cbor2.dumps(claims))))


def test_fields_that_may_be_absent_or_in_another_order() -> None:
    claims = dict(reversed(invariants.claims().items()))
    for field in ("nonce", "user_data", "public_key"):
        del claims[field]

    verified = verify(_signed(cbor2.dumps(claims)), at=invariants.NOW, root=invariants.ROOT.trust)

    assert (verified.nonce, verified.user_data, verified.public_key) == (None, None, None)


@pytest.mark.parametrize(
    "payload", [b"", b"\x80", b"\xf6", PAYLOAD + b"\0", PAYLOAD[:-1], b"\xb8\x09" + PAYLOAD[1:]]
)
def test_payloads(payload: bytes) -> None:
    assert refusal(_signed(payload)).step is Step.STRUCTURE


def test_a_map_of_either_length() -> None:
    indefinite = b"\xbf" + PAYLOAD[1:] + b"\xff"

    for payload, name in ((PAYLOAD, "definite"), (indefinite, "indefinite")):
        assert verify(_signed(payload), at=invariants.NOW, root=invariants.ROOT.trust).payload_map == name


def _signed(payload: bytes) -> bytes:
    return cbor2.dumps([ES384, {}, payload, signature(ES384, payload)])


@pytest.mark.parametrize(
    ("message", "why"),
    [([], "it has nothing"), ([b"", {}], "it has bytes, dict"), ({}, "it is not an array")],
)
def test_what_is_not_a_message_is_described(message: object, why: str) -> None:
    assert why in str(refusal(cbor2.dumps(message)))
