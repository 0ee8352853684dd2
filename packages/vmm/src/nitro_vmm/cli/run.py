"""``vmm run``."""

import argparse
import errno
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vmm.cli.command import PROGRAM, complain
from nitro_vmm.cli.exit_code import EXIT_CODES, ExitCode
from nitro_vmm.cli.streams import Told, tell
from nitro_vmm.defaults import BOOT_TIMEOUT_S_DEFAULT, CID_DEFAULT, MEMORY_MIB_DEFAULT

if TYPE_CHECKING:
    from pydantic import ValidationError

    from nitro_vmm.cli.command import Subparsers
    from nitro_vmm.config import EnclaveConfig
    from nitro_vmm.run.attach import Attached

EXAMPLE: Final = """\
example:
  vmm run hello.eif --vsock-path /tmp/hello.vsock
  printf 'CONNECT 5000\\n' | nc -U /tmp/hello.vsock     # into the enclave
  # its connections to port 8000 go to the unix socket /tmp/hello.vsock_8000

"""

OPTIONS: Final = {
    "memory_mib": "--memory-mib",
    "cid": "--cid",
    "cmdline_append": "--cmdline-append",
    "vsock_path": "--vsock-path",
    "vhost_user_path": "--vsock",
    "boot_timeout_s": "--boot-timeout-s",
    "role_arn": "--role-arn",
    "instance_id": "--instance-id",
    "debug_mode": "--debug-mode",
    "seqpacket": "--seqpacket",
}
"""The fields of `EnclaveConfig` that options set, and how these are spelled in messages."""

LIMITS: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many open files",
    errno.ENOMEM: "give the enclave less memory (--memory-mib), or raise the limit (ulimit -v)",
    errno.ENOSPC: "the disk is full",
}
"""What to do about errors that are not about the file that they name."""

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
    run.add_argument("eif", metavar="EIF", nargs="?", type=Path, help="the image")
    run.add_argument("--eif-path", metavar="EIF", type=Path, help="the same, as nitro-cli spells it")
    run.add_argument(
        *("--memory-mib", "--memory"),
        metavar="N",
        type=int,
        help=f"memory, MiB (default: {MEMORY_MIB_DEFAULT}, or four times the image's size if that is more)",
    )
    run.add_argument(
        *("--cid", "--enclave-cid"),
        metavar="N",
        type=int,
        help=f"the enclave's vsock address (default: {CID_DEFAULT})",
    )
    run.add_argument(
        "--cmdline-append", metavar="TEXT", help="add to the kernel's command line; it is not measured"
    )
    run.add_argument(
        "--vsock-path",
        metavar="PREFIX",
        type=Path,
        help="unix sockets of the parent: PREFIX leads into the enclave, PREFIX_PORT gets its connections",
    )
    run.add_argument(
        "--seqpacket",
        action="store_true",
        help="offer SEQPACKET vsock connections as well, unlike AWS; PREFIX.seqpacket leads into the enclave",
    )
    run.add_argument(
        "--vsock",
        dest="vhost_user_path",
        metavar="vhost-user:PATH",
        type=_vhost_user,
        help="let a vhost-user-vsock daemon serve vsock",
    )
    run.add_argument(
        "--boot-timeout-s",
        metavar="S",
        type=float,
        help=f"how long the heartbeat may take (default: {BOOT_TIMEOUT_S_DEFAULT:g})",
    )
    run.add_argument(
        "--debug-mode", action="store_true", help="report PCR0, PCR1, PCR2 and PCR8 as zero, as AWS does"
    )
    run.add_argument("--role-arn", metavar="ARN", help="the parent's IAM role, measured into PCR3")
    run.add_argument("--instance-id", metavar="ID", help="the parent instance (i-...), measured into PCR4")
    run.add_argument(
        "--json", action="store_true", help="report the end as JSON; the console then goes to standard error"
    )
    run.add_argument(
        "--raw-console",
        action="store_true",
        help="let all escape sequences of the guest through to a terminal, not only colours",
    )
    run.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def _vhost_user(value: str) -> Path:
    kind, _, path = value.partition(":")
    if kind != "vhost-user" or not path:
        raise argparse.ArgumentTypeError(f"{value!r} is not vhost-user:PATH")
    return Path(path)


