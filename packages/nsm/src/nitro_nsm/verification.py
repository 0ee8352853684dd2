"""Whether an attestation document is what it says (AWS Nitro Enclaves guide, "Verifying the root of trust").

The steps are those of `Step`, in that order, and the first that fails ends it: the bytes are a COSE_Sign1 of
a payload with the right fields; it is signed with ES384; the certificates lead from a trusted root to the
document's own, all valid at the given time; the signature is by that one's key; and last, what the caller
expects of registers, nonce, user data, public key and age.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta

from nitro_nsm.cose import ALGORITHM, ES384, Sign1
from nitro_nsm.document import DOCUMENT_BYTES_MAX, AttestationDocument, VerifiedDocument, parse_payload
from nitro_nsm.errors import DocumentError, Step, UsageError
from nitro_nsm.pki.chain import verify_chain
from nitro_nsm.pki.trust import TrustRoot, aws_root

CLOCK_SKEW = timedelta(minutes=1)
"""How far the maker's clock may be ahead of ours where the age of a document is checked."""


def parse_document(document: bytes) -> AttestationDocument:
    """Read a document without believing it.

    Raises:
        DocumentError: It is not a document (step `structure`).
    """
    return parse_payload(_parse_message(document).payload)


def verify(
    document: bytes,
    *,
    at: datetime,
    root: TrustRoot | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
    public_key: bytes | None = None,
    age_max: timedelta | None = None,
) -> VerifiedDocument:
    """Check a document wholly, and return what it says.

    Args:
        document: The COSE_Sign1, tagged or not.
        at: When all certificates must be valid; with a time zone. It is usually now, because a document's
            own certificate lives for three hours.
        root: The only root that counts; AWS's by default.
        pcrs: Registers that must be in the document, with these values.
        nonce: What the document's nonce must be.
        user_data: What the document's user data must be.
        public_key: What the document's public key must be.
        age_max: How long before `at` the document may have been made.

    Raises:
        DocumentError: The document fails, at the error's `step`.
        UsageError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise UsageError("the time at which to verify needs a time zone")
    message = _parse_message(document)
    claims = parse_payload(message.payload)
    _check_algorithm(message)
    key = verify_chain(_chain(claims, root or aws_root()), at=at)
    message.verify(key)
    _check_pcrs(claims, pcrs or {})
    for step, expected, found in (
        (Step.NONCE, nonce, claims.nonce),
        (Step.USER_DATA, user_data, claims.user_data),
        (Step.PUBLIC_KEY, public_key, claims.public_key),
    ):
        if expected is not None and found != expected:
            raise DocumentError(step, f"it is {_shown(found)} and must be {_shown(expected)}")
    if age_max is not None:
        _check_age(claims, at, age_max)
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


def _check_pcrs(claims: AttestationDocument, expected: Mapping[int, bytes]) -> None:
    for index, value in sorted(expected.items()):
        found = claims.pcrs.get(index)
        if found != value:
            raise DocumentError(Step.PCRS, f"PCR{index} is {_shown(found)} and must be {_shown(value)}")


def _check_age(claims: AttestationDocument, at: datetime, age_max: timedelta) -> None:
    age = at - claims.time
    if age > age_max:
        raise DocumentError(Step.AGE, f"it was made {age} ago, and {age_max} is the most")
    if age < -CLOCK_SKEW:
        raise DocumentError(Step.AGE, f"it was made {-age} after the time of verification")


def _shown(value: bytes | None) -> str:
    if value is None:
        return "missing"
    return value.hex() if len(value) <= 64 else f"{value[:32].hex()}… ({len(value)} bytes)"
