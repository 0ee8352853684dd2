"""The KMS without sockets: who gets a secret, who does not, and what each is told."""

import base64
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

pytest.importorskip("moto", reason="the extra `kms` is not installed")

from kms_world import (
    ACCOUNT,
    IMAGE,
    OPEN,
    ROLE,
    ROOT,
    Clock,
    as_json,
    attested_policy,
    enclave,
    kms_of,
    secret_under,
    text,
)
from nitro_nsm import Nsm, NsmClient, NsmConfig, Root
from nitro_nsm.kms.client import KEY_ENCRYPTION, KmsRecipient
from nitro_nsm.kms.errors import KmsError
from nitro_nsm.kms.recipient import attested
from nitro_nsm.kms.service import Kms
from nitro_nsm.policy import Policy
from nitro_nsm.testing import seeded_entropy

PCR0 = IMAGE[0].hex()
RIGHT = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": PCR0.upper()}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kms(clock: Clock) -> Kms:
    return kms_of(clock)


def ask(kms: Kms, operation: str, access_key: str = "AKIA", /, **parameters: object) -> dict[str, Any]:
    return kms.handle(operation, parameters, access_key=access_key)


def refused(kms: Kms, operation: str, access_key: str = "AKIA", /, **parameters: object) -> KmsError:
    with pytest.raises(KmsError) as caught:
        kms.handle(operation, parameters, access_key=access_key)
    return caught.value


def opened(recipient: KmsRecipient, answer: dict[str, Any]) -> bytes:
    return recipient.open(base64.b64decode(answer["CiphertextForRecipient"]))


def test_the_right_image_gets_the_secret_in_an_envelope(kms: Kms, clock: Clock) -> None:
    secret, recipient = secret_under(kms, attested_policy(RIGHT)), enclave(clock)

    answer = ask(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=as_json(recipient.parameter()))

    assert opened(recipient, answer) == b"the secret"
    assert "Plaintext" not in answer
    assert answer["KeyId"].endswith(secret.key_id)
    assert answer["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"


@pytest.mark.parametrize(
    ("config", "condition", "has"),
    [
        ({"pcrs": IMAGE | {0: b"\7" * 48}}, RIGHT, (b"\7" * 48).hex()),
        ({"debug_mode": True}, RIGHT, "00" * 48),
        ({}, {"StringEquals": {"kms:RecipientAttestation:PCR1": PCR0}}, IMAGE[1].hex()),
        ({}, {"StringEquals": {"kms:RecipientAttestation:PCR8": PCR0}}, "00" * 48),
        ({}, {"StringEquals": {"kms:RecipientAttestation:PCR16": PCR0}}, "nothing"),
        ({}, {"StringNotEquals": {"kms:RecipientAttestation:PCR0": PCR0}}, PCR0),
    ],
)
def test_another_enclave_is_refused_and_the_log_names_the_register(
    kms: Kms, clock: Clock, config: dict[str, Any], condition: dict[str, Any], has: str
) -> None:
    secret, recipient = secret_under(kms, attested_policy(condition)), enclave(clock, **config)

    error = refused(
        kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=as_json(recipient.parameter())
    )

    key = next(iter(next(iter(condition.values()))))
    assert error.kind == "AccessDeniedException"
    assert error.message == (
        f"User: {ROLE} is not authorized to perform: kms:Decrypt on resource: "
        f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{secret.key_id} "
        "because no resource-based policy allows the kms:Decrypt action"
    )
    assert f"statement 'enclave': {next(iter(condition))} {key}" in error.detail
    assert error.detail.endswith(f"does not hold, the request has {has}")
    assert ("(PCR0)" in error.detail) is key.endswith("ImageSha384")


def test_no_document_is_refused_too(kms: Kms) -> None:
    secret = secret_under(kms, attested_policy(RIGHT))

    error = refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext)

    assert error.kind == "AccessDeniedException"
    assert error.detail.endswith("(PCR0) does not hold, the request has nothing")


