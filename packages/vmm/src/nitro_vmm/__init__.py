"""An AWS Nitro Enclave on any machine: boots an EIF, and sees it through to its end.

    >>> from pathlib import Path
    >>> from nitro_vmm import Enclave, EnclaveConfig
    >>> result = Enclave(EnclaveConfig(eif_path=Path("hello.eif"))).run()  # doctest: +SKIP

The names are imported when they are first used, so that ``vmm --help`` need not wait for the machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = {
    "config": ("EnclaveConfig",),
    "errors": ("HostError", "ImageError", "UsageError", "VmmError"),
    "launcher": ("Enclave", "ExitCode", "Result"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"nitro_vmm.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
