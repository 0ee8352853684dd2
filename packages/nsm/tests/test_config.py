"""What an enclave can be, and what is refused as one."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from nitro_nsm import Nsm, NsmConfig, NsmState, Root

ZERO = bytes(48)


def test_values_may_be_hexadecimal_and_names_of_registers_text() -> None:
    assert NsmConfig.model_validate({"pcrs": {"0": "07" * 48}}).pcrs == {0: b"\7" * 48}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pcrs": {16: ZERO}}, "less than 16"),
        ({"pcrs": {-1: ZERO}}, "greater than or equal to 0"),
        ({"pcrs": {0: bytes(47)}}, "at least 48"),
        ({"pcrs": {0: bytes(49)}}, "at most 48"),
        ({"pcrs": {0: "zz"}}, "non-hexadecimal"),
        ({"pcrs": {3: ZERO}, "role_arn": "arn:aws:iam::123456789012:role/r"}, "both give PCR3"),
        ({"pcrs": {4: ZERO}, "instance_id": "i-0123456789abcdef0"}, "both give PCR4"),
        ({"pcrs": {8: ZERO}, "signing_certificate": b""}, "both give PCR8"),
        ({"signing_certificate": b"nothing"}, "signing_certificate|parsing"),
        ({"instance_id": "i-"}, "pattern"),
        ({"instance_id": "i-0123456789abcdef01"}, "pattern"),
        ({"enclave_id": "123"}, "pattern"),
        ({"region": "a" * 21}, "pattern"),
        ({"payload_map": "both"}, "definite"),
        ({"colour": "red"}, "not permitted"),
    ],
    ids=repr,
)
def test_what_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        NsmConfig.model_validate(fields)


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_pcr8_measures_the_certificate_whatever_its_encoding(root: Root, encoding: Encoding) -> None:
    state = Nsm(NsmConfig(signing_certificate=root.certificate.public_bytes(encoding))).state()

    assert state.pcrs[8] == hashlib.sha384(ZERO + hashlib.sha384(root.der).digest()).digest()


def test_the_enclave_id_starts_with_the_time_as_on_aws() -> None:
    launched = datetime(2026, 8, 3, 15, 2, 0, 199_000, tzinfo=UTC)
    nsm = Nsm(NsmConfig(), clock=lambda: round(launched.timestamp() * 1000) * 1_000_000)

    assert nsm.state().enclave_id.startswith("019fc8255f07")


def test_a_state_that_was_tampered_with_is_refused() -> None:
    saved = Nsm(NsmConfig()).state().model_dump()

    for change in ({"pcrs": saved["pcrs"][1:]}, {"locked": {32}}, {"version": 2}, {"more": 1}):
        with pytest.raises(ValidationError):
            NsmState.model_validate(saved | change)
