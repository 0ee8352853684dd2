"""The keys, aliases, tags and grants: moto's, called in process.

This is the only file that knows moto. It uses the class that answers moto's HTTP requests, one method an
operation, and the attributes of moto's `Key`; `KeyStore.state` saves them all, and refuses to save what it
does not know, so that a newer moto cannot lose anything silently.
"""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TypeVar

from botocore import xform_name
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from moto.core.exceptions import JsonRESTError
from moto.kms.models import Grant, Key, KmsBackend
from moto.kms.responses import KmsResponse
from moto.kms.utils import ECDSAPrivateKey, RSAPrivateKey

from nitro_nsm.kms.errors import KmsError

KEYS_MAX = 10_000
"""Each takes some kilobytes and, being made, a tenth of a second."""
ALIASES_MAX, GRANTS_MAX, TAGS_MAX = 50, 1000, 50
"""A key's, as AWS's quotas are, or fewer: AWS allows 50,000 grants."""
CIPHERTEXT_KEY_ID_BYTES = 36
"""moto's ciphertexts begin with the id of their key."""
UNSUPPORTED = frozenset({"ReplicateKey", "UpdatePrimaryRegion"})
"""Operations that reach into other regions, of which there is one here."""

Answer = dict[str, object]
T = TypeVar("T")


class _Responses(KmsResponse):
    """moto's answers, over a backend of our own instead of the one that all of the process shares."""

    def __init__(self, backend: KmsBackend, body: str) -> None:
        super().__init__()
        self._backend = backend
        self.body = body
        self.region = backend.region_name
        self.current_account = backend.account_id

    @property
    def kms_backend(self) -> KmsBackend:
        return self._backend

    def _validate_key_policy(self, key_id: str, action: str) -> None:
        """Allow everything: `service` has evaluated the policy, and moto's own check fails on some."""


