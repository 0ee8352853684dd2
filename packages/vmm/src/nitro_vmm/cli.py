"""The command line: ``vmm``."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "vmm"

EXIT_CODES = """\
exit codes:
    0  the enclave powered off or rebooted
    1  a failure of vmm itself
    2  bad usage, or less memory than the image needs
    3  the image cannot be read, or Nitro would not boot it
    4  the host lacks something (a socket in use, another build of Unicorn)
    5  no heartbeat within --boot-timeout-s
   10  the enclave's kernel panicked
   11  the enclave crashed: a triple fault, or code where there is no memory
  130  Ctrl-C; 143  SIGTERM
"""

EXAMPLE = """\
example:
  vmm run hello.eif --vsock-path /tmp/hello.vsock
  printf 'CONNECT 5000\\n' | nc -U /tmp/hello.vsock     # into the enclave
  # its connections to port 8000 go to the unix socket /tmp/hello.vsock_8000

"""


def parser() -> argparse.ArgumentParser:
    """The parser, which completion scripts are made of, too."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="AWS Nitro Enclaves on any machine.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="boot an enclave image file and wait for its end",
        description="Boot an enclave image file (EIF); its console is on standard output.",
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("eif", metavar="EIF", nargs="?", type=Path, help="the image")
    run.add_argument("--eif-path", metavar="EIF", type=Path, help="the same, as nitro-cli spells it")
    run.add_argument(
        *("--memory-mib", "--memory"),
        metavar="N",
        type=int,
        help="memory, MiB (default: 512, or four times the image's size if that is more)",
    )
    run.add_argument(
        *("--cid", "--enclave-cid"), metavar="N", type=int, help="the enclave's vsock address (default: 16)"
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
        metavar="vhost-user:PATH",
        type=_vhost_user,
        help="let a vhost-user-vsock daemon serve vsock",
    )
    run.add_argument(
        "--boot-timeout-s", metavar="S", type=float, help="how long the heartbeat may take (default: 180)"
    )
    run.add_argument(
        "--debug-mode", action="store_true", help="report PCR0, PCR1, PCR2 and PCR8 as zero, as AWS does"
    )
    run.add_argument("--role-arn", metavar="ARN", help="the parent's IAM role, measured into PCR3")
    run.add_argument("--instance-id", metavar="ID", help="the parent instance (i-...), measured into PCR4")
    run.add_argument(
        "--json", action="store_true", help="report the end as JSON; the console then goes to standard error"
    )
    run.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        print(f"{PROGRAM} {version('nitro-vmm')}")
        parser.exit()


def _vhost_user(value: str) -> Path:
    kind, _, path = value.partition(":")
    if kind != "vhost-user" or not path:
        raise argparse.ArgumentTypeError(f"{value!r} is not vhost-user:PATH")
    return Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    started_s = time.monotonic()
    try:
        arguments = parser().parse_args(argv)
        if arguments.command == "completion":
            code = _completion(arguments.shell)
        else:
            code = _run(arguments, started_s)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _completion(shell: str) -> int:
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        return _complain("completion needs shtab", hint="pip install 'nitro-vmm[completion]'", code=4)
    print(shtab.complete(parser(), shell=shell))
    return 0


def _complain(message: object, *, hint: str = "", code: int) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace, started_s: float) -> int:
    from pydantic import ValidationError  # noqa: PLC0415 - --help is fast without

    from nitro_eif import EifError  # noqa: PLC0415
    from nitro_nsm import NsmError  # noqa: PLC0415
    from nitro_vmm.config import EnclaveConfig  # noqa: PLC0415
    from nitro_vmm.errors import HostError, ImageError, UsageError  # noqa: PLC0415
    from nitro_vmm.launcher import Enclave, ExitCode  # noqa: PLC0415
    from nitro_vsock import VsockError  # noqa: PLC0415

    if (arguments.eif is None) == (arguments.eif_path is None):
        return _complain("give one image", hint="vmm run IMAGE.eif", code=ExitCode.USAGE)
    path = arguments.eif or arguments.eif_path
    options = {
        "memory_mib": arguments.memory_mib,
        "cid": arguments.cid,
        "cmdline_append": arguments.cmdline_append,
        "vsock_path": arguments.vsock_path,
        "vhost_user_path": arguments.vsock,
        "boot_timeout_s": arguments.boot_timeout_s,
        "role_arn": arguments.role_arn,
        "instance_id": arguments.instance_id,
    }
    if arguments.vsock is not None and arguments.vsock_path is not None:
        return _complain(
            "--vsock and --vsock-path exclude each other",
            hint="give the daemon its own --uds-path",
            code=ExitCode.USAGE,
        )
    if arguments.vsock is not None and arguments.seqpacket:
        return _complain(
            "--vsock and --seqpacket exclude each other",
            hint="give the daemon --seqpacket",
            code=ExitCode.USAGE,
        )

    def say(text: str) -> None:
        if not arguments.quiet:
            print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)

    level = logging.ERROR if arguments.quiet else logging.WARNING
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=level)
    try:
        given = {name: value for name, value in options.items() if value is not None}
        switches = {"debug_mode": arguments.debug_mode, "seqpacket": arguments.seqpacket}
        config = EnclaveConfig(eif_path=path, **switches, **given)
        console_fd = sys.stderr.fileno() if arguments.json else sys.stdout.fileno()
        result = Enclave(config, console_fd=console_fd, say=say, started_s=started_s).run()
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        return _complain(
            f"{option} {first['input']}: {first['msg']}", hint="vmm run --help", code=ExitCode.USAGE
        )
    except UsageError as error:
        return _complain(error, hint=error.hint, code=ExitCode.USAGE)
    except ImageError as error:
        hint = f"eif describe --findings {path} explains the file; if it was copied, copy it again"
        return _complain(f"{path}: {error}", hint=hint, code=ExitCode.IMAGE)
    except EifError as error:
        return _complain(error, hint=f"was {path} copied whole? eif describe {path}", code=ExitCode.IMAGE)
    except HostError as error:
        return _complain(error, hint=error.hint, code=ExitCode.HOST)
    except VsockError as error:
        hint = "start the daemon first" if arguments.vsock else "give another --vsock-path"
        return _complain(error, hint=hint, code=ExitCode.HOST)
    except NsmError as error:
        return _complain(error, code=ExitCode.HOST)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == path:
            return _complain(f"{path}: {error.strerror}", hint="give the path of an EIF", code=ExitCode.IMAGE)
        return _complain(error, code=ExitCode.HOST)
    if arguments.json:
        print(
            json.dumps(
                {
                    "ExitCode": int(result.exit_code),
                    "Outcome": result.exit_code.name,
                    "Reason": result.reason,
                    "Seconds": round(result.seconds, 3),
                    "HeartbeatSeconds": None if result.heartbeat_s is None else round(result.heartbeat_s, 3),
                    "EnclaveID": result.module_id,
                    "EnclaveCID": config.cid,
                    "MemoryMiB": result.memory_mib,
                    "Measurements": {
                        "HashAlgorithm": "Sha384 { ... }",
                        **{
                            name.upper(): value.hex()
                            for name in ("pcr0", "pcr1", "pcr2", "pcr8")
                            if (value := getattr(result.measurements, name)) is not None
                        },
                    },
                },
                indent=2,
            )
        )
    beat = "no heartbeat" if result.heartbeat_s is None else f"heartbeat after {result.heartbeat_s:.2f} s"
    say(f"{result.reason} after {result.seconds:.2f} s; {beat}")
    return int(result.exit_code)
