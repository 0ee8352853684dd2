"""``vhost-user-vsock``: vsock for QEMU and other virtual machines, on unix sockets of the host."""

import argparse
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nitro_vsock import engine

if TYPE_CHECKING:
    from nitro_vsock.daemon.config import DaemonConfig, Location

PROGRAM = "vhost-user-vsock"
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BAD_FILE, EXIT_HOST = range(5)

EPILOG = """\
example:
  vhost-user-vsock --guest-cid 16 --socket /run/vm.vhost --uds-path /run/vm.vsock &
  qemu-system-x86_64 -M microvm -object memory-backend-memfd,id=m,size=512M,share=on \\
      -machine memory-backend=m -chardev socket,id=c,path=/run/vm.vhost \\
      -device vhost-user-vsock-device,chardev=c ...
  socat - UNIX-CONNECT:/run/vm.vsock       # then: CONNECT 5000
  socat - UNIX-LISTEN:/run/vm.vsock_5000   # what the guest reaches as CID 2 (or 3), port 5000

exit codes: 0 ended on SIGTERM or SIGINT, or did what was asked; 1 failed; 2 bad usage;
3 bad configuration file; 4 the host lacks something or refuses (a socket in use, no AF_VSOCK)
"""

STATS_TIMEOUT_S = 30.0
"""How long a daemon may take to tell its counters, others that ask before us included."""

SINGLE = (
    "guest_cid",
    "socket",
    "uds_path",
    "forward_cid",
    "forward_listen",
    "tx_buffer_size",
    "queue_size",
    "groups",
    "host_cids",
    "ok_port",
    "seqpacket",
    "connections",
    "half_open",
    "buffered_bytes",
    "spin_us",
    "publish",
    "proxy",
)
"""Flags that describe one guest, and so exclude ``--vm`` and ``--config``."""


