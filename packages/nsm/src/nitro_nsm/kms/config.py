"""What can be chosen about a local KMS."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from nitro_nsm.config import FrozenConfig, Region
from nitro_nsm.identity import REGION_DEFAULT

ACCOUNT = "123456789012"
PRINCIPAL_PATTERN = (
    r"^arn:aws[a-z-]*:(?:iam|sts)::[0-9]{12}:(?:root|(?:role|user|assumed-role)/[A-Za-z0-9_+=,.@/-]+)$"
)

Principal = Annotated[str, StringConstraints(pattern=PRINCIPAL_PATTERN)]
"""The ARN of somebody who can call: `…:root`, a role, a user or an assumed role."""
AccessKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,128}$")]


class KmsConfig(FrozenConfig):
    """One local KMS: an account in a region, its callers, and what it demands of attestation documents."""

    account: Annotated[str, StringConstraints(pattern=r"^[0-9]{12}$")] = ACCOUNT
    """The account that owns all keys."""
    region: Region = REGION_DEFAULT
    """The region of all keys. Requests that are signed for another one are refused."""
    caller: Principal | None = None
    """Who calls, as key policies see it; by default the account's root user, whom default policies allow
    everything. Name the enclave's role where policies name it."""
    callers: Mapping[AccessKey, Principal] = Field(default_factory=dict)
    """Who calls with which access key, instead of `caller`."""
    access_keys: frozenset[AccessKey] | None = None
    """The access keys that are let in besides those of `callers`; `None` lets in all."""
    secret_keys: Mapping[AccessKey, SecretStr] = Field(default_factory=dict)
    """The secrets of access keys. If there are any, every request must be signed with one of them (Signature
    Version 4); otherwise signatures are not checked."""
    iam_allows: bool = False
    """Whether the callers' IAM policies allow everything: a policy statement for the whole account then
    lets in its roles and users, too."""
    max_age_s: Annotated[float, Field(ge=0, le=86400)] = 300.0
    """How old an attestation document may be, in seconds; KMS allows five minutes."""
    forbid_debug: bool = False
    """Refuse enclaves in debug mode, whatever the key's policy says. AWS does not: their registers are
    zero, which no sensible policy names."""
    state_path: Path | None = None
    """Where keys are kept from one run to the next, in the clear; `None` keeps them in memory."""
