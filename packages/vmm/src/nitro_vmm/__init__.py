"""An AWS Nitro Enclave on any machine: boots an EIF, and sees it through to its end.

>>> from pathlib import Path
>>> from nitro_vmm import Enclave, EnclaveConfig
>>> result = Enclave(EnclaveConfig(eif_path=Path("hello.eif"))).run()  # doctest: +SKIP
"""

from nitro_vmm.config import EnclaveConfig
from nitro_vmm.errors import HostError, ImageError, UsageError, VmmError
from nitro_vmm.launcher import Enclave, ExitCode, Result

__all__ = [
    "Enclave",
    "EnclaveConfig",
    "ExitCode",
    "HostError",
    "ImageError",
    "Result",
    "UsageError",
    "VmmError",
]
