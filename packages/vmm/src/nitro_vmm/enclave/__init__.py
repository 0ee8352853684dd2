"""Enclaves for Python programs: `Enclave` boots an image file, talks to it, and says how it ended.

Importing this is fast: what needs trio is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro_vmm.enclave.console import Console, ConsoleSink, ConsoleStream
    from nitro_vmm.enclave.enclave import Enclave
    from nitro_vmm.enclave.listener import ParentListener
    from nitro_vmm.enclave.outcome import EnclaveEndedError, Outcome, Result
    from nitro_vmm.enclave.timeline import Moment, Timeline

_HOME = {
    "Console": "console",
    "ConsoleSink": "console",
    "ConsoleStream": "console",
    "Enclave": "enclave",
    "EnclaveEndedError": "outcome",
    "Moment": "timeline",
    "Outcome": "outcome",
    "ParentListener": "listener",
    "Result": "outcome",
    "Timeline": "timeline",
}

__all__ = [
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
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"nitro_vmm.enclave.{_HOME[name]}"), name)
    raise AttributeError(f"module 'nitro_vmm.enclave' has no attribute {name!r}")
