"""The payload of an attestation document: nine fields, in the order and the encodings of hardware.

All nine are always there, null when unset (which `attestation_process.md` in aws-nitro-enclaves-nsm-api calls
impossible, and every document of real hardware shows). The outer map was of definite length until April 2025
and is of indefinite length since June 2025; the maps and arrays inside are definite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Literal, TypeVar

import cbor2

from nitro_nsm.cbor import Value, decode
from nitro_nsm.errors import CborError, DocumentError, Step
from nitro_nsm.pcrs import PCR_BYTES, PCR_COUNT

DOCUMENT_BYTES_MAX = 0x3000
"""What fits into a reply of the module."""
DIGEST = "SHA384"
TIMESTAMP_MS_MAX = 253_402_300_799_999
"""The end of the year 9999, the last that certificates can name."""
OPTIONAL = ("public_key", "user_data", "nonce")
FIELDS = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", *OPTIONAL)
INDEFINITE_MAP, BREAK = b"\xbf", b"\xff"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """What a document says. Only a `VerifiedDocument` is worth believing."""

    module_id: str
    """The instance and the enclave: `i-…-enc…`."""
    digest: str
    """The hash of the registers, always SHA384."""
    timestamp_ms: int
    """When it was made, in milliseconds since 1970."""
    pcrs: Mapping[int, bytes]
    """The locked registers, by index."""
    certificate: bytes
    """The certificate (DER) of the key that signed the document."""
    cabundle: tuple[bytes, ...]
    """The certificates (DER) above it, from the root down."""
    public_key: bytes | None
    """A key of the enclave's, to which others encrypt; KMS wants it in DER (SubjectPublicKeyInfo)."""
    user_data: bytes | None
    """Whatever the enclave wanted to say."""
    nonce: bytes | None
    """What a verifier gave to the enclave, so that an old document is of no use."""
    payload_map: Literal["definite", "indefinite"]
    """How the outer map was encoded; only of interest to those who compare with hardware."""
    unknown: tuple[str, ...]
    """The names of fields that this version does not know, where they were allowed."""

    @property
    def time(self) -> datetime:
        """When it was made, in UTC."""
        return EPOCH + timedelta(milliseconds=self.timestamp_ms)

    @property
    def debug_mode(self) -> bool:
        """Whether PCR0, PCR1 and PCR2 are zero: the console is open, and the image is not attested."""
        return not any(any(self.pcrs.get(index, b"")) for index in (0, 1, 2))


@dataclass(frozen=True, slots=True)
class VerifiedDocument(AttestationDocument):
    """A document that passed all checks. Only `verify` makes one."""

    root: str
    """The name of the root that vouches for it: `aws`, `test`, or that of a root of one's own."""
    verified_at: datetime
    """The time at which the certificates were valid."""


def encode_payload(document: AttestationDocument) -> bytes:
    """Encode a document as the payload that is signed."""
    encoded = cbor2.dumps(
        {
            "module_id": document.module_id,
            "digest": document.digest,
            "timestamp": document.timestamp_ms,
            "pcrs": dict(document.pcrs),
            "certificate": document.certificate,
            "cabundle": list(document.cabundle),
            "public_key": document.public_key,
            "user_data": document.user_data,
            "nonce": document.nonce,
        }
    )
    if document.payload_map == "definite":
        return encoded
    return INDEFINITE_MAP + encoded[1:] + BREAK


def parse_payload(payload: bytes, *, allow_unknown: bool = False) -> AttestationDocument:
    """Read a payload. Fields that may be null may also be absent.

    Args:
        payload: The bytes that were signed.
        allow_unknown: Accept fields that are not known here. By default they are refused, because what
            somebody added to say, perhaps that the document counts for less, would go unheard.

    Raises:
        DocumentError: A field is missing, unknown or of the wrong kind (step `structure`).
    """
    try:
        fields = decode(payload, strict=True, indefinite=True)
    except CborError as error:
        raise DocumentError(Step.STRUCTURE, f"the payload: {error}") from error
    if not isinstance(fields, dict):
        raise DocumentError(Step.STRUCTURE, "the payload is not a map")
    unknown = [key for key in fields if key not in FIELDS]
    if unknown and not allow_unknown:
        raise DocumentError(
            Step.STRUCTURE,
            f"the payload has an unknown field {unknown[0]!r}",
            hint="a newer version may know it; --allow-unknown accepts it unread",
        )
    digest = _typed(fields, "digest", str)
    if digest != DIGEST:
        raise DocumentError(Step.STRUCTURE, f"the digest is {digest!r} and must be {DIGEST}")
    timestamp_ms = _typed(fields, "timestamp", int)
    if not 0 < timestamp_ms <= TIMESTAMP_MS_MAX:
        raise DocumentError(Step.STRUCTURE, f"the timestamp {timestamp_ms} is no time")
    certificate = _typed(fields, "certificate", bytes)
    public_key, user_data, nonce = (_optional_bytes(fields, name) for name in OPTIONAL)
    return AttestationDocument(
        module_id=_not_empty(_typed(fields, "module_id", str), "module_id"),
        digest=digest,
        timestamp_ms=timestamp_ms,
        pcrs=MappingProxyType(_pcrs(_typed(fields, "pcrs", dict))),
        certificate=_not_empty(certificate, "certificate"),
        cabundle=_cabundle(_typed(fields, "cabundle", list)),
        public_key=public_key,
        user_data=user_data,
        nonce=nonce,
        payload_map="indefinite" if payload.startswith(INDEFINITE_MAP) else "definite",
        unknown=tuple(map(str, unknown)),
    )


def _typed(fields: dict[int | str, Value], name: str, kind: type[T]) -> T:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = type(value).__name__ if name in fields else "missing"
        raise DocumentError(Step.STRUCTURE, f"{name} is {found} and must be {kind.__name__}")
    return value


def _optional_bytes(fields: dict[int | str, Value], name: str) -> bytes | None:
    return None if fields.get(name) is None else _typed(fields, name, bytes)


def _not_empty(value: T, name: str) -> T:
    if not value:
        raise DocumentError(Step.STRUCTURE, f"{name} is empty")
    return value


def _pcrs(pcrs: dict[int | str, Value]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for index, value in _not_empty(pcrs, "pcrs").items():
        if not isinstance(index, int) or not 0 <= index < PCR_COUNT:
            raise DocumentError(
                Step.STRUCTURE, f"pcrs has a register {index!r}; there are 0 to {PCR_COUNT - 1}"
            )
        if not isinstance(value, bytes) or len(value) != PCR_BYTES:
            raise DocumentError(Step.STRUCTURE, f"PCR{index} is not {PCR_BYTES} bytes")
        found[index] = value
    return found


def _cabundle(bundle: list[Value]) -> tuple[bytes, ...]:
    if not bundle or not all(isinstance(certificate, bytes) and certificate for certificate in bundle):
        raise DocumentError(Step.STRUCTURE, "cabundle is not a list of certificates")
    return tuple(certificate for certificate in bundle if isinstance(certificate, bytes))
