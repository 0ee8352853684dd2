"""Signatures of requests, as botocore makes them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

pytest.importorskip("moto", reason="the KMS is an extra: pip install 'nitro-nsm[kms]'")

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kms_world import Clock, kms_of
from nitro_nsm.kms.http import Conversation

KEY, SECRET = "AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG"
TARGET = "TrentService.ListKeys"


@pytest.fixture
def conversation(clock: Clock) -> Conversation:
    return Conversation(kms_of(clock, secret_keys={KEY: SECRET}))


@pytest.fixture
def clock() -> Clock:
    return Clock()


Change = Callable[[dict[str, str]], object]


def signed(
    clock: Clock, *, key: str = KEY, secret: str = SECRET, token: str | None = None, late_s: float = 0
) -> dict[str, str]:
    """The headers of a request that botocore has signed."""
    headers = {"Host": "kms", "X-Amz-Target": TARGET, "X-Note": " a   b "}
    request = AWSRequest("POST", "https://kms/", headers=headers, data=b"{}")
    signer = SigV4Auth(Credentials(key, secret, token), "kms", "us-east-1")
    at = datetime.fromtimestamp(clock.now_s - late_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    request.context["timestamp"] = at
    request.headers["X-Amz-Date"] = at
    if token is not None:
        request.headers["X-Amz-Security-Token"] = token
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(text, request))
    return dict(request.headers.items())


def answer(conversation: Conversation, headers: dict[str, str], body: bytes = b"{}") -> dict[str, object]:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sent = f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    answered: dict[str, object] = json.loads(conversation.receive(sent).partition(b"\r\n\r\n")[2])
    return answered


@pytest.mark.parametrize("late_s", [0, 300, -300])
@pytest.mark.parametrize("token", [None, "a token"])
def test_what_botocore_signs_is_let_in(
    conversation: Conversation, clock: Clock, token: str | None, late_s: float
) -> None:
    assert answer(conversation, signed(clock, token=token, late_s=late_s))["Keys"] == []


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"secret": "another"}, "InvalidSignatureException"),
        ({"key": "AKIASTRANGER"}, "UnrecognizedClientException"),
        ({"late_s": 301}, "InvalidSignatureException"),
        ({"late_s": -301}, "InvalidSignatureException"),
    ],
)
def test_who_has_no_right_to_sign_is_refused(
    conversation: Conversation, clock: Clock, options: dict[str, str], kind: str
) -> None:
    assert answer(conversation, signed(clock, **options))["__type"] == kind  # type: ignore[arg-type]


CHANGES: dict[str, Change] = {
    "operation": lambda headers: headers.update({"X-Amz-Target": "TrentService.ListAliases"}),
    "host": lambda headers: headers.update({"Host": "other"}),
    "time": lambda headers: headers.update({"X-Amz-Date": headers["X-Amz-Date"][:-2] + "1Z"}),
    "no time": lambda headers: headers.pop("X-Amz-Date"),
    "no signed header": lambda headers: headers.pop("X-Note"),
    "operation unsigned": lambda headers: headers.update(
        {"Authorization": headers["Authorization"].replace(";x-amz-target", "")}
    ),
    "nonsense": lambda headers: headers.update({"X-Amz-Date": "yesterday"}),
    "signature": lambda headers: headers.update({"Authorization": headers["Authorization"][:-64] + "0" * 64}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_after_signing_is_refused(
    conversation: Conversation, clock: Clock, change: str
) -> None:
    headers = signed(clock)
    CHANGES[change](headers)

    assert answer(conversation, headers)["__type"] == "InvalidSignatureException"


def test_another_body_and_half_a_header_are_refused(conversation: Conversation, clock: Clock) -> None:
    headers = signed(clock)
    half = headers | {"Authorization": headers["Authorization"].partition(" SignedHeaders")[0]}

    assert answer(conversation, headers, b'{"Limit": 1}')["__type"] == "InvalidSignatureException"
    assert answer(conversation, half)["__type"] == "IncompleteSignatureException"


def test_without_secrets_nothing_is_checked(clock: Clock) -> None:
    of_a_stranger = signed(clock, key="AKIASTRANGER", late_s=10_000)

    assert answer(Conversation(kms_of(clock)), of_a_stranger)["Keys"] == []
