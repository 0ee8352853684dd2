"""Enclaves for Python programs: `Enclave` boots an image file, talks to it, and says how it ended."""

from nitro_vmm.enclave.console import Console, ConsoleSink, ConsoleStream
from nitro_vmm.enclave.enclave import Enclave
from nitro_vmm.enclave.outcome import EnclaveEndedError, Outcome, Result
from nitro_vmm.enclave.parent import ParentListener
from nitro_vmm.enclave.timeline import Moment, Timeline

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