def execute(arguments: argparse.Namespace, started_s: float) -> int:
    """Boot the image and wait for its end."""
    if (arguments.eif is None) == (arguments.eif_path is None):
        return complain("give one image", hint="vmm run IMAGE.eif", code=ExitCode.USAGE)
    path: Path = arguments.eif or arguments.eif_path
    level = logging.ERROR if arguments.quiet else logging.WARNING
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=level, handlers=[Told()])

    def say(text: str) -> None:
        if not arguments.quiet:
            tell(f"{PROGRAM}: {text}")

    # Imported here, so that --help and --version need not wait for the machine.
    from pydantic import ValidationError  # noqa: PLC0415

    from nitro_vmm.config import EnclaveConfig  # noqa: PLC0415
    from nitro_vmm.run.attach import attach  # noqa: PLC0415

    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    console = sys.stderr if arguments.json else sys.stdout
    try:
        config = EnclaveConfig(eif_path=path, **given)
        attached = attach(
            config,
            console_fd=console.fileno(),
            raw_console=arguments.raw_console,
            say=say,
            started_s=started_s,
        )
    except ValidationError as error:
        return _complain_of_options(error)
    except Exception as error:  # noqa: BLE001 - what is not known there is raised again
        return _complain_of(error, path, daemon=arguments.vhost_user_path is not None)
    code = _exit_code(attached)
    if arguments.json:
        print(json.dumps(_as_json(attached, code, config), indent=2))
    result = attached.result
    beat = "no heartbeat" if result.heartbeat_s is None else f"heartbeat after {result.heartbeat_s:.2f} s"
    say(f"{result.reason} after {result.seconds:.2f} s; {beat}")
    return code


def _complain_of_options(error: "ValidationError") -> int:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # about several options at once
        message, _, hint = message.partition(": ")
        for name, option in OPTIONS.items():
            message = message.replace(name, option)
        return complain(message, hint=hint, code=ExitCode.USAGE)
    option = OPTIONS.get(str(first["loc"][0]), str(first["loc"][0]))
    return complain(f"{option} {first['input']}: {message}", hint="vmm run --help", code=ExitCode.USAGE)


def _complain_of(error: Exception, path: Path, *, daemon: bool) -> int:
    """Say what went wrong, as far as it is known how such a thing can go wrong."""
    from nitro_eif import EifError  # noqa: PLC0415
    from nitro_nsm import NsmError  # noqa: PLC0415
    from nitro_vmm.errors import HostError, ImageError, UsageError  # noqa: PLC0415
    from nitro_vsock import VsockError  # noqa: PLC0415

    match error:
        case UsageError():
            return complain(error, hint=error.hint, code=ExitCode.USAGE)
        case ImageError():
            hint = f"eif describe --findings {path} explains the file; if it was copied, copy it again"
            return complain(f"{path}: {error}", hint=error.hint or hint, code=ExitCode.IMAGE)
        case EifError() if isinstance(error.__cause__, OSError):
            code = ExitCode.HOST if error.__cause__.errno in LIMITS else ExitCode.IMAGE
            return complain(error, hint=_hint(error.__cause__) or "give the path of an EIF", code=code)
        case EifError():
            hint = f"was {path} copied whole? eif describe {path}"
            return complain(error, hint=hint, code=ExitCode.IMAGE)
        case HostError():
            return complain(error, hint=error.hint, code=ExitCode.HOST)
        case VsockError():
            hint = "start the daemon first" if daemon else "give another --vsock-path"
            return complain(error, hint=hint, code=ExitCode.HOST)
        case NsmError():
            return complain(error, code=ExitCode.HOST)
        case OSError() if error.filename is not None and Path(error.filename) == path:
            hint = "give the path of an EIF"
            return complain(f"{path}: {error.strerror}", hint=hint, code=ExitCode.IMAGE)
        case OSError():
            return complain(error, hint=_hint(error), code=ExitCode.HOST)
    raise error


def _hint(error: OSError) -> str:
    return LIMITS.get(error.errno or 0, "")


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


def _as_json(attached: "Attached", code: int, config: "EnclaveConfig") -> dict[str, object]:
    result = attached.result
    return {
        "ExitCode": int(code),
        "Outcome": NAMES.get(code, ExitCode.TERMINATED.name),
        "Reason": result.reason,
        "Seconds": round(result.seconds, 3),
        "HeartbeatSeconds": None if result.heartbeat_s is None else round(result.heartbeat_s, 3),
        "EnclaveID": result.module_id,
        "EnclaveCID": config.cid,
        "MemoryMiB": result.memory_mib,
        "Measurements": result.measurements.as_json(),
    }
