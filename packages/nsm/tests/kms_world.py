"""What tests of the KMS have in common: an account, a clock, an enclave, a secret."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from nitro_nsm import Nsm, NsmClient, NsmConfig, Root
from nitro_nsm.kms.client import KmsRecipient
from nitro_nsm.kms.config import KmsConfig
from nitro_nsm.kms.keys import KeyStore
from nitro_nsm.kms.service import Kms
from nitro_nsm.testing import seeded_entropy

NOW_S = 1_795_435_200
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/enclave"
IMAGE = {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48}
ROOT = Root.create("test", entropy=seeded_entropy(90))
OPEN = json.dumps({"Statement": {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}})
"""Everybody may do everything."""


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> int:
        return int(self.now_s * 1e9)


def enclave(clock: Clock, *, root: Root = ROOT, **config: Any) -> KmsRecipient:  # noqa: ANN401
    """The enclave's side, of the usual image or another."""
    start = NsmConfig.model_validate({"pcrs": IMAGE} | config)
    nsm = Nsm(start, root=root, entropy=seeded_entropy(91), clock=clock)
    return KmsRecipient(NsmClient(nsm.handle))


def kms_of(clock: Clock, **config: Any) -> Kms:  # noqa: ANN401
    """A KMS without sockets."""
    settings = KmsConfig.model_validate({"caller": ROLE} | config)
    store = KeyStore(settings.account, settings.region)
    return Kms(settings, store, ROOT.trust, entropy=seeded_entropy(92), clock=clock)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_json(parameter: dict[str, str | bytes]) -> dict[str, str]:
    """A parameter with its binary values as Base64."""
    return {name: text(value) if isinstance(value, bytes) else value for name, value in parameter.items()}


def attested_policy(condition: dict[str, Any], *, effect: str = "Allow") -> str:
    """A key policy whose secrets are for enclaves only, and everything else for everybody."""
    secrets = ["kms:Decrypt", "kms:GenerateDataKey*", "kms:DeriveSharedSecret"]
    statement = {"Sid": "enclave", "Effect": effect, "Principal": {"AWS": ROLE}, "Action": secrets}
    rest = {"Effect": "Allow", "Principal": "*", "NotAction": secrets, "Resource": "*"}
    everything = {"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}
    statements = [statement | {"Resource": "*", "Condition": condition}]
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [*statements, rest if effect == "Allow" else everything]}
    )


@dataclass
class Secret:
    """A key, and a secret that it has encrypted."""

    key_id: str
    ciphertext: str


def secret_under(kms: Kms, policy: str | None = OPEN, plaintext: bytes = b"the secret") -> Secret:
    """Make a key and encrypt something."""
    parameters = {} if policy is None else {"Policy": policy}
    made: Any = kms.handle("CreateKey", parameters, access_key="AKIA")
    key_id = made["KeyMetadata"]["KeyId"]
    encrypted: Any = kms.handle("Encrypt", {"KeyId": key_id, "Plaintext": text(plaintext)}, access_key="AKIA")
    return Secret(key_id, encrypted["CiphertextBlob"])