def test_an_explicit_denial_is_said_so(kms: Kms, clock: Clock) -> None:
    policy = attested_policy(
        {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": PCR0}}, effect="Deny"
    )
    secret = secret_under(kms, policy)
    wrong, right = enclave(clock, pcrs={0: b"\7" * 48}), enclave(clock)

    error = refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=as_json(wrong.parameter()))

    assert error.message.endswith("with an explicit deny in a resource-based policy")
    answer = ask(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=as_json(right.parameter()))
    assert opened(right, answer) == b"the secret"


@pytest.mark.parametrize(("age_s", "accepted"), [(0, True), (300, True), (301, False), (-61, False)])
def test_a_document_is_good_for_five_minutes(kms: Kms, clock: Clock, age_s: int, accepted: bool) -> None:  # noqa: FBT001
    secret, recipient = secret_under(kms), enclave(clock)
    parameter = as_json(recipient.parameter())
    clock.now_s += age_s

    if accepted:
        ask(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=parameter)
        return
    error = refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=parameter)
    assert error.kind == "ValidationException"
    assert "attestation document is not valid" in error.message


def test_how_old_a_document_may_be_is_an_option(clock: Clock) -> None:
    kms, recipient = kms_of(clock, max_age_s=1000), enclave(clock)
    parameter = as_json(recipient.parameter())
    clock.now_s += 1000

    assert ask(kms, "GenerateRandom", NumberOfBytes=5, Recipient=parameter)
    clock.now_s += 1
    assert refused(kms, "GenerateRandom", NumberOfBytes=5, Recipient=parameter).kind == "ValidationException"


def test_a_document_of_another_root_is_refused(kms: Kms, clock: Clock) -> None:
    secret = secret_under(kms)
    stranger = enclave(clock, root=Root.create("test", entropy=seeded_entropy(93)))

    error = refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext, Recipient=as_json(stranger.parameter()))

    assert error.kind == "ValidationException"
    assert "the root is not test" in error.detail


def test_debug_mode_can_be_refused_altogether(clock: Clock) -> None:
    kms, recipient = kms_of(clock, forbid_debug=True), enclave(clock, debug_mode=True)

    error = refused(kms, "GenerateRandom", NumberOfBytes=5, Recipient=as_json(recipient.parameter()))

    assert "debug mode" in error.detail


def attest(clock: Clock, public_key: bytes | None) -> dict[str, str]:
    nsm = Nsm(NsmConfig(pcrs=IMAGE), root=ROOT, clock=clock)
    document = NsmClient(nsm.handle).attest(public_key=public_key)
    return {"KeyEncryptionAlgorithm": KEY_ENCRYPTION, "AttestationDocument": text(document)}


def test_an_enclave_without_pcr0_has_no_image(clock: Clock) -> None:
    document = base64.b64decode(as_json(enclave(clock).parameter())["AttestationDocument"])
    at = datetime.fromtimestamp(clock() / 1e9, UTC)
    recipient = attested(document, root=ROOT.trust, policy=Policy(), at=at)
    registers = {index: value for index, value in recipient.document.pcrs.items() if index != 0}
    without = replace(recipient, document=replace(recipient.document, pcrs=registers))

    assert recipient.context["kms:recipientattestation:imagesha384"] == ("01" * 48,)
    assert "kms:recipientattestation:imagesha384" not in without.context
    assert without.context["kms:recipientattestation:pcr1"] == ("02" * 48,)


def test_conditions_know_what_a_key_is_for(kms: Kms) -> None:
    condition = {"StringEquals": {"kms:KeyUsage": "ENCRYPT_DECRYPT", "kms:KeySpec": "SYMMETRIC_DEFAULT"}}
    everything = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Statement": everything | {"Condition": condition}})

    assert secret_under(kms, policy).ciphertext


SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is what is refused


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, "no public key"),
        (b"", "no public key"),
        (b"nonsense", "cannot be read"),
        (ec.generate_private_key(ec.SECP384R1()).public_key(), "not RSA of 2048 to 4096"),
        (SHORT.public_key(), "not RSA of 2048 to 4096"),
    ],
    ids=["missing", "empty", "nonsense", "elliptic", "short"],
)
def test_a_document_without_a_usable_key_is_refused(kms: Kms, clock: Clock, key: Any, why: str) -> None:  # noqa: ANN401
    der = key if key is None or isinstance(key, bytes) else key.public_bytes(*SPKI)

    error = refused(kms, "GenerateRandom", NumberOfBytes=5, Recipient=attest(clock, der))

    assert error.kind == "ValidationException"
    assert why in error.message


SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_all_operations_that_take_a_recipient(kms: Kms, clock: Clock) -> None:
    secret, recipient = secret_under(kms, attested_policy(RIGHT)), enclave(clock)
    policy = attested_policy(RIGHT)
    agreement = ask(kms, "CreateKey", KeySpec="ECC_NIST_P384", KeyUsage="KEY_AGREEMENT", Policy=policy)
    theirs = ec.generate_private_key(ec.SECP384R1())

    def asked(operation: str, **parameters: object) -> dict[str, Any]:
        return ask(kms, operation, Recipient=as_json(recipient.parameter()), **parameters)

    data_key = asked("GenerateDataKey", KeyId=secret.key_id, KeySpec="AES_256")
    pair = asked("GenerateDataKeyPair", KeyId=secret.key_id, KeyPairSpec="ECC_NIST_P256")
    random = asked("GenerateRandom", NumberOfBytes=77)
    key_id = agreement["KeyMetadata"]["KeyId"]
    shared = asked(
        "DeriveSharedSecret",
        KeyId=key_id,
        KeyAgreementAlgorithm="ECDH",
        PublicKey=text(theirs.public_key().public_bytes(*SPKI)),
    )

    for answer in (data_key, pair, random, shared):
        assert not {"Plaintext", "PrivateKeyPlaintext", "SharedSecret"} & set(answer)
    plain = opened(recipient, data_key)
    assert len(plain) == 32
    assert opened(recipient, asked("Decrypt", CiphertextBlob=data_key["CiphertextBlob"])) == plain
    private = load_der_private_key(opened(recipient, pair), None)
    assert text(private.public_key().public_bytes(*SPKI)) == pair["PublicKey"]
    assert opened(recipient, asked("Decrypt", CiphertextBlob=pair["PrivateKeyCiphertextBlob"])) == opened(
        recipient, pair
    )
    assert len(opened(recipient, random)) == 77
    ours = kms.store.find(key_id).private_key.private_key.public_key()  # type: ignore[attr-defined]
    assert opened(recipient, shared) == theirs.exchange(ec.ECDH(), ours)


def test_other_operations_ignore_a_recipient(kms: Kms, clock: Clock) -> None:
    secret, recipient = secret_under(kms), enclave(clock)

    answer = ask(
        kms, "Encrypt", KeyId=secret.key_id, Plaintext="AAAA", Recipient=as_json(recipient.parameter())
    )

    assert "CiphertextBlob" in answer


@pytest.mark.parametrize("recipient", [{}, {"KeyEncryptionAlgorithm": KEY_ENCRYPTION}])
def test_a_recipient_without_a_document(kms: Kms, recipient: dict[str, str]) -> None:
    assert refused(kms, "GenerateRandom", NumberOfBytes=5, Recipient=recipient).kind == "ValidationException"


def test_a_secret_is_bound_to_its_encryption_context(kms: Kms) -> None:
    key_id = secret_under(kms).key_id
    blob = ask(kms, "Encrypt", KeyId=key_id, Plaintext="AAAA", EncryptionContext={"a": "b"})["CiphertextBlob"]

    assert ask(kms, "Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "b"})["Plaintext"] == "AAAA"
    assert refused(kms, "Decrypt", CiphertextBlob=blob).kind == "InvalidCiphertextException"


def test_conditions_on_the_encryption_context_and_the_caller(kms: Kms) -> None:
    condition = {
        "StringEquals": {"kms:EncryptionContext:app": "vault", "aws:PrincipalArn": ROLE},
        "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["app"]},
    }
    everything = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "kms:*",
        "Resource": "*",
        "Condition": condition,
    }
    key_id = ask(kms, "CreateKey", Policy=json.dumps({"Statement": [everything]}))["KeyMetadata"]["KeyId"]

    assert ask(kms, "Encrypt", KeyId=key_id, Plaintext="AAAA", EncryptionContext={"app": "vault"})
    for context in ({}, {"app": "other"}, {"app": "vault", "more": "x"}):
        error = refused(kms, "Encrypt", KeyId=key_id, Plaintext="AAAA", EncryptionContext=context)
        assert error.kind == "AccessDeniedException"


