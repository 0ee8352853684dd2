"""What a verifier expects of the documents that it believes: which images, which signer, how old.

A `Policy` stays the same for all documents of an application, and can be a file. What differs from one
document to the next (nonce, user data, public key) is given to `verify` itself.

Checks that nobody turns off by accident are on by default: a document from the future, or from before its own
certificate, is refused, and so is one with fields that this version does not know.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from nitro_nsm.config import FrozenConfig, PcrValue, RegisterIndex, fingerprint
from nitro_nsm.document import AttestationDocument
from nitro_nsm.errors import DocumentError, Step
from nitro_nsm.pcrs import ZERO, extended

DEFAULT_SKEW_MAX_S = 60.0
"""Clocks that are kept by NTP differ by much less; virtual machines that were paused may differ so far."""
AGE_MAX_S = 100 * 365 * 86400.0
"""More than any age that makes sense; beyond it, dates leave the calendar."""
IMAGES_MAX = 1000
"""Images that a policy may name: many more than one application ever has in use."""


def measured(value: object) -> object:
    """The registers of what `eif describe --json` or nitro-cli prints, or of a plain map of registers.

    Keys that name no register, such as `HashAlgorithm`, are dropped.
    """
    if not isinstance(value, Mapping):
        return value
    value = value.get("Measurements", value)
    if not isinstance(value, Mapping):
        return value
    return {
        key: register
        for key, register in value.items()
        if not isinstance(key, str) or key.isdigit() or key.upper().startswith("PCR")
    }


def _encoded(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def _checked(certificate: bytes) -> bytes:
    fingerprint(certificate)
    return certificate


Registers = dict[RegisterIndex, PcrValue]
Image = Annotated[Registers, BeforeValidator(measured), Field(min_length=1)]
"""Registers of one image, at least one."""
Certificate = Annotated[bytes, BeforeValidator(_encoded), AfterValidator(_checked)]
"""A certificate, DER or PEM."""


class Policy(FrozenConfig):
    """What a document must say, and how old it may be, to be believed."""

    measurements: Annotated[tuple[Image, ...], Field(max_length=IMAGES_MAX)] = ()
    """The images that may have made the document, as `eif describe --json` prints them. All registers of one
    of them must be in the document. Without any, every image may."""
    pcrs: Registers = Field(default_factory=dict)
    """Registers that must be in the document with these values, whatever the image."""
    required_pcrs: frozenset[RegisterIndex] = frozenset()
    """Registers that must be in the document and not be zero: somebody has measured something there."""
    signers: tuple[Certificate, ...] = ()
    """The certificates, DER or PEM, of those who may have signed the image: PCR8 must measure one of them."""
    forbid_debug: bool = False
    """Refuse documents whose PCR0, PCR1 and PCR2 are all zero. Their enclave runs in debug mode: its console
    is open to the parent, and its image is not attested."""
    max_age_s: Annotated[float, Field(ge=0, le=AGE_MAX_S)] | None = None
    """How old a document may be, in seconds; `None` accepts any while its certificates are valid, which is
    three hours."""
    max_skew_s: Annotated[float, Field(ge=0, le=AGE_MAX_S)] = DEFAULT_SKEW_MAX_S
    """How far ahead of the verifier's clock a document's time may be, in seconds."""
    not_before_leaf: bool = True
    """Refuse documents that are older than their own certificate: nothing could have signed them then."""
    allow_unknown: bool = False
    """Accept fields in the payload that this version does not know, instead of refusing the document."""

    @property
    def names_enclave(self) -> bool:
        """Whether anything here tells one enclave from another: an image, a register or a signer."""
        return bool(self.measurements or self.pcrs or self.signers)

    def check(self, document: AttestationDocument, *, leaf_from: datetime, at: datetime) -> None:
        """Check a document whose signature holds.

        Args:
            document: What it says.
            leaf_from: The first moment at which its own certificate is valid.
            at: The time of the verification.

        Raises:
            DocumentError: It is not as expected, at the error's `step`.
        """
        self._check_time(document, leaf_from, at)
        if self.forbid_debug and document.debug_mode:
            raise DocumentError(
                Step.DEBUG_MODE,
                "PCR0, PCR1 and PCR2 are zero: the enclave runs in debug mode",
                hint="start the enclave without its console",
            )
        self._check_registers(document)
        self._check_signer(document)
        if self.max_age_s is not None and (age := at - document.time) > timedelta(seconds=self.max_age_s):
            raise DocumentError(
                Step.AGE, f"it was made {age} ago, and {timedelta(seconds=self.max_age_s)} is the most"
            )

    def _check_time(self, document: AttestationDocument, leaf_from: datetime, at: datetime) -> None:
        ahead = document.time - at
        if ahead > timedelta(seconds=self.max_skew_s):
            raise DocumentError(
                Step.TIMESTAMP,
                f"it was made {ahead} after the time of verification",
                hint="is the clock right? More skew can be allowed",
            )
        if self.not_before_leaf and document.time < leaf_from:
            raise DocumentError(
                Step.TIMESTAMP, f"it was made at {document.time}, before its certificate, of {leaf_from}"
            )

    def _check_registers(self, document: AttestationDocument) -> None:
        for index, value in sorted(self.pcrs.items()):
            if (found := document.pcrs.get(index)) != value:
                raise DocumentError(Step.PCRS, f"PCR{index} is {shown(found)} and must be {shown(value)}")
        for index in sorted(self.required_pcrs):
            if not any(document.pcrs.get(index, b"")):
                found = document.pcrs.get(index)
                raise DocumentError(
                    Step.PCRS, f"PCR{index} is {'missing' if found is None else 'zero'} and must not be"
                )
        if self.measurements:
            misfits = [_misfit(image, document) for image in self.measurements]
            if all(misfits):
                first = misfits[0] or ""
                of = f"; none of the other {len(misfits) - 1} fits either" if len(misfits) > 1 else ""
                raise DocumentError(Step.PCRS, first + of)

    def _check_signer(self, document: AttestationDocument) -> None:
        if not self.signers:
            return
        allowed = [signed_by(certificate) for certificate in self.signers]
        if (found := document.pcrs.get(8)) not in allowed:
            wanted = " or ".join(map(shown, allowed[:4]))
            raise DocumentError(Step.SIGNER, f"PCR8 is {shown(found)}, and the signer's is {wanted}")


def signed_by(certificate: bytes) -> bytes:
    """PCR8 of an image that was signed with the key of a certificate, DER or PEM.

    Raises:
        ValueError: It is neither.
    """
    return extended(ZERO, fingerprint(certificate))


def shown(value: bytes | None) -> str:
    """A value as messages show it: long ones by their beginning."""
    if value is None:
        return "missing"
    return value.hex() if len(value) <= 64 else f"{value[:32].hex()}… ({len(value)} bytes)"


def _misfit(image: Mapping[int, bytes], document: AttestationDocument) -> str | None:
    """The first register that is not as the image has it, in words."""
    for index, value in sorted(image.items()):
        if (found := document.pcrs.get(index)) != value:
            return f"PCR{index} is {shown(found)} and must be {shown(value)}"
    return None
