"""An AWS Nitro Enclave on any machine: boots an EIF, talks to it, and sees it through to its end.

::

    import trio
    from nitro_vmm import Enclave, EnclaveConfig

    async def main() -> None:
        async with Enclave(EnclaveConfig(eif_path="hello.eif")) as enclave:
            await enclave.booted()
            async with await enclave.connect(5000) as stream:
                await stream.send_all(b"hello")

    trio.run(main)

The names are imported when they are first used, so that ``vmm --help`` need not wait for the machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro_vmm.aio import AsyncioEnclave
    from nitro_vmm.blocking import BlockingEnclave, BlockingListener
    from nitro_vmm.config import EnclaveConfig
    from nitro_vmm.enclave import (
        Console,
        ConsoleSink,
        ConsoleStream,
        Enclave,
        EnclaveEndedError,
        Moment,
        Outcome,
        ParentListener,
        Result,
        Timeline,
    )
    from nitro_vmm.errors import (
        HostError,
        ImageError,
        LaunchStoppedError,
        StateError,
        UsageError,
        VmmError,
    )

__all__ = [
    "AsyncioEnclave",
    "BlockingEnclave",
    "BlockingListener",
    "Console",
    "ConsoleSink",
    "ConsoleStream",
    "Enclave",
    "EnclaveConfig",
    "EnclaveEndedError",
    "HostError",
    "ImageError",
    "LaunchStoppedError",
    "Moment",
    "Outcome",
    "ParentListener",
    "Result",
    "StateError",
    "Timeline",
    "UsageError",
    "VmmError",
]

_HOMES = {
    "aio": ("AsyncioEnclave",),
    "blocking": ("BlockingEnclave", "BlockingListener"),
    "config": ("EnclaveConfig",),
    "enclave": (
        "Console",
        "ConsoleSink",
        "ConsoleStream",
        "Enclave",
        "EnclaveEndedError",
        "Moment",
        "Outcome",
        "ParentListener",
        "Result",
        "Timeline",
    ),
    "errors": ("HostError", "ImageError", "LaunchStoppedError", "StateError", "UsageError", "VmmError"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"nitro_vmm.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
