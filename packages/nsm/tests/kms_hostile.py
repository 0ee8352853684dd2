"""Requests that are almost right, made of real ones: bytes changed, cut, doubled, and values of other kinds.

Run as a program it sends many: ``python kms_hostile.py 100000``.
"""

import base64
import json
import random
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import h11

from kms_world import OPEN, Clock, as_json, attested_policy, enclave, kms_of, secret_under
from nitro_nsm.kms.http import Conversation

if TYPE_CHECKING:
    from nitro_nsm.kms.service import Kms

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1 << 70,
    1.5,
    "",
    "x",
    "A" * 4097,
    [],
    [1],
    {},
    {"a": "b"},
    "\udcff",
)
CREDENTIAL = (
    "AWS4-HMAC-SHA256 Credential=AKIA/20261126/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0"
)


def http(operation: str, body: bytes, *, authorization: str = CREDENTIAL) -> bytes:
    """A request as a client sends it."""
    head = (
        f"POST / HTTP/1.1\r\nHost: kms.us-east-1.amazonaws.com\r\nX-Amz-Target: TrentService.{operation}\r\n"
        f"Authorization: {authorization}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class World:
    """A KMS with some keys, and one good request of each kind."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.restart()

    def restart(self) -> None:
        """Start over, with few keys."""
        self.kms: Kms = kms_of(self.clock)
        right = {"StringLike": {"kms:RecipientAttestation:PCR0": "01*"}}
        secret = secret_under(self.kms)
        bound = self.kms.handle("CreateKey", {"Policy": attested_policy(right)}, access_key="AKIA")
        assert bound
        spec = {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT", "Policy": OPEN}
        made: Any = self.kms.handle("CreateKey", spec, access_key="AKIA")
        asymmetric = {"KeyId": made["KeyMetadata"]["KeyId"], "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}
        recipient = as_json(enclave(self.clock).parameter())
        key_id, blob, data = secret.key_id, secret.ciphertext, base64.b64encode(b"data").decode()
        self.requests: list[tuple[str, dict[str, Any]]] = [
            ("Decrypt", {"CiphertextBlob": blob, "Recipient": recipient}),
            ("Decrypt", {"CiphertextBlob": blob, "KeyId": key_id}),
            ("Encrypt", {"KeyId": key_id, "Plaintext": data, "EncryptionContext": {"a": "b"}}),
            ("GenerateDataKey", {"KeyId": key_id, "KeySpec": "AES_256", "Recipient": recipient}),
            ("GenerateRandom", {"NumberOfBytes": 32, "Recipient": recipient}),
            ("Encrypt", asymmetric | {"Plaintext": data}),
            ("Decrypt", asymmetric | {"CiphertextBlob": data, "Recipient": recipient}),
            ("PutKeyPolicy", {"KeyId": key_id, "PolicyName": "default", "Policy": OPEN}),
            ("GetKeyPolicy", {"KeyId": key_id, "PolicyName": "default"}),
            ("DescribeKey", {"KeyId": key_id}),
            ("ListKeys", {"Limit": 10}),
            ("ListAliases", {"KeyId": key_id}),
            ("CreateAlias", {"AliasName": "alias/a", "TargetKeyId": key_id}),
            ("TagResource", {"KeyId": key_id, "Tags": [{"TagKey": "a", "TagValue": "b"}]}),
            ("ListResourceTags", {"KeyId": key_id}),
            ("CreateGrant", {"KeyId": key_id, "GranteePrincipal": "arn:x", "Operations": ["Decrypt"]}),
            ("ListGrants", {"KeyId": key_id}),
            ("ReEncrypt", {"CiphertextBlob": blob, "DestinationKeyId": key_id}),
            ("EnableKeyRotation", {"KeyId": key_id}),
            ("DeriveSharedSecret", {"KeyId": key_id, "KeyAgreementAlgorithm": "ECDH", "PublicKey": data}),
            ("Sign", {"KeyId": key_id, "Message": data, "SigningAlgorithm": "ECDSA_SHA_256"}),
        ]

    def check(self, sent: bytes, pieces: int = 1) -> None:
        """Send bytes, and expect well-formed answers, none of which is an internal error."""
        conversation = Conversation(self.kms)
        step = max(1, -(-len(sent) // pieces))
        received = b"".join(
            conversation.receive(sent[start : start + step]) for start in range(0, len(sent), step)
        )
        if not conversation.closed:
            received += conversation.receive(b"")
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(received)
        event = client.next_event() if received else None
        if isinstance(event, h11.Response):
            assert event.status_code != 500, (sent, received)
            body = client.next_event()
            assert isinstance(body, h11.Data)
            assert isinstance(json.loads(bytes(body.data)), dict)


def mutants(world: World, chance: random.Random) -> Iterator[bytes]:
    """Requests without end."""
    while True:
        operation, parameters = chance.choice(world.requests)
        match chance.randrange(4):
            case 0:
                body = json.dumps(_changed(parameters, chance)).encode()
            case 1:
                body = _damaged(json.dumps(parameters).encode(), chance)
            case 2:
                other, _ = chance.choice(world.requests)
                yield http(other, json.dumps(_changed(parameters, chance)).encode())
                continue
            case _:
                yield _damaged(http(operation, json.dumps(parameters).encode()), chance)
                continue
        yield http(operation, body)


def _changed(value: Any, chance: random.Random) -> Any:  # noqa: ANN401
    """Somewhere in a value, another one."""
    match value:
        case dict() if value and chance.random() < 0.9:
            name = chance.choice(list(value))
            return value | {name: _changed(value[name], chance)}
        case list() if value and chance.random() < 0.5:
            return [_changed(value[0], chance), *value[1:]]
        case str() if len(value) > 100 and chance.random() < 0.7:
            raw = _damaged(base64.b64decode(value + "===", validate=False), chance)
            return base64.b64encode(raw).decode()
        case str() if value.startswith("{"):
            return json.dumps(_changed(json.loads(value), chance))
    return chance.choice(VALUES)


def _damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        position = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0 if position < len(changed):
                changed[position] = chance.randrange(256)
            case 1:
                del changed[position : position + chance.randint(1, 20)]
            case 2:
                changed[position:position] = changed[position : position + chance.randint(1, 50)]
            case _:
                del changed[position:]
    return bytes(changed)


def attack(count: int, seed: int) -> None:
    """Send so many mutated requests."""
    chance, world = random.Random(seed), World()
    source = mutants(world, chance)
    for number in range(count):
        if number % 2000 == 1999:
            world.restart()
        world.check(next(source), pieces=chance.choice((1, 1, 2, 7)))


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print("every request got an answer")