def test_callers_are_told_apart_by_access_key(clock: Clock) -> None:
    admin = f"arn:aws:iam::{ACCOUNT}:user/admin"
    kms = kms_of(clock, callers={"AKIAADMIN": admin}, access_keys=["AKIAAPP"])
    statement = {"Effect": "Allow", "Principal": {"AWS": admin}, "Action": "kms:*", "Resource": "*"}
    made = ask(kms, "CreateKey", "AKIAADMIN", Policy=json.dumps({"Statement": [statement]}))
    key_id = made["KeyMetadata"]["KeyId"]

    assert ask(kms, "DescribeKey", "AKIAADMIN", KeyId=key_id)
    assert refused(kms, "DescribeKey", "AKIAAPP", KeyId=key_id).kind == "AccessDeniedException"
    assert refused(kms, "DescribeKey", "AKIAOTHER", KeyId=key_id).kind == "UnrecognizedClientException"


def test_a_grant_lets_in_whom_it_names(clock: Clock) -> None:
    kms = kms_of(clock, caller=None, callers={"AKIAROLE": ROLE})
    secret = secret_under(kms, None)
    assert (
        refused(kms, "Decrypt", "AKIAROLE", CiphertextBlob=secret.ciphertext).kind == "AccessDeniedException"
    )

    grant = ask(kms, "CreateGrant", KeyId=secret.key_id, GranteePrincipal=ROLE, Operations=["Decrypt"])

    assert ask(kms, "Decrypt", "AKIAROLE", CiphertextBlob=secret.ciphertext)["Plaintext"] == text(
        b"the secret"
    )
    assert (
        refused(kms, "Encrypt", "AKIAROLE", KeyId=secret.key_id, Plaintext="AAAA").kind
        == "AccessDeniedException"
    )
    ask(kms, "RevokeGrant", KeyId=secret.key_id, GrantId=grant["GrantId"])
    assert (
        refused(kms, "Decrypt", "AKIAROLE", CiphertextBlob=secret.ciphertext).kind == "AccessDeniedException"
    )


def test_a_key_that_is_disabled_or_about_to_be_deleted(kms: Kms) -> None:
    secret = secret_under(kms)

    ask(kms, "DisableKey", KeyId=secret.key_id)
    assert refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext).kind == "DisabledException"
    ask(kms, "EnableKey", KeyId=secret.key_id)
    assert ask(kms, "Decrypt", CiphertextBlob=secret.ciphertext)
    ask(kms, "ScheduleKeyDeletion", KeyId=secret.key_id, PendingWindowInDays=7)
    assert refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext).kind == "KMSInvalidStateException"


@pytest.mark.parametrize(
    ("operation", "parameters", "kind"),
    [
        ("Nothing", {}, "UnknownOperationException"),
        ("Decrypt", {}, "ValidationException"),
        ("Decrypt", {"CiphertextBlob": ""}, "ValidationException"),
        ("Decrypt", {"CiphertextBlob": 5}, "SerializationException"),
        ("Decrypt", {"CiphertextBlob": "!"}, "SerializationException"),
        ("Decrypt", {"CiphertextBlob": "AAAA"}, "InvalidCiphertextException"),
        ("Encrypt", {"KeyId": "nothing", "Plaintext": "AAAA"}, "NotFoundException"),
        ("Encrypt", {"KeyId": "alias/nothing", "Plaintext": "AAAA"}, "NotFoundException"),
        ("GenerateRandom", {}, "ValidationException"),
        ("GenerateRandom", {"NumberOfBytes": 1025}, "ValidationException"),
        ("GenerateRandom", {"NumberOfBytes": True}, "SerializationException"),
        ("GenerateRandom", {"NumberOfBytes": 1 << 70}, "SerializationException"),
        ("CreateKey", {"Policy": "{"}, "MalformedPolicyDocumentException"),
        ("CreateKey", {"KeySpec": "ROT13"}, "ValidationException"),
        ("CreateKey", {"MultiRegion": True}, "UnsupportedOperationException"),
        ("CreateKey", {"Tags": [5]}, "SerializationException"),
        ("CreateCustomKeyStore", {"CustomKeyStoreName": "x"}, "UnsupportedOperationException"),
        ("ListKeys", {"Limit": 0}, "ValidationException"),
    ],
)
def test_bad_requests(kms: Kms, operation: str, parameters: dict[str, object], kind: str) -> None:
    assert refused(kms, operation, **parameters).kind == kind


