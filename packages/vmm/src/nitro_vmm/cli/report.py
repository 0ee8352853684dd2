"""How an enclave ended, as exit codes and JSON."""

from typing import Any, Final

from nitro_vmm.cli.exit_code import ExitCode
from nitro_vmm.cli.measurements import shown_measurements
from nitro_vmm.enclave import Outcome, Result
from nitro_vmm.enclave.watch import ApplicationEnd

NAMES: Final = {int(code): code.name for code in ExitCode}
"""What `--json` calls the exit codes."""


def application_code(application: ApplicationEnd | None) -> int:
    """What the image's program would have exited with in a shell; 1 if its init only said that it failed."""
    if application is None:
        return ExitCode.ENDED
    if application.status is not None:
        return application.status
    return ExitCode.FAILED if application.signal is None else 128 + application.signal


def exit_code_of(result: Result, number: int | None) -> int:
    """The exit code of an end, and of the signal that caused it, if one did."""
    match result.outcome:
        case Outcome.ENDED:
            return ExitCode.ENDED
        case Outcome.BOOT_TIMEOUT:
            return ExitCode.BOOT_TIMEOUT
        case Outcome.PANIC:
            return ExitCode.PANIC
        case Outcome.CRASH:
            return ExitCode.CRASH
        case Outcome.STOPPED:
            return ExitCode.TERMINATED if number is None else 128 + number


def report(result: Result, code: int) -> dict[str, Any]:
    """How an enclave ended, for ``--json``."""
    application = result.application
    return {
        "ExitCode": int(code),
        "Outcome": NAMES.get(code, ExitCode.TERMINATED.name),
        "Reason": result.reason,
        "Seconds": round(result.seconds, 3),
        "HeartbeatSeconds": None if result.heartbeat_s is None else round(result.heartbeat_s, 3),
        "EnclaveID": result.module_id,
        "EnclaveCID": result.cid,
        "MemoryMiB": result.memory_mib,
        **shown_measurements(result.measurements.as_json(), debug_mode=result.debug_mode),
        "Mode": "debug" if result.debug_mode else "production",
        "Application": None if application is None else application._asdict(),
        "Cause": None if result.cause is None else result.cause._asdict(),
    }