def _version() -> str:
    compiled = "" if engine.__file__.endswith(".py") else " (compiled)"
    return f"{PROGRAM} {version('nitro-vsock')}{compiled}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("-V", "--version", action="version", version=_version())

    one = top.add_argument_group("one guest")
    one.add_argument("--guest-cid", metavar="CID", help="the guest's address (default: 3)")
    one.add_argument(
        "--socket", "--socket-path", metavar="PATH", dest="socket", help="where the front-end (QEMU) connects"
    )
    one.add_argument(
        "--fd", type=int, metavar="N", help="an open socket to or for the front-end, instead of --socket"
    )
    one.add_argument(
        "--uds-path", metavar="PATH", help="host programs connect here; guests reach listeners at PATH_PORT"
    )
    one.add_argument(
        "--forward-cid",
        metavar="CID",
        help="send the guest's connections, to whatever CID, to this one of the host's vsock",
    )
    one.add_argument(
        "--forward-listen", metavar="P1+P2", help="accept these ports of the host's vsock for the guest"
    )
    one.add_argument(
        "--tx-buffer-size",
        metavar="BYTES",
        help="under way on each connection from the guest (default: 262144)",
    )
    one.add_argument("--queue-size", metavar="N", help="longest virtqueue accepted (default: 1024)")
    one.add_argument(
        "--groups",
        metavar="G1+G2",
        help="guests that share a group reach each other, all others get processes of their own"
        " (default: default)",
    )
    one.add_argument(
        "--host-cids", metavar="C1+C2", help="addresses of the host for the guest (default: 2+3)"
    )
    one.add_argument(
        "--ok-port", choices=["guest", "host"], help="whose port OK names (default: guest; Firecracker: host)"
    )
    one.add_argument(
        "--seqpacket", action="store_true", default=None, help="offer SEQPACKET connections beside streams"
    )
    one.add_argument("--connections", metavar="N", help="connections at a time (default: 1023)")
    one.add_argument(
        "--half-open",
        metavar="N",
        help="host programs at a time that have not said CONNECT and a port yet (default: 64)",
    )
    one.add_argument(
        "--buffered-bytes",
        metavar="BYTES",
        help="held for host programs that do not read, all connections together (default: 67108864)",
    )
    one.add_argument(
        "--spin-us",
        metavar="US",
        help="look so long for more before going to sleep, while that is worth it "
        "(default: 30 for one guest on several processors, else 0)",
    )
    one.add_argument(
        "--publish",
        action="append",
        metavar="WHERE=PORT",
        help="tcp:HOST:PORT or unix:PATH on which the host reaches a port of the guest; repeatable",
    )
    one.add_argument(
        "--proxy",
        action="append",
        metavar="PORT=HOST:PORT",
        help="a port of the host on which the guest reaches a TCP endpoint; repeatable",
    )

    many = top.add_argument_group("several guests")
    many.add_argument(
        "--vm",
        action="append",
        metavar="KEY=VALUE,...",
        help="one guest; keys are the flags above, for example"
        " guest-cid=4,socket=/run/4.vhost,seqpacket=true; repeatable",
    )
    many.add_argument("--config", type=Path, metavar="FILE", help="YAML with a list 'vms' of the same keys")

    general = top.add_argument_group("the daemon")
    general.add_argument(
        "--proxy-allowlist", type=Path, metavar="FILE", help="vsock-proxy YAML that every --proxy must be in"
    )
    general.add_argument("--stats", metavar="PATH", help="unix socket that tells the counters")
    general.add_argument(
        "--allow-uid",
        action="append",
        metavar="UID",
        help="another user whose programs may connect to all sockets but --stats; repeatable",
    )
    general.add_argument("--log-format", choices=["text", "json"], default="text")
    general.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    general.add_argument("--supervisor-fd", type=int, help=argparse.SUPPRESS)
    general.add_argument("--check", action="store_true", help="print the configuration as JSON and exit")
    general.add_argument(
        "--print-capabilities",
        action="store_true",
        help="what the vhost-user specification asks for, as JSON",
    )
    general.add_argument(
        "--print-descriptor",
        action="store_true",
        help="the JSON for /etc/qemu/vhost-user/, naming this program",
    )

    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="other commands")
    stats = commands.add_parser("stats", help="print a running daemon's counters")
    stats.add_argument("path", metavar="PATH", help="what the daemon got as --stats")
    stats.add_argument("--json", action="store_true", help="all of them, as JSON")
    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lest the end says it once more
        if not isinstance(error, BrokenPipeError):
            _complain(f"cannot write: {error.strerror}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED
    return code


def _run(arguments: argparse.Namespace) -> int:
    if arguments.print_capabilities:
        print(json.dumps({"type": "vsock", "features": []}))
        return EXIT_OK
    if arguments.print_descriptor:
        return _descriptor()
    if arguments.command == "completion":
        return _completion(arguments.shell)
    if arguments.command == "stats":
        return _stats(arguments.path, as_json=arguments.json)
    return _serve(arguments)


def _complain(message: object) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _descriptor() -> int:
    """vhost-user.json of QEMU: how a management program finds a back-end."""
    program = shutil.which(PROGRAM) or os.path.realpath(sys.argv[0])
    print(json.dumps({"description": "nitro-vsock", "type": "vsock", "binary": program}, indent=2))
    return EXIT_OK


def _completion(shell: str) -> int:
    try:
        import shtab  # noqa: PLC0415 (an extra)
    except ImportError:
        _complain("completion needs shtab: pip install 'nitro-vsock[completion]'")
        return EXIT_HOST
    print(shtab.complete(parser(), shell=shell))
    return EXIT_OK


def _stats(path: str, *, as_json: bool) -> int:
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
        _complain(f"no counters at {path}: {getattr(error, 'strerror', None) or error}")
        return EXIT_HOST
    if as_json:
        print(json.dumps(report, indent=2))
        return EXIT_OK
    for vm in report["vms"]:
        print(f"guest {vm['guest_cid']}: {'connected' if vm['connected'] else 'no front-end'}")
        for name, value in vm["counters"].items():
            print(f"  {name:<32} {value}")
    return EXIT_OK


def _serve(arguments: argparse.Namespace) -> int:
    from nitro_vsock.daemon.config import ConfigFileError  # noqa: PLC0415 (pydantic: not for --help)
    from nitro_vsock.daemon.logs import LOGGER, configure  # noqa: PLC0415
    from nitro_vsock.errors import HostError, UsageError, VsockError  # noqa: PLC0415

    configure(form=arguments.log_format, level=arguments.log_level)
    complain = LOGGER.error if arguments.log_format == "json" else _complain
    try:
        config = _config(arguments)
        if arguments.check:
            print(config.model_dump_json(indent=2))
            return EXIT_OK
        from nitro_vsock.daemon import service, supervisor  # noqa: PLC0415 (trio: only to serve)

        try:
            service.run(config, descriptor=arguments.fd, supervisor_descriptor=arguments.supervisor_fd)
        except supervisor.WorkerError as error:
            complain(error)
            return error.exit_code
    except UsageError as error:
        complain(f"{error} (see --help)")
        return EXIT_USAGE
    except ConfigFileError as error:
        complain(error)
        return EXIT_BAD_FILE
    except HostError as error:
        complain(error)
        return EXIT_HOST
    except VsockError as error:
        complain(error)
        return EXIT_FAILED
    return EXIT_OK


def _config(arguments: argparse.Namespace) -> "DaemonConfig":
    """All flags and files as one configuration.

    Raises:
        UsageError: The flags contradict each other or a value is wrong.
        ConfigFileError: The same for a file.
    """
    from pydantic import ValidationError  # noqa: PLC0415

    from nitro_vsock.daemon import config  # noqa: PLC0415
    from nitro_vsock.errors import UsageError  # noqa: PLC0415

    if arguments.supervisor_fd is not None:
        return config.DaemonConfig.model_validate_json(sys.stdin.buffer.read())
    single = {name: value for name in SINGLE if (value := getattr(arguments, name)) is not None}
    given = [bool(single) or arguments.fd is not None, bool(arguments.vm), arguments.config is not None]
    if sum(given) != 1:
        raise UsageError("give the flags of one guest, or --vm for each of several, or --config")
    if arguments.fd is not None and "socket" in single:
        raise UsageError("--fd stands for --socket, give one of them")
    content: dict[str, Any] = {}
    if arguments.config is not None:
        content = config.read_config(arguments.config)
    elif arguments.vm:
        content["vms"] = [config.parse_vm(text) for text in arguments.vm]
    else:
        content["vms"] = [single]
    if arguments.stats is not None:
        content["stats"] = arguments.stats
    if arguments.allow_uid:
        content["allow_uid"] = arguments.allow_uid
    allowlist = arguments.proxy_allowlist or content.get("proxy_allowlist")
    if isinstance(allowlist, str | Path):
        content["proxy_allowlist"] = config.read_allowlist(Path(allowlist))
    try:
        found = config.DaemonConfig.model_validate(content)
    except ValidationError as error:
        if arguments.config is not None:
            raise config.ConfigFileError(f"{arguments.config}: {config.problems(error)}") from error
        raise UsageError(config.problems(error, _flag_of_vm if arguments.vm else _flag)) from error
    without = [vm.guest_cid for vm in found.vms if vm.socket is None]
    if without and arguments.fd is None:
        what = f"guest {without[0]} needs a socket for its front-end"
        if arguments.config is not None:
            raise config.ConfigFileError(f"{arguments.config}: {what}")
        raise UsageError(what)
    return found


def _flag(location: "Location") -> str:
    """What the command line of one guest calls a place in the configuration."""
    names = [str(part) for part in location if isinstance(part, str) and part != "vms"]
    return f"--{names[0].replace('_', '-')}" if names else ""


def _flag_of_vm(location: "Location") -> str:
    """The same of several guests."""
    match location:
        case ["vms", int(index), *keys]:
            return " ".join([f"--vm {index + 1}", *(str(key).replace("_", "-") for key in keys[:1])])
    return _flag(location)


if __name__ == "__main__":
    sys.exit(main())
