"""The Nitro Secure Module in software: requests in, replies and signed attestation documents out.

`Nsm` is the device, without any input or output of its own: `Nsm.handle` takes the bytes of a request and
returns the bytes of the reply. `VirtioNsm` serves it over a virtqueue, `NsmClient` asks it. `verify` checks a
document: by default one of AWS's hardware, or one of the test root if the caller names that.

Importing this is fast: what needs cryptography is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nitro_nsm.errors import (
    CborError,
    DocumentError,
    ErrorCode,
    HostError,
    InputError,
    NsmError,
    Refusal,
    Step,
    UsageError,
)

if TYPE_CHECKING:
    from nitro_nsm.client import (
        DeviceTransport,
        ModuleDescription,
        NsmClient,
        PcrDescription,
        SocketTransport,
    )
    from nitro_nsm.config import (
        INSTANCE_ID_PATTERN,
        ROLE_ARN_PATTERN,
        InstanceId,
        NsmConfig,
        NsmState,
        RoleArn,
    )
    from nitro_nsm.cose import Sign1
    from nitro_nsm.document import AttestationDocument, VerifiedDocument
    from nitro_nsm.identity import PlainNsmConfig
    from nitro_nsm.module import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Nsm
    from nitro_nsm.pki.authority import Root
    from nitro_nsm.pki.store import ensure_test_root, read_test_root, rotate_test_root, stored_test_root
    from nitro_nsm.pki.stored import StoredRoot
    from nitro_nsm.pki.trust import TrustRoot, aws_root
    from nitro_nsm.policy import Policy
    from nitro_nsm.policy_file import read_policy
    from nitro_nsm.server import serve
    from nitro_nsm.verification import parse_document, verify
    from nitro_nsm.virtio import VirtioNsm

_LATER = {
    "client": ("DeviceTransport", "ModuleDescription", "NsmClient", "PcrDescription", "SocketTransport"),
    "config": ("INSTANCE_ID_PATTERN", "ROLE_ARN_PATTERN", "InstanceId", "NsmConfig", "NsmState", "RoleArn"),
    "cose": ("Sign1",),
    "document": ("AttestationDocument", "VerifiedDocument"),
    "identity": ("PlainNsmConfig",),
    "module": ("REQUEST_BYTES_MAX", "RESPONSE_BYTES_MAX", "Nsm"),
    "pki.authority": ("Root",),
    "pki.store": ("ensure_test_root", "read_test_root", "rotate_test_root", "stored_test_root"),
    "pki.stored": ("StoredRoot",),
    "pki.trust": ("TrustRoot", "aws_root"),
    "policy": ("Policy",),
    "policy_file": ("read_policy",),
    "server": ("serve",),
    "verification": ("parse_document", "verify"),
    "virtio": ("VirtioNsm",),
}
_HOME = {name: module for module, names in _LATER.items() for name in names}

__all__ = [
    "INSTANCE_ID_PATTERN",
    "REQUEST_BYTES_MAX",
    "RESPONSE_BYTES_MAX",
    "ROLE_ARN_PATTERN",
    "AttestationDocument",
    "CborError",
    "DeviceTransport",
    "DocumentError",
    "ErrorCode",
    "HostError",
    "InputError",
    "InstanceId",
    "ModuleDescription",
    "Nsm",
    "NsmClient",
    "NsmConfig",
    "NsmError",
    "NsmState",
    "PcrDescription",
    "PlainNsmConfig",
    "Policy",
    "Refusal",
    "RoleArn",
    "Root",
    "Sign1",
    "SocketTransport",
    "Step",
    "StoredRoot",
    "TrustRoot",
    "UsageError",
    "VerifiedDocument",
    "VirtioNsm",
    "aws_root",
    "ensure_test_root",
    "parse_document",
    "read_policy",
    "read_test_root",
    "rotate_test_root",
    "serve",
    "stored_test_root",
    "verify",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = found
        return found
