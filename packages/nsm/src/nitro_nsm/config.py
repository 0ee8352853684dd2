"""Who an enclave is, as far as its Nitro Secure Module knows: frozen models for code, files and commands."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from nitro_nsm.identity import REGION_DEFAULT, Identity, PlainNsmConfig, new_enclave_id
from nitro_nsm.pcrs import LOCKED_AT_START, PCR_BYTES, PCR_COUNT, ZERO, extended

INSTANCE_ID_PATTERN = r"^i-(?:[0-9a-f]{8}|[0-9a-f]{17})$"
"""An EC2 instance id: 17 digits, or 8 for instances from before 2016 (Amazon EC2 guide, "Resource IDs")."""
ROLE_ARN_PATTERN = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$"
"""The ARN of an IAM role: partition, account, and a path and name (IAM guide, "IAM identifiers")."""


def _unhex(value: object) -> object:
    if not isinstance(value, str):
        return value
    return bytes.fromhex(value[2:] if value[:2].lower() == "0x" else value)


def _index(value: object) -> object:
    """Take `PCR3` and `pcr3` for 3, as reports of images write it."""
    return value[3:] if isinstance(value, str) and value[:3].upper() == "PCR" else value


PcrValue = Annotated[
    bytes,
    BeforeValidator(_unhex),
    Field(min_length=PCR_BYTES, max_length=PCR_BYTES),
    PlainSerializer(bytes.hex, when_used="json"),
]
"""The value of a register: bytes, or hexadecimal with or without `0x`."""
RegisterIndex = Annotated[int, BeforeValidator(_index), Field(ge=0, lt=PCR_COUNT)]
"""The number of a register; in text also with `PCR` before it."""
InstanceId = Annotated[str, StringConstraints(pattern=INSTANCE_ID_PATTERN)]
"""A string that `INSTANCE_ID_PATTERN` matches, for the fields of pydantic models."""
RoleArn = Annotated[str, StringConstraints(pattern=ROLE_ARN_PATTERN)]
"""A string that `ROLE_ARN_PATTERN` matches, for the fields of pydantic models."""
EnclaveId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,20}$")]
PayloadMap = Literal["indefinite", "definite"]


class FrozenConfig(BaseModel):
    """What all models here have in common."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class NsmConfig(FrozenConfig):
    """Everything that makes one enclave's module different from another's."""

    pcrs: dict[Annotated[RegisterIndex, Field(lt=LOCKED_AT_START)], PcrValue] = {}
    """Registers 0 to 15 by index, as bytes or hexadecimal: what `eif describe` measured. The others are
    zero."""
    role_arn: RoleArn | None = None
    """The parent instance's IAM role; PCR3 is its measurement."""
    signing_certificate: bytes | None = None
    """The certificate that signed the image, DER or PEM; PCR8 is its measurement."""
    debug_mode: bool = False
    """Whether the enclave runs with a console: PCR0, PCR1, PCR2 and PCR8 are then zero, as on AWS."""
    region: Region = REGION_DEFAULT
    """Where the enclave says that it runs; certificates name it, and have room for 20 letters."""
    instance_id: InstanceId | None = None
    """The parent instance, which PCR4 measures. By default it is made of the root's fingerprint, so that
    all enclaves of a computer have the same; without a root it is random."""
    enclave_id: EnclaveId | None = None
    """16 hexadecimal digits; by default the time in milliseconds and two random bytes, as on AWS."""
    payload_map: PayloadMap = "indefinite"
    """How the outer map of a document's payload is encoded: definite on hardware until 2025, then not."""

    @model_validator(mode="after")
    def _one_source_per_register(self) -> Self:
        for field, index in (("role_arn", 3), ("signing_certificate", 8), ("instance_id", 4)):
            if getattr(self, field) is not None and index in self.pcrs:
                raise ValueError(f"{field} and pcrs both give PCR{index}: give one of them")
        if self.signing_certificate is not None:
            fingerprint(self.signing_certificate)
        return self

    def plain(self) -> PlainNsmConfig:
        """The same, with the measurement of the certificate."""
        values = dict(self)
        if (certificate := values.pop("signing_certificate")) is not None:
            values["pcrs"] = self.pcrs | {8: extended(ZERO, fingerprint(certificate))}
        return PlainNsmConfig(**values)


def fingerprint(certificate: bytes) -> bytes:
    """The SHA-384 of a certificate's DER form.

    Raises:
        ValueError: It is neither DER nor PEM.
    """
    from cryptography import x509  # noqa: PLC0415 - takes long to import, and most configurations have none
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    load = x509.load_pem_x509_certificate if b"-----BEGIN" in certificate else x509.load_der_x509_certificate
    try:
        return load(certificate).fingerprint(hashes.SHA384())
    except ValueError as error:
        raise ValueError(f"the signing certificate is neither DER nor PEM: {error}") from error


class NsmState(FrozenConfig):
    """What a module remembers, so that a saved enclave can go on later or elsewhere. It holds no secrets.

    It is saved as JSON (`model_dump_json`, `model_validate_json`) or as Python objects (`model_dump`).
    """

    version: Literal[1] = 1
    """The version of this model, which changes when a field does."""
    instance_id: InstanceId
    """The parent instance."""
    enclave_id: EnclaveId
    """16 hexadecimal digits that tell apart the enclaves of an instance."""
    region: Region
    """Where the enclave says that it runs."""
    payload_map: PayloadMap
    """How the outer map of a document's payload is encoded."""
    pcrs: Annotated[tuple[PcrValue, ...], Field(min_length=PCR_COUNT, max_length=PCR_COUNT)]
    """Every register, in order."""
    locked: frozenset[Annotated[int, Field(ge=0, lt=PCR_COUNT)]]
    """The registers that can no longer change."""

    @property
    def module_id(self) -> str:
        """The enclave's name on its instance, as in DescribeNSM and documents."""
        return self.identity().module_id

    def identity(self) -> Identity:
        """The same without the version."""
        return Identity(*(getattr(self, field) for field in Identity._fields))

    def renamed(
        self,
        *,
        instance_id: str | None = None,
        enclave_id: str | None = None,
        entropy: Callable[[int], bytes],
        clock: Callable[[], int],
    ) -> Self:
        """The same registers and locks under another identity, for a second enclave of one saved state.

        Two enclaves that were restored from one state would otherwise have the same module id, and could not
        be told apart by their documents. PCR4 follows a new instance id, unless it was given a value of its
        own at launch.

        Args:
            instance_id: The new parent instance; by default it stays.
            enclave_id: The new enclave id; by default one is made of the time and two random bytes.
            entropy: Returns as many random bytes as it is asked for.
            clock: Returns the nanoseconds since 1970.

        Raises:
            pydantic.ValidationError: An id is malformed.
        """
        pcrs = list(self.pcrs)
        if instance_id is not None and pcrs[4] == extended(ZERO, self.instance_id.encode()):
            pcrs[4] = extended(ZERO, instance_id.encode())
        changed = {
            "instance_id": instance_id or self.instance_id,
            "enclave_id": enclave_id or new_enclave_id(entropy, clock),
            "pcrs": tuple(pcrs),
        }
        return self.model_validate(dict(self) | changed)
