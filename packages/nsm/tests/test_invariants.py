"""What holds for any bytes, whatever they are taken for."""

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import invariants
from nitro_nsm import verify
from nitro_nsm.cose import sign1

MODULE = invariants.RequestChecker()
NAMES = st.sampled_from(
    ["DescribeNSM", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation", "GetRandom", "Foo"]
)
PARAMETERS = st.sampled_from(["index", "data", "range", "user_data", "nonce", "public_key", "foo"])
VALUES = st.integers(-40, 70000) | st.binary(max_size=80) | st.text(max_size=8) | st.none() | st.booleans()
BODIES = st.dictionaries(PARAMETERS | st.integers(0, 3), VALUES | st.lists(VALUES, max_size=2), max_size=4)


@given(st.binary(max_size=200))
def test_any_bytes_get_a_reply(data: bytes) -> None:
    MODULE.check(data)


@given(NAMES | st.dictionaries(NAMES, BODIES | VALUES, max_size=2), st.binary(max_size=2), st.integers(0, 3))
def test_almost_requests_get_a_reply(request: object, more: bytes, less: int) -> None:
    encoded = cbor2.dumps(request)
    MODULE.check(encoded[: len(encoded) - less] + more)


@given(st.binary(max_size=400), st.integers(0, 3))
def test_any_certificate_is_refused_as_one(data: bytes, position: int) -> None:
    invariants.check_certificate(data, position)


@given(st.data())
def test_almost_certificates_are_refused_as_such(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 3))
    chain = [*invariants.CREDENTIALS.cabundle[1:], invariants.CREDENTIALS.certificate]
    changed = bytearray(chain[position])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    invariants.check_certificate(bytes(changed), position)


@given(st.binary(max_size=100))
def test_any_payload_is_claims_or_refused(data: bytes) -> None:
    invariants.check_payload(data)


@given(st.sampled_from(sorted(invariants.claims())), VALUES | st.lists(VALUES, max_size=3) | BODIES)
def test_a_field_of_another_kind_is_claims_or_refused(field: str, value: object) -> None:
    invariants.check_payload(cbor2.dumps(invariants.claims() | {field: value}))


def test_the_unchanged_claims_verify() -> None:
    document = sign1(cbor2.dumps(invariants.claims()), invariants.CREDENTIALS.key, ec.ECDSA(hashes.SHA384()))

    assert verify(document, at=invariants.NOW, root=invariants.ROOT.trust).root == "test"