class KeyStore:
    """All keys of one account in one region.

    Args:
        account: 12 digits.
        region: Such as `us-east-1`.
    """

    def __init__(self, account: str, region: str) -> None:
        self._backend = KmsBackend(region, account)

    def call(self, operation: str, parameters: Answer) -> Answer:
        """Do what an operation of the API says.

        Args:
            operation: Such as `CreateKey`.
            parameters: Checked against the API's description.

        Raises:
            KmsError: The request is refused, or this operation is not there (UnsupportedOperationException).
        """
        responses = _Responses(self._backend, json.dumps(parameters))
        method = getattr(responses, xform_name(operation), None)
        if method is None or operation in UNSUPPORTED:
            raise KmsError("UnsupportedOperationException", f"{operation} is not there in a local KMS")
        self._check_quota(operation, parameters)
        try:
            answer = json.loads(method() or "null")
        except JsonRESTError as error:
            message = error.message or "The request is not valid."
            raise KmsError(error.relative_error_type, message, status=error.code) from error
        except Exception as error:  # moto may raise anything about requests that it did not think of
            raise KmsError(
                "KMSInternalException",
                f"{operation} failed",
                status=500,
                detail=f"moto raised {type(error).__name__}: {error}",
            ) from error
        return answer if isinstance(answer, dict) else {}

    def _check_quota(self, operation: str, parameters: Answer) -> None:
        """Refuse what would grow without bound; moto has no quotas."""
        match operation, parameters:
            case "CreateKey", _:
                count, most = len(self._backend.keys), KEYS_MAX
            case "CreateAlias", {"TargetKeyId": str(name)}:
                count, most = len(self.find(name).aliases), ALIASES_MAX
            case "CreateGrant", {"KeyId": str(name)}:
                count, most = len(self.find(name).grants), GRANTS_MAX
            case "TagResource", {"KeyId": str(name), "Tags": list(tags)}:
                held = self._backend.tagger.list_tags_for_resource(self.find(name).id)["Tags"]
                count, most = len({tag["TagKey"] for tag in (*held, *tags)}) - 1, TAGS_MAX
            case _:
                return
        if count >= most:
            raise KmsError("LimitExceededException", f"{operation}: there are {most} already, the most")

    def find(self, name: str) -> Key:
        """The key of an id, an ARN or an alias.

        Raises:
            KmsError: There is none (NotFoundException).
        """
        try:
            return self._backend.keys[self._backend.any_id_to_key_id(name)]
        except (KeyError, AttributeError):
            raise KmsError("NotFoundException", f"{name} is not found.") from None

    def of_ciphertext(self, ciphertext: bytes) -> Key | None:
        """The key that made a ciphertext."""
        key_id = ciphertext[:CIPHERTEXT_KEY_ID_BYTES].decode(errors="replace")
        return self._backend.keys.get(key_id)

    def of_alias(self, alias: str) -> Key | None:
        """The key that an alias names."""
        return next((key for key in self._backend.keys.values() if alias in key.aliases), None)

    def of_grant(self, token: str) -> Key | None:
        """The key that a grant, by its token, is for."""
        for key in self._backend.keys.values():
            if any(grant.token == token for grant in key.grants.values()):
                return key
        return None

    def state(self) -> Answer:
        """All keys, with their secrets, as JSON can hold them.

        Raises:
            KmsError: moto's keys have something that is not known here (KMSInternalException).
        """
        tagged = self._backend.tagger
        return {
            "version": 1,
            "keys": [
                {name: _encoded(value) for name, value in vars(key).items() if name != "aliases"}
                | {"aliases": sorted(key.aliases)}
                | {"tags": tagged.list_tags_for_resource(key.id)["Tags"]}
                for key in self._backend.keys.values()
            ],
        }

    def restore(self, state: Answer) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: It is not a state; nothing of it is taken over then.
        """
        try:
            keys = list(_keys(state))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the state of a KMS: {error!r}") from error
        for key, aliases, tags in keys:
            self._backend.keys[key.id] = key
            for alias in aliases:
                self._backend.create_alias(key.id, alias)
            if tags:
                self._backend.tagger.tag_resource(key.id, tags)


def _keys(state: Answer) -> Iterator[tuple[Key, list[str], list[dict[str, str]]]]:
    if state["version"] != 1 or not isinstance(state["keys"], list):
        raise ValueError("not of version 1")
    for saved in state["keys"]:
        fields = dict(saved)
        aliases, tags = fields.pop("aliases"), fields.pop("tags")
        key = _remade(Key, {name: _decoded(value) for name, value in fields.items()})  # type: ignore[type-abstract]
        key.aliases = {}
        yield key, aliases, tags


def _encoded(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"$time": value.astimezone(UTC).isoformat()}
        case list():
            return [_encoded(element) for element in value]
        case dict():
            return {"$map": {name: _encoded(element) for name, element in value.items()}}
        case Grant():
            return {"$grant": _encoded(vars(value))}
        case RSAPrivateKey() | ECDSAPrivateKey():
            der = value.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            rest = {name: element for name, element in vars(value).items() if name != "private_key"}
            return {"$private": base64.b64encode(der).decode(), "rest": _encoded(rest)}
    raise KmsError("KMSInternalException", f"moto keeps a {type(value).__name__}, which cannot be saved")


def _decoded(value: object) -> object:
    match value:
        case {"$bytes": str(text)}:
            return base64.b64decode(text, validate=True)
        case {"$time": str(text)}:
            return datetime.fromisoformat(text).replace(tzinfo=None)
        case {"$map": dict(entries)}:
            return {name: _decoded(element) for name, element in entries.items()}
        case {"$grant": fields}:
            return _remade(Grant, _decoded(fields))
        case {"$private": str(text), "rest": rest}:
            key = load_der_private_key(base64.b64decode(text, validate=True), None)
            kind = RSAPrivateKey if isinstance(key, rsa.RSAPrivateKey) else ECDSAPrivateKey
            return _remade(kind, {"private_key": key, **_map(_decoded(rest))})
        case list(elements):
            return [_decoded(element) for element in elements]
    return value


def _remade(kind: type[T], fields: object) -> T:
    """An object with these attributes, made without its constructor, which would make a new key."""
    made = object.__new__(kind)
    vars(made).update(_map(fields))
    return made


def _map(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("fields are missing")
    return value