def test_only_policies_that_can_be_evaluated_are_taken(kms: Kms) -> None:
    tpm = {"StringEquals": {"kms:RecipientAttestation:NitroTPMPCR4": "00"}}
    key_id = secret_under(kms, attested_policy(RIGHT)).key_id
    before = ask(kms, "GetKeyPolicy", KeyId=key_id)["Policy"]

    error = refused(kms, "PutKeyPolicy", KeyId=key_id, PolicyName="default", Policy=attested_policy(tpm))

    assert error.kind == "UnsupportedOperationException"
    assert "NitroTPM" in error.message
    assert ask(kms, "GetKeyPolicy", KeyId=key_id, PolicyName="default")["Policy"] == before


def test_what_moto_stumbles_over_is_an_internal_error(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.kms.models import KmsBackend

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(KmsBackend, "list_keys", broken)

    error = refused(kms, "ListKeys")

    assert (error.kind, error.status) == ("KMSInternalException", 500)
    assert "ZeroDivisionError" in error.detail


def test_a_dry_run_changes_nothing(kms: Kms, clock: Clock) -> None:
    secret, recipient = secret_under(kms), enclave(clock)
    parameter = as_json(recipient.parameter())

    error = refused(kms, "Decrypt", CiphertextBlob=secret.ciphertext, DryRun=True, Recipient=parameter)

    assert error.kind == "DryRunOperationException"


def test_keys_outlive_the_server(clock: Clock) -> None:
    kms = kms_of(clock)
    policy = attested_policy(RIGHT)
    secret = secret_under(kms, policy)
    ask(kms, "CreateAlias", AliasName="alias/mine", TargetKeyId=secret.key_id)
    ask(kms, "TagResource", KeyId=secret.key_id, Tags=[{"TagKey": "a", "TagValue": "b"}])
    ask(kms, "CreateGrant", KeyId=secret.key_id, GranteePrincipal=ROLE, Operations=["Decrypt"])
    elliptic = ask(kms, "CreateKey", KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy)
    elliptic_id = elliptic["KeyMetadata"]["KeyId"]
    message: dict[str, object] = {
        "KeyId": elliptic_id,
        "Message": "AAAA",
        "SigningAlgorithm": "ECDSA_SHA_256",
    }
    signature = ask(kms, "Sign", **message)["Signature"]
    doomed = ask(kms, "CreateKey", Policy=policy)["KeyMetadata"]["KeyId"]
    ask(kms, "ScheduleKeyDeletion", KeyId=doomed)

    again = kms_of(clock)
    again.store.restore(json.loads(json.dumps(kms.store.state())))  # type: ignore[attr-defined]

    assert again.store.state() == kms.store.state()  # type: ignore[attr-defined]
    assert ask(again, "Decrypt", CiphertextBlob=secret.ciphertext)["Plaintext"] == text(b"the secret")
    assert ask(again, "DescribeKey", KeyId="alias/mine")["KeyMetadata"]["KeyId"] == secret.key_id
    assert ask(again, "ListResourceTags", KeyId=secret.key_id)["Tags"] == [{"TagKey": "a", "TagValue": "b"}]
    assert ask(again, "Verify", **message, Signature=signature)["SignatureValid"]
    described = ask(again, "DescribeKey", KeyId=doomed)["KeyMetadata"]
    assert described == ask(kms, "DescribeKey", KeyId=doomed)["KeyMetadata"]


@pytest.mark.parametrize("state", [{}, {"version": 2, "keys": []}, {"version": 1, "keys": [5]}, [], None])
def test_what_is_no_state(kms: Kms, state: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="not"):
        kms.store.restore(state)  # type: ignore[attr-defined]


def test_an_answer_in_an_envelope_is_logged_with_the_enclave(
    kms: Kms, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    recipient = enclave(clock, instance_id="i-01234567", enclave_id="f" * 16)
    with caplog.at_level(logging.INFO, "nitro_nsm.kms"):
        ask(kms, "GenerateRandom", NumberOfBytes=5, Recipient=as_json(recipient.parameter()))

    assert "GenerateRandom for i-01234567-encffffffffffffffff: answered in an envelope" in caplog.text


def test_aliases_are_made_moved_and_deleted_by_the_right_to_their_key(clock: Clock) -> None:
    admin = f"arn:aws:iam::{ACCOUNT}:user/admin"
    kms = kms_of(clock, callers={"AKIAADMIN": admin})
    statement = {"Effect": "Allow", "Principal": {"AWS": admin}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Statement": [statement]})
    first, second = (
        ask(kms, "CreateKey", "AKIAADMIN", Policy=policy)["KeyMetadata"]["KeyId"] for _ in range(2)
    )
    alias = "alias/app"

    assert refused(kms, "CreateAlias", AliasName=alias, TargetKeyId=first).kind == "AccessDeniedException"
    ask(kms, "CreateAlias", "AKIAADMIN", AliasName=alias, TargetKeyId=first)
    ask(kms, "UpdateAlias", "AKIAADMIN", AliasName=alias, TargetKeyId=second)
    assert ask(kms, "DescribeKey", "AKIAADMIN", KeyId=alias)["KeyMetadata"]["KeyId"] == second
    assert refused(kms, "DeleteAlias", AliasName=alias).kind == "AccessDeniedException"
    ask(kms, "DeleteAlias", "AKIAADMIN", AliasName=alias)
    assert refused(kms, "DescribeKey", "AKIAADMIN", KeyId=alias).kind == "NotFoundException"


def test_a_grant_is_retired_by_its_token(kms: Kms) -> None:
    key_id = secret_under(kms).key_id
    grant = ask(kms, "CreateGrant", KeyId=key_id, GranteePrincipal=ROLE, Operations=["Decrypt"])

    ask(kms, "RetireGrant", GrantToken=grant["GrantToken"])

    assert ask(kms, "ListGrants", KeyId=key_id)["Grants"] == []


@pytest.mark.parametrize(
    ("constraints", "context", "allowed"),
    [
        ({"EncryptionContextSubset": {"a": "b"}}, {"a": "b"}, True),
        ({"EncryptionContextSubset": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"EncryptionContextSubset": {"a": "b"}}, {"a": "x"}, False),
        ({"EncryptionContextSubset": {"a": "b"}}, {}, False),
        ({"EncryptionContextEquals": {"a": "b"}}, {"a": "b"}, True),
        ({"EncryptionContextEquals": {"a": "b"}}, {"a": "b", "c": "d"}, False),
    ],
)
def test_a_grant_may_want_an_encryption_context(
    clock: Clock,
    constraints: dict[str, object],
    context: dict[str, str],
    allowed: bool,  # noqa: FBT001
) -> None:
    kms = kms_of(clock, caller=None, callers={"AKIAROLE": ROLE})
    key_id = secret_under(kms, None).key_id
    grant = {"GranteePrincipal": ROLE, "Operations": ["Encrypt"], "Constraints": constraints}
    ask(kms, "CreateGrant", KeyId=key_id, **grant)
    request: dict[str, object] = {"KeyId": key_id, "Plaintext": "AAAA", "EncryptionContext": context}

    if allowed:
        assert ask(kms, "Encrypt", "AKIAROLE", **request)
    else:
        assert refused(kms, "Encrypt", "AKIAROLE", **request).kind == "AccessDeniedException"


def test_a_secret_moves_to_another_key(kms: Kms) -> None:
    secret, other = secret_under(kms), secret_under(kms)

    moved = ask(kms, "ReEncrypt", CiphertextBlob=secret.ciphertext, DestinationKeyId=other.key_id)

    assert moved["KeyId"].endswith(other.key_id)
    assert ask(kms, "Decrypt", CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == text(b"the secret")
    ask(kms, "DisableKey", KeyId=other.key_id)
    again = refused(kms, "ReEncrypt", CiphertextBlob=secret.ciphertext, DestinationKeyId=other.key_id)
    assert again.kind == "DisabledException"


def test_a_pair_is_bound_to_its_encryption_context(kms: Kms) -> None:
    key_id, context = secret_under(kms).key_id, {"a": "b"}

    pair = ask(
        kms,
        "GenerateDataKeyPairWithoutPlaintext",
        KeyId=key_id,
        KeyPairSpec="ECC_NIST_P256",
        EncryptionContext=context,
    )

    assert "PrivateKeyPlaintext" not in pair
    blob = pair["PrivateKeyCiphertextBlob"]
    assert refused(kms, "Decrypt", CiphertextBlob=blob).kind == "InvalidCiphertextException"
    assert ask(kms, "Decrypt", CiphertextBlob=blob, EncryptionContext=context)["Plaintext"]
    other = refused(kms, "GenerateDataKeyPair", KeyId=key_id, KeyPairSpec="SM2")
    assert other.kind == "UnsupportedOperationException"


def test_a_shared_secret_needs_a_key_for_it_and_one_of_its_curve(kms: Kms) -> None:
    symmetric = secret_under(kms).key_id
    made = ask(kms, "CreateKey", KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT", Policy=OPEN)
    agreement = made["KeyMetadata"]["KeyId"]
    p384, p256 = (
        ec.generate_private_key(curve).public_key().public_bytes(*SPKI)
        for curve in (ec.SECP384R1(), ec.SECP256R1())
    )

    def derived(key_id: str, public: bytes) -> dict[str, object]:
        return {"KeyId": key_id, "KeyAgreementAlgorithm": "ECDH", "PublicKey": text(public)}

    assert ask(kms, "DeriveSharedSecret", **derived(agreement, p256))["SharedSecret"]
    wrong_use = refused(kms, "DeriveSharedSecret", **derived(symmetric, p256))
    assert wrong_use.kind == "InvalidKeyUsageException"
    for public in (p384, b"nonsense", SHORT.public_key().public_bytes(*SPKI)):
        error = refused(kms, "DeriveSharedSecret", **derived(agreement, public))
        assert error.kind == "ValidationException"


def test_nothing_of_a_key_grows_without_bound(kms: Kms) -> None:
    key_id = secret_under(kms).key_id
    fifty = [{"TagKey": f"k{number}", "TagValue": "v"} for number in range(50)]

    for number in range(50):
        ask(kms, "CreateAlias", AliasName=f"alias/a{number}", TargetKeyId=key_id)
    ask(kms, "TagResource", KeyId=key_id, Tags=fifty)

    ask(kms, "TagResource", KeyId=key_id, Tags=fifty)
    more = refused(kms, "CreateAlias", AliasName="alias/more", TargetKeyId=key_id)
    assert more.kind == "LimitExceededException"
    another = refused(kms, "TagResource", KeyId=key_id, Tags=[{"TagKey": "more", "TagValue": "v"}])
    assert another.kind == "LimitExceededException"


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("RSA_2048", 2048),
        ("RSA_3072", 3072),
        ("RSA_4096", 4096),
        ("ECC_NIST_P256", 256),
        ("ECC_NIST_P384", 384),
        ("ECC_NIST_P521", 521),
        ("ECC_SECG_P256K1", 256),
    ],
)
def test_pairs_of_each_kind(kms: Kms, spec: str, size: int) -> None:
    key_id = secret_under(kms).key_id

    pair = ask(kms, "GenerateDataKeyPair", KeyId=key_id, KeyPairSpec=spec)

    private = load_der_private_key(base64.b64decode(pair["PrivateKeyPlaintext"]), None)
    assert isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    assert private.key_size == size
    assert text(private.public_key().public_bytes(*SPKI)) == pair["PublicKey"]
    decrypted = ask(kms, "Decrypt", CiphertextBlob=pair["PrivateKeyCiphertextBlob"])
    assert decrypted["Plaintext"] == pair["PrivateKeyPlaintext"]


def rsa_key(kms: Kms, usage: str = "ENCRYPT_DECRYPT") -> str:
    made = ask(kms, "CreateKey", KeySpec="RSA_2048", KeyUsage=usage, Policy=OPEN)
    key_id: str = made["KeyMetadata"]["KeyId"]
    return key_id


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [("RSAES_OAEP_SHA_1", hashes.SHA1()), ("RSAES_OAEP_SHA_256", hashes.SHA256())],  # noqa: S303 - AWS's
)
def test_what_was_encrypted_to_a_public_key_comes_in_an_envelope(
    kms: Kms, clock: Clock, algorithm: str, digest: hashes.HashAlgorithm
) -> None:
    key_id, recipient = rsa_key(kms), enclave(clock)
    public = load_der_public_key(base64.b64decode(ask(kms, "GetPublicKey", KeyId=key_id)["PublicKey"]))
    assert isinstance(public, rsa.RSAPublicKey)
    ciphertext = public.encrypt(b"secret", padding.OAEP(padding.MGF1(digest), digest, None))

    answer = ask(
        kms,
        "Decrypt",
        KeyId=key_id,
        EncryptionAlgorithm=algorithm,
        CiphertextBlob=text(ciphertext),
        Recipient=as_json(recipient.parameter()),
    )

    assert recipient.open(base64.b64decode(answer["CiphertextForRecipient"])) == b"secret"
    assert "Plaintext" not in answer
    assert answer["EncryptionAlgorithm"] == algorithm


def test_the_kms_encrypts_to_its_rsa_keys_itself(kms: Kms) -> None:
    named = {"KeyId": rsa_key(kms), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}

    sealed = ask(kms, "Encrypt", **named, Plaintext=text(b"secret"))
    opened = ask(kms, "Decrypt", **named, CiphertextBlob=sealed["CiphertextBlob"])

    assert base64.b64decode(opened["Plaintext"]) == b"secret"
    assert opened["KeyId"] == sealed["KeyId"]


OAEP = "RSAES_OAEP_SHA_256"


@pytest.mark.parametrize(
    ("operation", "usage", "more", "kind"),
    [
        ("Encrypt", "ENCRYPT_DECRYPT", {}, "InvalidKeyUsageException"),
        ("Encrypt", "SIGN_VERIFY", {"EncryptionAlgorithm": OAEP}, "InvalidKeyUsageException"),
        ("Encrypt", "ENCRYPT_DECRYPT", {"EncryptionAlgorithm": OAEP, "Plaintext": text(b"A" * 191)}, "Vali"),
        ("Decrypt", "ENCRYPT_DECRYPT", {"EncryptionAlgorithm": OAEP}, "InvalidCiphertextException"),
        (
            "Encrypt",
            "ENCRYPT_DECRYPT",
            {"EncryptionAlgorithm": OAEP, "EncryptionContext": {"a": "b"}},
            "ValidationException",
        ),
        ("GenerateDataKey", "ENCRYPT_DECRYPT", {"KeySpec": "AES_256"}, "InvalidKeyUsageException"),
    ],
)
def test_what_rsa_keys_do_not_do(
    kms: Kms, operation: str, usage: str, more: dict[str, Any], kind: str
) -> None:
    data = {"Encrypt": {"Plaintext": text(b"A" * 190)}, "Decrypt": {"CiphertextBlob": text(b"A" * 256)}}
    parameters = data.get(operation, {}) | more

    assert refused(kms, operation, KeyId=rsa_key(kms, usage), **parameters).kind.startswith(kind)


def test_symmetric_keys_have_one_algorithm(kms: Kms) -> None:
    key_id = secret_under(kms).key_id

    error = refused(kms, "Encrypt", KeyId=key_id, Plaintext=text(b"a"), EncryptionAlgorithm=OAEP)

    assert error.kind == "InvalidKeyUsageException"
    assert "incompatible with key spec SYMMETRIC_DEFAULT" in error.message


def test_there_are_only_so_many_keys(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitro_nsm.kms.keys.KEYS_MAX", 1)
    secret_under(kms)

    assert refused(kms, "CreateKey").kind == "LimitExceededException"
    assert ask(kms, "ListKeys")["Keys"]
