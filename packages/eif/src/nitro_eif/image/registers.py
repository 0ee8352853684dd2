"""Platform configuration registers (PCRs), as Nitro extends them.

A register starts as 48 zero bytes. The image's registers are extended by a digest,
``PCR = SHA384(0^48 || SHA384(content))`` (aws-nitro-enclaves-image-format README, "EIF Measurements"). The
parent's role (PCR3) and instance id (PCR4) are extended directly, ``PCR = SHA384(0^48 || text)``.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from nitro_eif.errors import UsageError

PCR_BYTES: Final = 48

INSTANCE_ID_PATTERN: Final = r"^i-(?:[0-9a-f]{8}|[0-9a-f]{17})$"
"""An EC2 instance's id: 8 hexadecimal digits until 2018, 17 since (EC2 User Guide, "Resource IDs")."""
ROLE_ARN_PATTERN: Final = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$"
"""The ARN of an IAM role (IAM User Guide, "IAM identifiers"), which is what PCR3 measures."""

_ZERO: Final = bytes(PCR_BYTES)


def extend(register: bytes, data: bytes) -> bytes:
    """The register after it was extended: ``SHA384(register || data)``."""
    return hashlib.sha384(register + data).digest()


def pcr_of_digest(digest: bytes) -> bytes:
    """The register that a content's SHA-384 digest is extended into."""
    return extend(_ZERO, digest)


def pcr_of_data(chunks: Iterable[bytes | memoryview]) -> bytes:
    """The register of any content, measured as PCR0 to PCR2 are: what ``nitro-cli pcr --input`` prints."""
    digest = hashlib.sha384()
    for chunk in chunks:
        digest.update(chunk)
    return pcr_of_digest(digest.digest())


def pcr3(role_arn: str) -> bytes:
    """PCR3 of an enclave whose parent instance has this IAM role.

    Raises:
        UsageError: The text is not a role's ARN.
    """
    if not re.fullmatch(ROLE_ARN_PATTERN, role_arn):
        raise UsageError(
            f"{role_arn!r} is not a role's ARN",
            hint="write it like arn:aws:iam::123456789012:role/Webserver",
        )
    return extend(_ZERO, role_arn.encode())


def pcr4(instance_id: str) -> bytes:
    """PCR4 of an enclave on this parent instance.

    Raises:
        UsageError: The text is not an instance id.
    """
    if not re.fullmatch(INSTANCE_ID_PATTERN, instance_id):
        raise UsageError(f"{instance_id!r} is not an instance id", hint="write it like i-0123456789abcdef0")
    return extend(_ZERO, instance_id.encode())


def pcr8(certificate_der: bytes) -> bytes:
    """PCR8 of an image signed with this certificate, given in DER."""
    return pcr_of_data([certificate_der])
