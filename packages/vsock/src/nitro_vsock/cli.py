"""The command line: ``vhost-user-vsock``. What it needs is imported when it is needed, because users wait."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nitro_vsock.arguments import PROGRAM, parser
from nitro_vsock.terminal import shown

if TYPE_CHECKING:
    import argparse

    from nitro_vsock.daemon.config import DaemonConfig

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BAD_FILE, EXIT_HOST = range(5)
EXIT_INTERRUPTED = 130

STATS_TIMEOUT_S = 30.0
"""How long a daemon may take to tell its counters, with others that asked before us."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        arguments = parser().parse_args(argv)
        code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        # Python flushes standard output once more when it ends, and must not fail and complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return EXIT_FAILED
        return complain(f"cannot write: {error.strerror}", code=EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _run(arguments: "argparse.Namespace") -> int:
    if arguments.print_capabilities:
        print('{"type": "vsock", "features": []}')
        return EXIT_OK
    if arguments.print_descriptor:
        return _descriptor()
    if arguments.command == "completion":
        return _completion(arguments.shell)
    if arguments.command == "stats":
        return _stats(arguments.path, as_json=arguments.json)
    return _serve(arguments)


def complain(message: object, *, hint: str = "", code: int) -> int:
    """Say on standard error what is wrong and what can be done; returns ``code``."""
    print(shown(f"{PROGRAM}: error: {message}"), file=sys.stderr)
    if hint:
        print(shown(f"  hint: {hint}"), file=sys.stderr)
    return code


def _descriptor() -> int:
    """Print what QEMU's vhost-user.json asks for, by which a management program finds a back-end."""
    import json  # noqa: PLC0415
    import shutil  # noqa: PLC0415

    program = shutil.which(PROGRAM) or os.path.realpath(sys.argv[0])
    print(json.dumps({"description": "nitro-vsock", "type": "vsock", "binary": program}, indent=2))
    return EXIT_OK


def _completion(shell: str) -> int:
    try:
        import shtab  # noqa: PLC0415 (an extra)
    except ImportError:
        return complain(
            "completion needs shtab", hint="pip install 'nitro-vsock[completion]'", code=EXIT_HOST
        )
    print(shtab.complete(parser(), shell=shell))
    return EXIT_OK


def _stats(path: str, *, as_json: bool) -> int:
    import json  # noqa: PLC0415
    import socket  # noqa: PLC0415

    content = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(STATS_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(b"json\n")
            while chunk := connection.recv(65536):
                content += chunk
        report = json.loads(content)
    except (OSError, ValueError) as error:
        return complain(
            f"no counters at {path}: {getattr(error, 'strerror', None) or error}",
            hint="give the path that a running daemon got as --stats",
            code=EXIT_HOST,
        )
    if as_json:
        print(json.dumps(report, indent=2))
        return EXIT_OK
    for vm in report["vms"]:
        print(f"guest {vm['guest_cid']}: {'connected' if vm['connected'] else 'no front-end'}")
        for name, value in vm["counters"].items():
            print(f"  {name:<32} {value}")
    return EXIT_OK


def _serve(arguments: "argparse.Namespace") -> int:
    from nitro_vsock.daemon import logs  # noqa: PLC0415 (pydantic: not for --help)
    from nitro_vsock.daemon.config_file import ConfigFileError  # noqa: PLC0415
    from nitro_vsock.daemon.from_arguments import configured  # noqa: PLC0415
    from nitro_vsock.errors import HostError, UsageError, VsockError  # noqa: PLC0415

    logs.configure(form=arguments.log_format, level=arguments.log_level)

    def failed(error: VsockError, code: int, hint: str = "") -> int:
        hint = error.hint or hint
        if arguments.log_format == "json":
            logs.LOGGER.error(str(error), extra={"hint": hint} if hint else {})
            return code
        return complain(error, hint=hint, code=code)

    try:
        from nitro_vsock.daemon import service, supervisor  # noqa: PLC0415 (trio: only to serve)

        def read() -> "DaemonConfig":
            config = configured(arguments)
            service.check(config)
            return config

        config = read()
        if arguments.check:
            print(config.model_dump_json(indent=2))
            return EXIT_OK
        try:
            interrupted = service.run(
                config,
                read_again=read,
                descriptor=arguments.fd,
                supervisor_descriptor=arguments.supervisor_fd,
            )
        except supervisor.WorkerError as error:
            return failed(error, error.exit_code)
    except UsageError as error:
        return failed(error, EXIT_USAGE, hint=f"{PROGRAM} --help")
    except ConfigFileError as error:
        return failed(error, EXIT_BAD_FILE)
    except HostError as error:
        return failed(error, EXIT_HOST)
    except VsockError as error:
        return failed(error, EXIT_FAILED)
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
