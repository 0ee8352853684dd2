"""The KMS itself: operations in, answers out, without sockets.

Each request goes the same way: the parameters are checked against the API's description, the caller's right
to the action against the key's policy and grants, the recipient's document if there is one, and then moto
or, where moto has nothing, this file does it. An answer to a recipient has its secret in an envelope
instead of in the clear.
"""

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from nitro_nsm.kms import asymmetric
from nitro_nsm.kms.conditions import Context
from nitro_nsm.kms.config import KmsConfig
from nitro_nsm.kms.envelope import seal
from nitro_nsm.kms.errors import KmsError
from nitro_nsm.kms.keypolicy import Caller, Decision, Request, decide, parse_policy
from nitro_nsm.kms.recipient import KEY_ENCRYPTION, OPERATIONS, Recipient, attested
from nitro_nsm.kms.shapes import checked
from nitro_nsm.pki.trust import TrustRoot
from nitro_nsm.policy import Policy

if TYPE_CHECKING:
    from moto.kms.models import Key

logger = logging.getLogger("nitro_nsm.kms")

READ_ONLY = (
    "Decrypt",
    "Describe",
    "Derive",
    "Encrypt",
    "Generate",
    "Get",
    "List",
    "ReEncrypt",
    "Sign",
    "Verify",
)
"""Operations whose names begin so change nothing that is worth saving."""
FREE = frozenset({"CreateKey", "GenerateRandom", "ListAliases", "ListKeys", "ListRetirableGrants"})
"""Operations without a key, which IAM policies decide about; here they are allowed."""
PAIRS: dict[str, Callable[[], "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey"]] = {
    "RSA_2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA_3072": lambda: rsa.generate_private_key(65537, 3072),
    "RSA_4096": lambda: rsa.generate_private_key(65537, 4096),
    "ECC_NIST_P256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECC_NIST_P384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ECC_NIST_P521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ECC_SECG_P256K1": lambda: ec.generate_private_key(ec.SECP256K1()),
}

Answer = dict[str, object]


class Store(Protocol):
    """The keys that a KMS works with; `keys.KeyStore` is one."""

    def call(self, operation: str, parameters: Answer) -> Answer:
        """Do what an operation says."""

    def find(self, name: str) -> "Key":
        """The key of an id, an ARN or an alias."""

    def of_ciphertext(self, ciphertext: bytes) -> "Key | None":
        """The key that made a ciphertext."""

    def of_alias(self, alias: str) -> "Key | None":
        """The key that an alias names."""

    def of_grant(self, token: str) -> "Key | None":
        """The key that a grant is for."""


