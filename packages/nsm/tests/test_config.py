"""What an enclave can be, and what is refused as one."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from nitro_nsm import (
    INSTANCE_ID_PATTERN,
    ROLE_ARN_PATTERN,
    Nsm,
    NsmClient,
    NsmConfig,
    NsmState,
    Refusal,
    Root,
    verify,
)
from nitro_nsm.identity import new_enclave_id
from nitro_nsm.testing import seeded_entropy

ZERO = bytes(48)


def test_an_enclave_id_is_48_bits_of_time_and_16_of_chance() -> None:
    def at(milliseconds: int) -> str:
        return new_enclave_id(lambda count: b"\xab" * count, lambda: milliseconds * 1_000_000)

    assert at((1 << 48) - 1) == "ffffffffffffabab"
    assert at((1 << 48) + 5) == "000000000005abab"
    assert at((1 << 49) + 6) == "000000000006abab"


def test_values_may_be_hexadecimal_and_names_of_registers_text() -> None:
    assert NsmConfig.model_validate({"pcrs": {"0": "07" * 48}}).pcrs == {0: b"\7" * 48}


NO_INSTANCES = (
    "i-",
    "i-0123456",
    "i-012345678",
    "i-0123456789abcdef",
    "i-0123456789abcdef01",
    "i-0123456789ABCDEF0",
    "0123456789abcdef0",
    "i-01234567\n",
    " i-01234567",
)
NO_ROLES = (
    "",
    "role",
    "arn:aws:iam::123456789012:user/someone",
    "arn:aws:iam::12345678901:role/r",
    "arn:aws:iam::1234567890123:role/r",
    "arn:aws:iam::123456789012:role/",
    "arn:aws:iam::123456789012:role/r r",
    "arn:aws:iam::123456789012:role/ü",
    "arn:aws:iam::123456789012:role/r\n",
    "arn:azure:iam::123456789012:role/r",
)


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
        *(({"instance_id": text}, "pattern") for text in NO_INSTANCES),
        *(({"role_arn": text}, "pattern") for text in NO_ROLES),
        ({"enclave_id": "123"}, "pattern"),
        ({"enclave_id": "019FC8255F07A185"}, "pattern"),
        ({"region": ""}, "pattern"),
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


@pytest.mark.parametrize("text", ["i-01234567", "i-0123456789abcdef0"])
def test_instance_ids_have_8_or_17_digits(text: str) -> None:
    assert NsmConfig(instance_id=text).instance_id == text
    assert re.search(INSTANCE_ID_PATTERN, text)


@pytest.mark.parametrize(
    "text",
    [
        "arn:aws:iam::123456789012:role/app",
        "arn:aws-us-gov:iam::123456789012:role/path/to/app",
        "arn:aws-cn:iam::123456789012:role/a_+=,.@-Z9",
    ],
)
def test_roles_are_of_any_partition_and_path(text: str) -> None:
    assert NsmConfig(role_arn=text).role_arn == text
    assert re.search(ROLE_ARN_PATTERN, text)


@pytest.mark.parametrize("through", ["json", "python"])
def test_a_saved_module_goes_on_where_it_was(root: Root, through: str) -> None:
    nsm = Nsm(NsmConfig(pcrs={0: b"\1" * 48}, region="eu-west-1", payload_map="definite"), root=root)
    client = NsmClient(nsm.handle)
    client.extend_pcr(16, b"before")
    client.lock_pcr(17)
    saved = nsm.state()

    state = (
        NsmState.model_validate_json(saved.model_dump_json())
        if through == "json"
        else NsmState.model_validate(saved.model_dump())
    )
    restored = Nsm(state, root=root)

    assert state == saved
    assert restored.state() == saved
    again = NsmClient(restored.handle)
    assert again.describe_nsm() == client.describe_nsm()
    assert again.extend_pcr(16, b"after") == client.extend_pcr(16, b"after")
    with pytest.raises(Refusal):
        again.lock_pcr(17)
    theirs, ours = (
        verify(asked.attest(nonce=b"n"), at=datetime.now(UTC), root=root.trust) for asked in (client, again)
    )
    assert (ours.module_id, ours.pcrs, ours.payload_map) == (theirs.module_id, theirs.pcrs, "definite")


def test_a_restored_module_takes_a_new_identity_on_request(root: Root) -> None:
    nsm = Nsm(NsmConfig(instance_id="i-01234567", enclave_id="0" * 16), root=root)
    NsmClient(nsm.handle).extend_pcr(16, b"x")
    saved = nsm.state()

    twin = saved.renamed(entropy=bytes, clock=lambda: 1_000_000)
    moved = saved.renamed(
        instance_id="i-89abcdef", enclave_id="f" * 16, entropy=seeded_entropy(5), clock=lambda: 0
    )

    assert twin == saved.model_copy(update={"enclave_id": "0000000000010000"})
    assert moved.module_id == "i-89abcdef-encffffffffffffffff"
    assert moved.pcrs[4] == hashlib.sha384(ZERO + b"i-89abcdef").digest()
    assert [moved.pcrs[i] == saved.pcrs[i] for i in range(32)] == [i != 4 for i in range(32)]
    document = NsmClient(Nsm(moved, root=root).handle).attest()
    assert verify(document, at=datetime.now(UTC), root=root.trust).module_id == moved.module_id


def test_a_register_that_was_given_stays_under_a_new_identity() -> None:
    saved = Nsm(NsmConfig(pcrs={4: b"\4" * 48})).state()

    moved = saved.renamed(instance_id="i-89abcdef", entropy=seeded_entropy(5), clock=lambda: 0)

    assert moved.pcrs == saved.pcrs


def test_a_new_identity_is_checked() -> None:
    saved = Nsm(NsmConfig()).state()

    with pytest.raises(ValidationError, match="pattern"):
        saved.renamed(instance_id="i-1", entropy=bytes, clock=lambda: 0)
