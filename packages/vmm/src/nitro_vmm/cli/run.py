"""``vmm run``."""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import PROGRAM
from nitro_vmm.cli.configure import add_options, config_of
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.problems import complain_of
from nitro_vmm.cli.streams import Told, tell

if TYPE_CHECKING:
    from nitro_vmm.cli.command import Subparsers
    from nitro_vmm.enclave.outcome import Result
    from nitro_vmm.enclave.watch import ApplicationEnd
    from nitro_vmm.run.attach import Attached

EXAMPLE: Final = """\
example:
  vmm run hello.eif --vsock-path /tmp/hello.vsock
  printf 'CONNECT 5000\\n' | nc -U /tmp/hello.vsock     # into the enclave
  # its connections to port 8000 go to the unix socket /tmp/hello.vsock_8000

"""

NAMES: Final = {int(code): code.name for code in ExitCode}
"""What `--json` calls the exit codes."""


def add(commands: "Subparsers") -> None:
    """Add the command to the parser."""
    run = commands.add_parser(
        "run",
        help="boot an enclave image file and wait for its end",
        description="Boot an enclave image file (EIF); its console is on standard output.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(execute=execute)
    add_options(run)
    run.add_argument(
        "--json", action="store_true", help="report the end as JSON; the console then goes to standard error"
    )
    run.add_argument(
        "--exit-code-from",
        choices=["vmm", "app"],
        default="vmm",
        help="exit with what the image's program exited with, where its init says so (default: vmm)",
    )
    run.add_argument(
        "--raw-console",
        action="store_true",
        help="let all escape sequences of the guest through to a terminal, not only colours",
    )
    run.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def execute(arguments: argparse.Namespace, started_s: float) -> int:
    """Boot the image and wait for its end."""
    level = logging.ERROR if arguments.quiet else logging.WARNING
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=level, handlers=[Told()])

    def say(text: str) -> None:
        if not arguments.quiet:
            tell(f"{PROGRAM}: {text}")

    path = None
    try:
        config = config_of(arguments)
        path = config.eif_path
        # Imported here, so that --help and --version need not wait for the machine.
        from nitro_vmm.run.attach import attach  # noqa: PLC0415

        console = sys.stderr if arguments.json else sys.stdout
        attached = attach(
            config,
            console_fd=console.fileno(),
            raw_console=arguments.raw_console,
            say=say,
            started_s=started_s,
        )
    except Exception as error:  # noqa: BLE001 - what is not known there is raised again
        return complain_of(error, path, daemon=arguments.vhost_user_path is not None)
    code = _exit_code(attached)
    if arguments.exit_code_from == "app" and code == ExitCode.ENDED:
        code = _application_code(attached.result.application)
    if arguments.json:
        print(json.dumps(_as_json(attached, code), indent=2))
    result = attached.result
    beat = "no heartbeat" if result.heartbeat_s is None else f"heartbeat after {result.heartbeat_s:.2f} s"
    application = "" if result.application is None else f"; {result.application}"
    say(f"{result.reason} after {result.seconds:.2f} s; {beat}{application}")
    if result.cause is not None:
        say(f"why: {result.cause.message} ({result.cause.code})")
        say(f"  hint: {result.cause.hint}")
    return code


def _application_code(application: "ApplicationEnd | None") -> int:
    """What the image's program would have exited with in a shell; 1 if its init only said that it failed."""
    if application is None:
        return ExitCode.ENDED
    if application.status is not None:
        return application.status
    return ExitCode.FAILED if application.signal is None else 128 + application.signal


def _exit_code(attached: "Attached") -> int:
    from nitro_vmm.enclave import Outcome  # noqa: PLC0415

    match attached.result.outcome:
        case Outcome.ENDED:
            return ExitCode.ENDED
        case Outcome.BOOT_TIMEOUT:
            return ExitCode.BOOT_TIMEOUT
        case Outcome.PANIC:
            return ExitCode.PANIC
        case Outcome.CRASH:
            return ExitCode.CRASH
        case Outcome.STOPPED:
            return ExitCode.INTERRUPTED if attached.signal is None else 128 + attached.signal


def _as_json(attached: "Attached", code: int) -> dict[str, object]:
    result = attached.result
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
        **measurements_as_json(result),
        "Mode": "debug" if result.debug_mode else "production",
        "Application": None if application is None else asdict(application),
        "Cause": None if result.cause is None else asdict(result.cause),
    }


def measurements_as_json(result: "Result") -> dict[str, object]:
    """The measurements as documents show them: zero in debug mode, where the image's are told apart."""
    measured = result.measurements.as_json()
    if not result.debug_mode:
        return {"Measurements": measured}
    zeros = {name: "0" * len(value) if name.startswith("PCR") else value for name, value in measured.items()}
    return {"Measurements": zeros, "ImageMeasurements": measured}