@dataclass
class Kms:
    """A local KMS. It is not safe to use from several threads at once."""

    config: KmsConfig
    """Account, callers and demands."""
    store: Store
    """The keys."""
    root: TrustRoot
    """The root that attestation documents must lead to."""
    entropy: Callable[[int], bytes]
    """Returns as many random bytes as it is asked for."""
    clock: Callable[[], int]
    """Returns the nanoseconds since 1970."""
    changed: Callable[[], None] = field(default=lambda: None)
    """Called when keys have changed, so that they can be saved before the answer is given."""

    def handle(self, operation: str, parameters: object, *, access_key: str) -> Answer:
        """Answer one request.

        Args:
            operation: Such as `Decrypt`.
            parameters: The body, decoded from JSON. Binary values are Base64.
            access_key: That of the credentials that signed the request.

        Raises:
            KmsError: The request is refused or failed.
        """
        caller = self._caller(access_key)
        wanted = checked(operation, parameters)
        recipient = self._recipient(operation, wanted)
        for action, key in self._needed(operation, wanted):
            self._authorise(action, key, caller, wanted, recipient)
        if "Policy" in wanted:
            parse_policy(_given(wanted, "Policy"))
        if wanted.get("DryRun"):
            raise KmsError(
                "DryRunOperationException", "The request would have succeeded, but DryRun was given."
            )
        answer = self._do(operation, wanted)
        if not operation.startswith(READ_ONLY):
            self.changed()
        if recipient is not None:
            self._enclose(answer, recipient)
            logger.info("%s for %s: answered in an envelope", operation, recipient.document.module_id)
        return answer

    def _caller(self, access_key: str) -> Caller:
        config = self.config
        if (
            config.access_keys is not None
            and access_key not in config.access_keys
            and access_key not in config.callers
        ):
            raise KmsError(
                "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        root = f"arn:aws:iam::{config.account}:root"
        return Caller(config.callers.get(access_key, config.caller or root), iam_allows=config.iam_allows)

    def _recipient(self, operation: str, wanted: Answer) -> Recipient | None:
        match wanted.pop("Recipient", None):
            case None:
                return None
            case {"AttestationDocument": str(document), **rest} if (
                rest.get("KeyEncryptionAlgorithm", KEY_ENCRYPTION) == KEY_ENCRYPTION
                and operation in OPERATIONS
            ):
                at = datetime.fromtimestamp(self.clock() / 1e9, UTC)
                policy = Policy(max_age_s=self.config.max_age_s, forbid_debug=self.config.forbid_debug)
                return attested(base64.b64decode(document), root=self.root, policy=policy, at=at)
        raise KmsError("ValidationException", "The recipient has no attestation document.")

    def _needed(self, operation: str, wanted: Answer) -> list[tuple[str, "Key"]]:
        """The actions that a request needs, and on which keys."""
        if operation in FREE:
            return []
        found: list[Key | None]
        match operation:
            case "Decrypt" if "KeyId" in wanted and self._is_rsa(self.store.find(_given(wanted, "KeyId"))):
                return [("kms:Decrypt", self.store.find(_given(wanted, "KeyId")))]
            case "Decrypt" | "ReEncrypt":
                blob = base64.b64decode(_given(wanted, "CiphertextBlob"))
                made_by = self.store.of_ciphertext(blob)
                if made_by is None:
                    raise KmsError("InvalidCiphertextException", "The ciphertext is not one of this KMS.")
                if operation == "Decrypt":
                    return [("kms:Decrypt", made_by)]
                destination = self.store.find(_given(wanted, "DestinationKeyId"))
                return [("kms:ReEncryptFrom", made_by), ("kms:ReEncryptTo", destination)]
            case "DeleteAlias":
                found = [self.store.of_alias(_given(wanted, "AliasName"))]
            case "CreateAlias" | "UpdateAlias":
                found = [self.store.find(_given(wanted, "TargetKeyId"))]
            case "RetireGrant" if "KeyId" not in wanted:
                found = [self.store.of_grant(str(wanted.get("GrantToken")))]
            case _:
                if "KeyId" not in wanted:
                    raise KmsError(
                        "UnsupportedOperationException", f"{operation} is not there in a local KMS"
                    )
                found = [self.store.find(_given(wanted, "KeyId"))]
        return [(f"kms:{operation}", key) for key in found if key is not None]

    def _authorise(
        self, action: str, key: "Key", caller: Caller, wanted: Answer, recipient: Recipient | None
    ) -> None:
        context = self._context(key, caller, wanted)
        if recipient is not None:
            context = {**context, **recipient.context}
        request = Request(caller, action, key.arn, context)
        decision = decide(parse_policy(key.policy), request)
        if decision.explicit or not (decision.allowed or _granted(key, request)):
            raise _denied(request, decision)
        if action in USES and key.key_state != "Enabled":
            kind = "DisabledException" if key.key_state == "Disabled" else "KMSInvalidStateException"
            raise KmsError(kind, f"{key.arn} is {'disabled' if kind[0] == 'D' else 'pending deletion'}.")

    def _context(self, key: "Key", caller: Caller, wanted: Answer) -> Context:
        encryption = wanted.get("EncryptionContext") or wanted.get("SourceEncryptionContext")
        pairs = encryption if isinstance(encryption, dict) else {}
        found: dict[str, tuple[str, ...]] = {
            "aws:principalarn": (caller.names[-1],),
            "aws:principalaccount": (caller.account,),
            "kms:calleraccount": (caller.account,),
            "kms:keyorigin": (str(key.origin),),
            "kms:keyspec": (str(key.key_spec),),
            "kms:keyusage": (_usage(key),),
            **{f"kms:encryptioncontext:{name}".lower(): (str(value),) for name, value in pairs.items()},
        }
        if pairs:
            found["kms:encryptioncontextkeys"] = tuple(map(str, pairs))
        for name, parameter in CONTEXT_OF_PARAMETERS.items():
            if parameter in wanted:
                found[name] = (str(wanted[parameter]),)
        return found

    def _do(self, operation: str, wanted: Answer) -> Answer:
        if operation.startswith("GenerateDataKey"):
            key = self.store.find(_given(wanted, "KeyId"))
            asymmetric.check_algorithm(
                asymmetric.SYMMETRIC, key_spec=key.key_spec, key_usage=_usage(key), arn=key.arn
            )
        match operation:
            case "GenerateDataKeyPair" | "GenerateDataKeyPairWithoutPlaintext":
                return self._data_key_pair(wanted, plaintext=operation == "GenerateDataKeyPair")
            case "DeriveSharedSecret":
                return self._shared_secret(wanted)
            case "GenerateRandom":
                count = wanted.get("NumberOfBytes")
                if not isinstance(count, int):
                    raise KmsError("ValidationException", "Please specify the number of bytes.")
                return {"Plaintext": _text(self.entropy(count))}
            case "GetKeyPolicy" | "PutKeyPolicy":
                wanted.setdefault("PolicyName", "default")  # the only name that there is; moto wants it said
            case "CreateKey" if wanted.get("MultiRegion"):
                raise KmsError("UnsupportedOperationException", "a local KMS has one region only")
            case "Encrypt" | "Decrypt" if "KeyId" in wanted:
                return self._crypted(operation, wanted)
            case "ReEncrypt" if self._is_rsa(self.store.find(_given(wanted, "DestinationKeyId"))):
                raise KmsError("UnsupportedOperationException", "a local KMS does not re-encrypt to RSA keys")
        answer = self.store.call(operation, wanted)
        if operation == "Decrypt":
            answer["EncryptionAlgorithm"] = asymmetric.SYMMETRIC  # moto does not say so
        return answer

    @staticmethod
    def _is_rsa(key: "Key") -> bool:
        return key.key_spec.startswith("RSA_")

    def _crypted(self, operation: str, wanted: Answer) -> Answer:
        """Encrypt, or decrypt, with the key that was named: by moto, or here if it is an RSA key."""
        key = self.store.find(_given(wanted, "KeyId"))
        algorithm = str(wanted.get("EncryptionAlgorithm", asymmetric.SYMMETRIC))
        asymmetric.check_algorithm(algorithm, key_spec=key.key_spec, key_usage=_usage(key), arn=key.arn)
        answer: Answer = {"KeyId": key.arn, "EncryptionAlgorithm": algorithm}
        if not self._is_rsa(key):
            return self.store.call(operation, wanted) | answer
        if wanted.get("EncryptionContext"):
            raise KmsError("ValidationException", "Asymmetric keys take no encryption context.")
        private = getattr(key.private_key, "private_key", None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise KmsError("KMSInternalException", "the key has no private key", status=500)
        if operation == "Encrypt":
            given = base64.b64decode(_given(wanted, "Plaintext"))
            return answer | {"CiphertextBlob": _text(asymmetric.encrypt(private, algorithm, given))}
        given = base64.b64decode(_given(wanted, "CiphertextBlob"))
        return answer | {"Plaintext": _text(asymmetric.decrypt(private, algorithm, given))}

    def _data_key_pair(self, wanted: Answer, *, plaintext: bool) -> Answer:
        spec = _given(wanted, "KeyPairSpec")
        if spec not in PAIRS:
            raise KmsError("UnsupportedOperationException", f"a local KMS makes no key pairs of {spec}")
        pair = PAIRS[spec]()
        private = pair.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        public = pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        parameters: Answer = {"KeyId": wanted["KeyId"], "Plaintext": _text(private)}
        if "EncryptionContext" in wanted:
            parameters["EncryptionContext"] = wanted["EncryptionContext"]
        encrypted = self.store.call("Encrypt", parameters)
        answer: Answer = {
            "PrivateKeyCiphertextBlob": encrypted["CiphertextBlob"],
            "PublicKey": _text(public),
            "KeyId": encrypted["KeyId"],
            "KeyPairSpec": spec,
        }
        return answer | ({"PrivateKeyPlaintext": _text(private)} if plaintext else {})

    def _shared_secret(self, wanted: Answer) -> Answer:
        key = self.store.find(_given(wanted, "KeyId"))
        ours = getattr(key.private_key, "private_key", None)
        if key.key_usage != "KEY_AGREEMENT" or not isinstance(ours, ec.EllipticCurvePrivateKey):
            raise KmsError("InvalidKeyUsageException", f"{key.arn} key usage is {key.key_usage}.")
        try:
            theirs = load_der_public_key(base64.b64decode(_given(wanted, "PublicKey")))
            secret = ours.exchange(ec.ECDH(), theirs)  # type: ignore[arg-type]  # it raises TypeError
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KmsError("ValidationException", "The public key is not one of the key's curve.") from error
        return {
            "KeyId": key.arn,
            "SharedSecret": _text(secret),
            "KeyAgreementAlgorithm": wanted["KeyAgreementAlgorithm"],
            "KeyOrigin": key.origin,
        }

    def _enclose(self, answer: Answer, recipient: Recipient) -> None:
        """Put the answer's secret into an envelope."""
        for name in ("Plaintext", "PrivateKeyPlaintext", "SharedSecret"):
            if name in answer:
                secret = base64.b64decode(str(answer.pop(name)))
                answer["CiphertextForRecipient"] = _text(seal(secret, recipient.key, entropy=self.entropy))


CONTEXT_OF_PARAMETERS = {
    "kms:encryptionalgorithm": "EncryptionAlgorithm",
    "kms:datakeypairspec": "KeyPairSpec",
    "kms:keyagreementalgorithm": "KeyAgreementAlgorithm",
    "kms:signingalgorithm": "SigningAlgorithm",
    "kms:macalgorithm": "MacAlgorithm",
    "kms:messagetype": "MessageType",
    "kms:granteeprincipal": "GranteePrincipal",
    "kms:retiringprincipal": "RetiringPrincipal",
    "kms:policylockoutsafetycheck": "BypassPolicyLockoutSafetyCheck",
    "kms:schedulekeydeletionpendingwindowindays": "PendingWindowInDays",
}
USES = frozenset(
    f"kms:{operation}"
    for operation in (
        *(
            "Decrypt",
            "DeriveSharedSecret",
            "Encrypt",
            "GenerateDataKey",
            "GenerateDataKeyPair",
            "GenerateMac",
        ),
        *("GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom"),
        *("ReEncryptTo", "Sign", "Verify", "VerifyMac"),
    )
)
"""Actions that use a key, for which it must be enabled."""


def _usage(key: "Key") -> str:
    return key.key_usage or "ENCRYPT_DECRYPT"  # moto keeps nothing where nothing was asked for


def _granted(key: "Key", request: Request) -> bool:
    """Whether a grant allows what the policy does not speak of."""
    operation = request.action.removeprefix("kms:")
    for grant in key.grants.values():
        if grant.grantee_principal not in request.caller.names or operation not in grant.operations:
            continue
        constraints = grant.constraints or {}
        subset = (
            constraints.get("EncryptionContextSubset") or constraints.get("EncryptionContextEquals") or {}
        )
        prefix = "kms:encryptioncontext:"
        given = {name: value[0] for name, value in request.context.items() if name.startswith(prefix)}
        demanded = {f"{prefix}{name}".lower(): value for name, value in subset.items()}
        if "EncryptionContextEquals" in constraints and given != demanded:
            continue
        if demanded.items() <= given.items():
            return True
    return False


def _denied(request: Request, decision: Decision) -> KmsError:
    why = (
        "with an explicit deny in a resource-based policy"
        if decision.explicit
        else f"because no resource-based policy allows the {request.action} action"
    )
    return KmsError(
        "AccessDeniedException",
        f"User: {request.caller.arn} is not authorized to perform: {request.action} on resource: "
        f"{request.resource} {why}",
        detail="; ".join(decision.reasons),
    )


def _given(wanted: Answer, name: str) -> str:
    """A parameter that the operation cannot do without, whatever the API's description says."""
    value = wanted.get(name)
    if not isinstance(value, str):
        raise KmsError("ValidationException", f"1 validation error detected: {name} is missing")
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
