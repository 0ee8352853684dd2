"""The command ``vsock-proxy``, as AWS's program of that name is called.

A script that starts it on an EC2 instance runs here unchanged: enclaves of this user reach the proxy at its
port of their parent, CID 3, and so do guests of the host's own vsock, where there is one.
"""

# ruff: noqa: PLC0415 - what is slow to load is imported when it is known to be needed
import argparse
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nitro_vsock.addresses import PORT_MAX
from nitro_vsock.terminal import Parser, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from nitro_vsock.host.endpoints import Destination

PROGRAM: Final = "vsock-proxy"
CONFIG_DEFAULT: Final = Path("/etc/nitro_enclaves/vsock-proxy.yaml")
WORKERS_DEFAULT: Final = 4
AWS_ALLOWS: Final = re.compile(r"kms(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?")
"""The hosts in the file that AWS's package installs, all with port 443. They count if that file is absent."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE = range(3)
EXIT_INTERRUPTED: Final = 130

EPILOG: Final = """\
example:
  vsock-proxy 8000 kms.us-east-1.amazonaws.com 443 --config allowed.yaml &
  vmm run app.eif          # reaches AWS's KMS by connecting to CID 3, port 8000

  # allowed.yaml
  allowlist:
  - {address: kms.us-east-1.amazonaws.com, port: 443}

exit codes:
    0  ended by SIGTERM
    1  the endpoint is not allowed, a file cannot be used, or the port is taken
    2  bad usage
  130  Ctrl-C
"""


def parser() -> argparse.ArgumentParser:
    """The command line: AWS's arguments, and ``--uds-path``."""
    top = Parser(
        prog=PROGRAM,
        description="Lead a vsock port of the parent to a TCP endpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("local_port", type=_number(0, PORT_MAX), help="vsock port to listen at")
    add("remote_addr", help="name or address of the server")
    add("remote_port", type=_number(1, 0xFFFF), help="its TCP port")
    family = top.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", action="store_true", help="use IPv4 addresses only")
    family.add_argument("-6", "--ipv6", action="store_true", help="use IPv6 addresses only")
    add(
        *("-w", "--num_workers"),
        metavar="N",
        type=_number(1, 1 << 16),
        default=WORKERS_DEFAULT,
        help="connections at a time; others wait (default: %(default)s)",
    )
    add(
        "--config",
        metavar="YAML",
        type=Path,
        default=CONFIG_DEFAULT,
        help="what may be forwarded (default: %(default)s; if that is absent, KMS at port 443)",
    )
    add(
        "--uds-path",
        metavar="PREFIX",
        type=Path,
        help="listen at the unix socket PREFIX_PORT only, for `vmm run --vsock-path PREFIX` or a daemon",
    )
    add("--version", action=_Version)
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('nitro-vsock')}")
        parser.exit()


def _number(least: int, most: int) -> "Callable[[str], int]":
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        try:
            return _run(parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except OSError as error:  # of the output of --help, or the host lacks something
        # Python flushes standard output once more when it ends, and must not fail and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED if isinstance(error, BrokenPipeError) else _complain(error.strerror or error)


def _run(arguments: argparse.Namespace) -> int:
    from nitro_vsock.daemon import logs
    from nitro_vsock.errors import VsockError

    logs.configure(form="text", level="info")
    try:
        target = _allowed_target(arguments)
        with ExitStack() as resources:
            return _serve(arguments, target, resources)
    except VsockError as error:
        return _complain(error, hint=error.hint)


def _complain(message: object, *, hint: str = "") -> int:
    print(shown(f"{PROGRAM}: error: {message}"), file=sys.stderr)
    if hint:
        print(shown(f"  hint: {hint}"), file=sys.stderr)
    return EXIT_FAILED


def _allowed_target(arguments: argparse.Namespace) -> "Destination":
    """The endpoint, which the allow-list has.

    Raises:
        UsageError: It is not in the list, or not an endpoint.
        ConfigFileError: The list cannot be read.
    """
    from pydantic import ValidationError

    from nitro_vsock.daemon.config_file import read_allowlist
    from nitro_vsock.daemon.logs import LOGGER
    from nitro_vsock.errors import UsageError
    from nitro_vsock.host.endpoints import Destination

    try:
        target = Destination(host=arguments.remote_addr, port=arguments.remote_port)
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(what, hint=f"{PROGRAM} --help") from None
    config: Path = arguments.config
    if config != CONFIG_DEFAULT or config.exists():
        read_allowlist(config).check(target)
        return target
    if target.port != 443 or not AWS_ALLOWS.fullmatch(target.host):
        raise UsageError(
            f"{target}: the given address and port are not allowed: there is no {config}, "
            "and without it only KMS is, at port 443",
            hint="write `allowlist: [{address: HOST, port: PORT}]` into a file, and give it as --config",
        )
    LOGGER.info("there is no allow-list, so KMS is allowed, as on EC2", extra={"file": str(config)})
    return target


def _serve(arguments: argparse.Namespace, target: "Destination", resources: ExitStack) -> int:
    import trio

    from nitro_vsock.daemon.logs import LOGGER
    from nitro_vsock.host.forwarding import Forwarder

    family = socket.AF_INET if arguments.ipv4 else socket.AF_INET6 if arguments.ipv6 else socket.AF_UNSPEC
    forwarder = Forwarder(target, workers=arguments.num_workers, family=family)
    listeners, places = _listen(arguments, resources)
    code = EXIT_OK

    async def until_signalled() -> None:
        nonlocal code
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forwarder.serve, listeners)
                LOGGER.info("listening", extra={"at": ", ".join(places), "target": str(target)})
                async for number in signals:
                    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_OK
                    nursery.cancel_scope.cancel()

    trio.run(until_signalled)
    return code


def _listen(arguments: argparse.Namespace, resources: ExitStack) -> tuple[list[socket.socket], list[str]]:
    """The listeners, and where they are.

    Raises:
        HostError: The port is taken.
    """
    from nitro_vsock.daemon.logs import LOGGER
    from nitro_vsock.errors import HostError
    from nitro_vsock.host import af_vsock
    from nitro_vsock.host.parent import make_parent_directory
    from nitro_vsock.host.unix import UnixListener

    prefix = arguments.uds_path or make_parent_directory()
    unix = UnixListener(prefix.with_name(f"{prefix.name}_{arguments.local_port}"))
    resources.callback(unix.close)
    listeners, places = [unix.socket], [str(unix.path)]
    if arguments.uds_path is None:
        try:
            af_vsock.check_available()
        except HostError:
            return listeners, places  # enclaves of ours do not need it
        try:
            listeners.append(resources.enter_context(af_vsock.listen(arguments.local_port)))
        except HostError as error:  # another user's, perhaps, which is no reason to leave our enclaves alone
            LOGGER.warning("only enclaves of this user reach this", extra={"why": str(error)})
        else:
            places.append(f"vsock port {arguments.local_port}")
    return listeners, places


if __name__ == "__main__":
    sys.exit(main())
