"""The Nitro Secure Module in software: requests in, replies and signed attestation documents out.

`Nsm` is the device, without any input or output of its own: `Nsm.handle` takes the bytes of a request and
returns the bytes of the reply. `VirtioNsm` serves it over a virtqueue.
"""

from nitro_nsm.config import NsmConfig, NsmState
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
from nitro_nsm.virtio import VirtioNsm

__all__ = [
    "REQUEST_BYTES_MAX",
    "RESPONSE_BYTES_MAX",
    "CborError",
    "DocumentError",
    "ErrorCode",
    "HostError",
    "InputError",
    "Nsm",
    "NsmConfig",
    "NsmError",
    "NsmState",
    "Refusal",
    "Step",
    "UsageError",
    "VirtioNsm",
]
