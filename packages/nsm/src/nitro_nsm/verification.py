"""Whether an attestation document is what it says (AWS Nitro Enclaves guide, "Verifying the root of trust").

The steps are those of `Step`, in that order, and the first that fails ends it: the bytes are a COSE_Sign1 of
a payload with the right fields; it is signed with ES384; the certificates lead from a trusted root to the
document's own, all valid at the given time; the signature is by that one's key; it is as the caller's policy
wants it; and nonce, user data and public key are those that the caller expects.
"""

from dataclasses import fields
from datetime import datetime

from nitro_nsm.cose import ALGORITHM, ES384, Sign1
from nitro_nsm.document import DOCUMENT_BYTES_MAX, AttestationDocument, VerifiedDocument, parse_payload
from nitro_nsm.errors import DocumentError, Step, UsageError
from nitro_nsm.pki.chain import verify_chain
from nitro_nsm.pki.trust import TrustRoot, aws_root
from nitro_nsm.policy import Policy, shown

DEFAULT_POLICY = Policy()
"""Believes every enclave under the root, but no document from the future or with unknown fields."""


def parse_document(document: bytes, *, allow_unknown: bool = False) -> AttestationDocument:
    """Read a document without believing it.

    Args:
        document: The COSE_Sign1, tagged or not.
        allow_unknown: Accept fields that are not known here.

    Raises:
        DocumentError: It is not a document (step `structure`).
    """
    return parse_payload(_parse_message(document).payload, allow_unknown=allow_unknown)


def verify(
    document: bytes,
    *,
    at: datetime,
    root: TrustRoot | None = None,
    policy: Policy = DEFAULT_POLICY,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
    public_key: bytes | None = None,
) -> VerifiedDocument:
    """Check a document wholly, and return what it says.

    Args:
        document: The COSE_Sign1, tagged or not.
        at: When all certificates must be valid; with a time zone. It is usually now, because a document's
            own certificate lives for three hours.
        root: The only root that counts; AWS's by default.
        policy: Which enclaves to believe, and how old a document may be. Without one every enclave under the
            root is believed, so that the caller must look at the registers.
        nonce: What the document's nonce must be; `None` accepts any.
        user_data: What the document's user data must be; `None` accepts any.
        public_key: What the document's public key must be; `None` accepts any.

    Raises:
        DocumentError: The document fails, at the error's `step`.
        UsageError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise UsageError("the time at which to verify needs a time zone", hint="datetime.now(UTC) has one")
    message = _parse_message(document)
    claims = parse_payload(message.payload, allow_unknown=policy.allow_unknown)
    _check_algorithm(message)
    leaf = verify_chain(_chain(claims, root or aws_root()), at=at)
    message.verify(leaf.key)
    policy.check(claims, leaf_from=leaf.certificate.not_valid_before_utc, at=at)
    for step, expected, found in (
        (Step.NONCE, nonce, claims.nonce),
        (Step.USER_DATA, user_data, claims.user_data),
        (Step.PUBLIC_KEY, public_key, claims.public_key),
    ):
        if expected is not None and found != expected:
            raise DocumentError(step, f"it is {shown(found)} and must be {shown(expected)}")
    said = {field.name: getattr(claims, field.name) for field in fields(claims)}
    return VerifiedDocument(**said, root=(root or aws_root()).name, verified_at=at)


def _parse_message(document: bytes) -> Sign1:
    if len(document) > DOCUMENT_BYTES_MAX:
        raise DocumentError(
            Step.STRUCTURE, f"{len(document)} bytes, but a module makes at most {DOCUMENT_BYTES_MAX}"
        )
    return Sign1.parse(document)


def _check_algorithm(message: Sign1) -> None:
    if message.headers.get(ALGORITHM) != ES384:
        raise DocumentError(
            Step.ALGORITHM, f"it is {message.headers.get(ALGORITHM)!r} and must be ES384 ({ES384})"
        )
    if len(message.headers) > 1 or message.unprotected:
        raise DocumentError(
            Step.ALGORITHM, "there are headers besides the algorithm, and hardware sends none"
        )


def _chain(claims: AttestationDocument, root: TrustRoot) -> tuple[bytes, ...]:
    presented = TrustRoot("presented", claims.cabundle[0])
    if presented.certificate != root.certificate:
        raise DocumentError(
            Step.CERTIFICATES,
            f"the root is not {root.name} ({root.fingerprint}) but another ({presented.fingerprint})",
        )
    return (*claims.cabundle, claims.certificate)
