"""Condition operators, one table each, and key policies, as AWS documents them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from nitro_nsm.kms.conditions import parse
from nitro_nsm.kms.errors import KmsError
from nitro_nsm.kms.keypolicy import Caller, Request, decide, parse_policy

PCR = "ab" * 48
KEY = "kms:RecipientAttestation:PCR8"
HAS = {KEY.lower(): (PCR,)}
SET = {KEY.lower(): ("a", "b")}
NOTHING: dict[str, tuple[str, ...]] = {}


def holds(block: dict[str, Any], context: Mapping[str, tuple[str, ...]]) -> bool:
    return all(condition.holds(context) for condition in parse(block))


@pytest.mark.parametrize(
    ("operator", "value", "context", "expected"),
    [
        ("StringEquals", PCR, HAS, True),
        ("StringEquals", PCR.upper(), HAS, False),
        ("StringEquals", "cd" * 48, HAS, False),
        ("StringEquals", ["cd" * 48, PCR], HAS, True),
        ("StringEquals", ["cd" * 48, "ef" * 48], HAS, False),
        ("StringEquals", PCR, NOTHING, False),
        ("StringEquals", PCR[:-1] + "*", HAS, False),
        ("StringNotEquals", PCR, HAS, False),
        ("StringNotEquals", "cd" * 48, HAS, True),
        ("StringNotEquals", ["cd" * 48, PCR], HAS, False),
        ("StringNotEquals", PCR, NOTHING, True),
        ("StringEqualsIgnoreCase", PCR.upper(), HAS, True),
        ("StringEqualsIgnoreCase", "cd" * 48, HAS, False),
        ("StringEqualsIgnoreCase", PCR, NOTHING, False),
        ("StringNotEqualsIgnoreCase", PCR.upper(), HAS, False),
        ("StringNotEqualsIgnoreCase", "cd" * 48, HAS, True),
        ("StringNotEqualsIgnoreCase", PCR, NOTHING, True),
        ("StringLike", "ab*", HAS, True),
        ("StringLike", "AB*", HAS, False),
        ("StringLike", "?" * 96, HAS, True),
        ("StringLike", "?" * 95, HAS, False),
        ("StringLike", "[ab]*", HAS, False),
        ("StringLike", "ab*", NOTHING, False),
        ("StringNotLike", "ab*", HAS, False),
        ("StringNotLike", "cd*", HAS, True),
        ("StringNotLike", "ab*", NOTHING, True),
    ],
)
def test_operators_on_text(
    operator: str,
    value: str | list[str],
    context: dict[str, tuple[str, ...]],
    expected: bool,  # noqa: FBT001
) -> None:
    assert holds({operator: {KEY: value}}, context) is expected


@pytest.mark.parametrize("operator", ["StringEquals", "StringEqualsIgnoreCase", "StringLike"])
@pytest.mark.parametrize(
    ("value", "context", "expected"), [(PCR, HAS, True), ("cd", HAS, False), (PCR, NOTHING, True)]
)
def test_if_exists_holds_where_the_request_lacks_the_key(
    operator: str,
    value: str,
    context: dict[str, tuple[str, ...]],
    expected: bool,  # noqa: FBT001
) -> None:
    assert holds({f"{operator}IfExists": {KEY: value}}, context) is expected


@pytest.mark.parametrize(
    ("value", "context", "expected"),
    [
        ("true", HAS, False),
        ("true", NOTHING, True),
        ("false", HAS, True),
        ("false", NOTHING, False),
        (True, NOTHING, True),
        (False, NOTHING, False),
        ("True", NOTHING, True),
    ],
)
def test_null_asks_whether_the_key_is_there(
    value: object,
    context: dict[str, tuple[str, ...]],
    expected: bool,  # noqa: FBT001
) -> None:
    assert holds({"Null": {KEY: value}}, context) is expected


@pytest.mark.parametrize(
    ("operator", "value", "context", "expected"),
    [
        ("ForAnyValue:StringEquals", "a", SET, True),
        ("ForAnyValue:StringEquals", ["b", "c"], SET, True),
        ("ForAnyValue:StringEquals", "c", SET, False),
        ("ForAnyValue:StringEquals", "a", NOTHING, False),
        ("ForAnyValue:StringEqualsIgnoreCase", "A", SET, True),
        ("ForAnyValue:StringLike", "?", SET, True),
        ("ForAnyValue:StringNotEquals", "a", SET, True),
        ("ForAnyValue:StringNotEquals", ["a", "b"], SET, False),
        ("ForAnyValue:StringNotEquals", "a", NOTHING, False),
        ("ForAnyValue:StringEqualsIfExists", "a", NOTHING, True),
        ("ForAllValues:StringEquals", ["a", "b"], SET, True),
        ("ForAllValues:StringEquals", ["a", "b", "c"], SET, True),
        ("ForAllValues:StringEquals", "a", SET, False),
        ("ForAllValues:StringEquals", "a", NOTHING, True),
        ("ForAllValues:StringNotEquals", "c", SET, True),
        ("ForAllValues:StringNotEquals", "a", SET, False),
        ("ForAllValues:StringLike", "?", SET, True),
    ],
)
def test_sets_of_values(
    operator: str,
    value: str | list[str],
    context: dict[str, tuple[str, ...]],
    expected: bool,  # noqa: FBT001
) -> None:
    assert holds({operator: {KEY: value}}, context) is expected


@pytest.mark.parametrize(
    ("operator", "value", "has", "expected"),
    [
        ("Bool", "true", "true", True),
        ("Bool", True, "True", True),
        ("Bool", "false", "true", False),
        ("NumericEquals", 7, "7", True),
        ("NumericEquals", "7", "7.0", True),
        ("NumericNotEquals", 7, "8", True),
        ("NumericNotEquals", 7, "7", False),
        ("NumericLessThan", 7, "6", True),
        ("NumericLessThan", 7, "7", False),
        ("NumericLessThanEquals", 7, "7", True),
        ("NumericLessThanEquals", 7, "8", False),
        ("NumericGreaterThan", 7, "8", True),
        ("NumericGreaterThan", 7, "7", False),
        ("NumericGreaterThanEquals", 7, "7", True),
        ("NumericGreaterThanEquals", 7, "6", False),
        ("NumericEquals", "seven", "7", False),
        ("ArnEquals", "arn:aws:iam::123456789012:role/*", "arn:aws:iam::123456789012:role/a/b", True),
        ("ArnLike", "arn:aws:iam::*:role/r", "arn:aws:iam::123456789012:role/r", True),
        ("ArnLike", "arn:*:role/r", "arn:aws:iam::123456789012:role/r", False),
        ("ArnLike", "arn:aws:sns:r:1:*", "arn:aws:sns:r:1:topic:subscription", True),
        ("ArnLike", "role", "arn:aws:iam::123456789012:role/r", False),
        ("ArnNotEquals", "arn:aws:iam::1:role/r", "arn:aws:iam::2:role/r", True),
        ("ArnNotLike", "arn:aws:iam::*:role/r", "arn:aws:iam::2:role/r", False),
    ],
)
def test_other_operators(operator: str, value: object, has: str, expected: bool) -> None:  # noqa: FBT001
    assert holds({operator: {"kms:Any": value}}, {"kms:any": (has,)}) is expected


def test_all_keys_under_all_operators_must_hold() -> None:
    context = {"kms:a": ("1",), "kms:b": ("2",)}

    assert holds({"StringEquals": {"kms:a": "1", "kms:b": "2"}}, context)
    assert not holds({"StringEquals": {"kms:a": "1", "kms:b": "3"}}, context)
    assert not holds({"StringEquals": {"kms:a": "1"}, "Null": {"kms:b": "true"}}, context)
    assert holds({}, context)


def test_names_of_keys_have_no_case() -> None:
    assert holds({"StringEquals": {"KMS:recipientATTESTATION:pcr8": PCR}}, HAS)


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"StringEqual": {KEY: "a"}}, "UnsupportedOperationException"),
        ({"DateEquals": {KEY: "a"}}, "UnsupportedOperationException"),
        ({"StringEquals": {"kms:RecipientAttestation:NitroTPMPCR4": "a"}}, "UnsupportedOperationException"),
        ({"StringEquals": {"KMS:recipientattestation:nitrotpmpcr0": "a"}}, "UnsupportedOperationException"),
        ({"StringEquals": "a"}, "MalformedPolicyDocumentException"),
        ({"StringEquals": {KEY: {}}}, "MalformedPolicyDocumentException"),
        ({"StringEquals": {KEY: [None]}}, "MalformedPolicyDocumentException"),
        ([], "MalformedPolicyDocumentException"),
    ],
)
def test_conditions_that_cannot_be_evaluated_are_refused_at_once(block: object, kind: str) -> None:
    with pytest.raises(KmsError) as caught:
        parse(block)
    assert caught.value.kind == kind


ACCOUNT = "arn:aws:iam::123456789012:root"
ROLE = "arn:aws:iam::123456789012:role/enclave"
SESSION = "arn:aws:sts::123456789012:assumed-role/enclave/i-0123456789abcdef0"
KEY_ARN = "arn:aws:kms:us-east-1:123456789012:key/1"


def decided(
    *statements: dict[str, Any], caller: str = ROLE, iam_allows: bool = False, action: str = "kms:Decrypt"
) -> bool:
    policy = parse_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))
    return decide(policy, Request(Caller(caller, iam_allows=iam_allows), action, KEY_ARN, HAS)).allowed


def allow(principal: object = "*", action: object = "kms:*", **more: object) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*", **more}


def deny(principal: object = "*", action: object = "kms:*", **more: object) -> dict[str, Any]:
    return allow(principal, action, **more) | {"Effect": "Deny"}


@pytest.mark.parametrize(
    ("principal", "caller", "iam_allows", "expected"),
    [
        ("*", ROLE, False, True),
        ({"AWS": "*"}, ROLE, False, True),
        ({"AWS": ROLE}, ROLE, False, True),
        ({"AWS": [ACCOUNT, ROLE]}, ROLE, False, True),
        ({"AWS": ROLE}, SESSION, False, True),
        ({"AWS": SESSION}, SESSION, False, True),
        ({"AWS": SESSION}, ROLE, False, False),
        ({"AWS": ROLE + "2"}, ROLE, False, False),
        ({"AWS": ROLE + "*"}, ROLE, False, False),
        ({"AWS": ACCOUNT}, ACCOUNT, False, True),
        ({"AWS": "123456789012"}, ACCOUNT, False, True),
        ({"AWS": ACCOUNT}, ROLE, False, False),
        ({"AWS": ACCOUNT}, ROLE, True, True),
        ({"AWS": "123456789012"}, SESSION, True, True),
        ({"AWS": "arn:aws:iam::210987654321:root"}, ROLE, True, False),
        ({"Service": "ec2.amazonaws.com"}, ROLE, False, False),
    ],
)
def test_principals(principal: object, caller: str, iam_allows: bool, expected: bool) -> None:  # noqa: FBT001
    assert decided(allow(principal), caller=caller, iam_allows=iam_allows) is expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("kms:*", True),
        ("*", True),
        ("kms:decrypt", True),
        (["kms:Encrypt", "kms:Dec*"], True),
        ("kms:Encrypt", False),
        ("kms:Decrypt?", False),
        ("Decrypt", False),
    ],
)
def test_actions(action: object, expected: bool) -> None:  # noqa: FBT001
    assert decided(allow(action=action)) is expected


def test_a_denial_wins_over_any_permission() -> None:
    condition = {"StringNotEquals": {KEY: PCR}}

    assert not decided(allow(), deny())
    assert not decided(deny({"AWS": ACCOUNT}), allow())
    assert decided(allow(), deny(action="kms:Encrypt"))
    assert decided(allow(), deny(Condition=condition))
    assert not decided(allow(), deny(Condition={"StringEquals": {KEY: PCR}}))


def test_everything_but() -> None:
    but_role = {"Effect": "Deny", "NotPrincipal": {"AWS": ROLE}, "Action": "kms:*", "Resource": "*"}
    but_decrypt = {"Effect": "Allow", "Principal": "*", "NotAction": "kms:Decrypt", "Resource": "*"}

    assert decided(allow(), but_role)
    assert not decided(allow(), but_role, caller=ROLE + "2")
    assert not decided(but_decrypt)
    assert decided(but_decrypt, action="kms:Encrypt")


def test_resources() -> None:
    assert decided(allow(Resource=KEY_ARN))
    assert decided(allow(Resource=["x", "arn:aws:kms:*"]))
    assert not decided(allow(Resource="arn:aws:kms:us-east-1:123456789012:key/2"))


def test_nothing_allows_nothing() -> None:
    assert not decided()


def test_reasons_name_statement_condition_and_what_the_request_has() -> None:
    condition = {"StringEquals": {KEY: "cd", "kms:RecipientAttestation:ImageSha384": "ef"}}
    policy = parse_policy(json.dumps({"Statement": allow(Sid="mine", Condition=condition)}))

    decision = decide(policy, Request(Caller(ROLE), "kms:Decrypt", KEY_ARN, HAS))

    assert decision.reasons == (
        f"statement 'mine': StringEquals {KEY} cd does not hold, the request has {PCR}",
        (
            "statement 'mine': StringEquals kms:RecipientAttestation:ImageSha384 ef (PCR0) does not hold, "
            "the request has nothing"
        ),
    )


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"Statement": [{}]}',
        '{"Statement": [5]}',
        json.dumps({"Statement": [allow() | {"Effect": "allow"}]}),
        json.dumps({"Statement": [allow() | {"NotAction": "x"}]}),
        json.dumps({"Statement": [allow() | {"NotResource": "x"}]}),
        json.dumps({"Statement": [allow(5)]}),
        json.dumps({"Statement": [allow({"AWS": [5]})]}),
        json.dumps({"Statement": [allow(action=[])]}),
        json.dumps({"Statement": [allow()] * 201}),
        json.dumps({"Statement": [{"Effect": "Allow", "Action": "kms:*"}]}),
    ],
    ids=lambda policy: str(policy)[:40],
)
def test_what_is_no_policy(policy: str) -> None:
    with pytest.raises(KmsError) as caught:
        parse_policy(policy)
    assert caught.value.kind == "MalformedPolicyDocumentException"
