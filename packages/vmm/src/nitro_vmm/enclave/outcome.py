"""How an enclave's life can end, as data."""

from enum import StrEnum
from typing import NamedTuple

from nitro_eif import Measurements
from nitro_vmm.enclave.causes import Cause
from nitro_vmm.enclave.watch import ApplicationEnd
from nitro_vmm.errors import VmmError
from nitro_vmm.machine.machine import End, Ending


class Outcome(StrEnum):
    """How an enclave ended."""

    ENDED = "ended"
    """It powered off, rebooted or halted, as enclaves do when their application ends."""
    BOOT_TIMEOUT = "boot timeout"
    """It sent no heartbeat in time."""
    PANIC = "panic"
    """Its kernel panicked."""
    CRASH = "crash"
    """A triple fault, or code where there is none."""
    STOPPED = "stopped"
    """It was told to end from outside."""


class Verdict(NamedTuple):
    """An outcome and its reason."""

    outcome: Outcome
    """Which kind of end it was."""
    reason: str
    """The same for people, in one line."""


class Result(NamedTuple):
    """An enclave that has ended."""

    outcome: Outcome
    """Which kind of end it was."""
    reason: str
    """The same for people, in one line."""
    seconds: float
    """From the launch to the end."""
    heartbeat_s: float | None
    """From the launch to the heartbeat; `None` if there was none."""
    measurements: Measurements
    """Of the image."""
    module_id: str
    """The security module's, which is the enclave's own as well."""
    memory_mib: int
    """How much it had."""
    cid: int
    """Its vsock address."""
    debug_mode: bool
    """Whether its documents had zeros for PCR0, PCR1, PCR2 and PCR8."""
    application: ApplicationEnd | None = None
    """How the image's program ended; `None` if its init did not say."""
    cause: Cause | None = None
    """Why it did not boot, or its application did not run, if the console or the devices show it."""


class EnclaveEndedError(VmmError):
    """The enclave has ended, and what was asked for needs one that runs.

    Attributes:
        result: How it ended.
    """

    code = "M05"

    def __init__(self, result: Result) -> None:
        because = "" if result.cause is None else f": {result.cause.message}"
        super().__init__(result.reason + because, hint="" if result.cause is None else result.cause.hint)
        self.result = result


def judge(ending: Ending, *, panic: str | None) -> Verdict:
    """The verdict on a machine that came to its end by itself.

    Args:
        ending: The machine's.
        panic: The first line of the kernel's panic, if the console had one.
    """
    if panic is not None:
        return panicked(panic)
    reason = f"the enclave {ending.end.value}" + (f": {ending.details}" if ending.details else "")
    crashed = ending.end in (End.TRIPLE_FAULT, End.CRASHED)
    return Verdict(Outcome.CRASH if crashed else Outcome.ENDED, reason)


def panicked(reason: str) -> Verdict:
    """The verdict on an enclave whose kernel panicked."""
    return Verdict(Outcome.PANIC, f"the enclave's kernel panicked: {reason}")


def late(timeout_s: float, *, panic: str | None) -> Verdict:
    """The verdict on an enclave that sent no heartbeat within ``timeout_s``; a panic explains it better."""
    if panic is not None:
        return panicked(panic)
    return Verdict(Outcome.BOOT_TIMEOUT, f"no heartbeat within {timeout_s:g} s")
