"""The Nitro Secure Module in software: requests in, replies and signed attestation documents out.

`Nsm` is the device, without any input or output of its own: `Nsm.handle` takes the bytes of a request and
returns the bytes of the reply. `VirtioNsm` serves it over a virtqueue.
"""

from nitro_nsm.authority import Root
from nitro_nsm.client import DeviceTransport, ModuleDescription, NsmClient, PcrDescription, SocketTransport
from nitro_nsm.config import NsmConfig, NsmState
from nitro_nsm.cose import Sign1
from nitro_nsm.document import AttestationDocument, VerifiedDocument
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
from nitro_nsm.module import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Nsm
from nitro_nsm.roots import TrustRoot, aws_root
from nitro_nsm.storage import ensure_test_root, read_test_root, rotate_test_root
from nitro_nsm.verify import parse_document, verify
from nitro_nsm.virtio import VirtioNsm

__all__ = [
    "REQUEST_BYTES_MAX",
    "RESPONSE_BYTES_MAX",
    "AttestationDocument",
    "CborError",
    "DeviceTransport",
    "DocumentError",
    "ErrorCode",
    "HostError",
    "InputError",
    "ModuleDescription",
    "Nsm",
    "NsmClient",
    "NsmConfig",
    "NsmError",
    "NsmState",
    "PcrDescription",
    "Refusal",
    "Root",
    "Sign1",
    "SocketTransport",
    "Step",
    "TrustRoot",
    "UsageError",
    "VerifiedDocument",
    "VirtioNsm",
    "aws_root",
    "ensure_test_root",
    "parse_document",
    "read_test_root",
    "rotate_test_root",
    "verify",
]
