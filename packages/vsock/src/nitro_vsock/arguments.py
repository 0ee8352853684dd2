"""The arguments of ``vhost-user-vsock``. Nothing slow is imported here: ``--help`` should be quick."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nitro_vsock.terminal import Parser

PROGRAM = "vhost-user-vsock"
DESCRIPTION = "vsock for QEMU and other virtual machines, on unix sockets of the host."

EXAMPLE = """\
example:
  vhost-user-vsock --guest-cid 16 --socket /run/vm.vhost --uds-path /run/vm.vsock &
  qemu-system-x86_64 -M microvm -object memory-backend-memfd,id=m,size=512M,share=on \\
      -machine memory-backend=m -chardev socket,id=c,path=/run/vm.vhost \\
      -device vhost-user-vsock-device,chardev=c ...
  socat - UNIX-CONNECT:/run/vm.vsock       # then: CONNECT 5000
  socat - UNIX-LISTEN:/run/vm.vsock_5000   # what the guest reaches as CID 2 (or 3), port 5000

"""
STATS_EXAMPLE = """\
example:
  vhost-user-vsock stats /run/vm.stats --json | jq '.vms[].counters.connections'

"""
COMPLETION_EXAMPLE = """\
example:
  vhost-user-vsock completion bash > ~/.local/share/bash-completion/completions/vhost-user-vsock

"""
EXIT_CODES = """\
exit codes:
    0  done what was asked, or ended by SIGTERM
    1  failed
    2  bad usage
    3  a configuration file or allow-list cannot be used
    4  the host lacks something or refuses (a socket in use, no AF_VSOCK)
  130  Ctrl-C
"""

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
    "any_cid",
    "source_cid",
    "ok_port",
    "seqpacket",
    "heartbeat",
    "connections_max",
    "half_open_max",
    "buffered_bytes_max",
    "handshake_timeout_s",
    "connect_timeout_s",
    "close_timeout_s",
    "linger_timeout_s",
    "spin_us",
    "publish",
    "proxy",
)
"""Flags that describe one guest, so that they exclude ``--vm`` and ``--config``.

They are the fields of `VmConfig`, which takes 100 ms to import.
"""

TIMEOUTS = (
    ("handshake", "seconds for a host program to say CONNECT and a port", 2),
    ("connect", "seconds for either side to accept a connection", 2),
    ("close", "seconds for the guest to agree to the end of a connection", 2),
    ("linger", "seconds for a host program to read what is left", 30),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)

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
        "--any-cid",
        action="store_true",
        default=None,
        help="be the host at every address that is no other guest's",
    )
    one.add_argument(
        "--source-cid",
        metavar="CID",
        help="where the guest sees host connections come from (default: 2; Nitro enclaves: 3)",
    )
    one.add_argument(
        "--ok-port", choices=["guest", "host"], help="whose port OK names (default: guest; Firecracker: host)"
    )
    one.add_argument(
        "--seqpacket", action="store_true", default=None, help="offer SEQPACKET connections beside streams"
    )
    one.add_argument(
        "--heartbeat",
        action="store_true",
        default=None,
        help="answer the heartbeat of a Nitro enclave, and count it for stats",
    )
    one.add_argument("--connections-max", metavar="N", help="connections at a time (default: 1023)")
    one.add_argument(
        "--half-open-max",
        metavar="N",
        help="host programs at a time that have not said CONNECT and a port yet (default: 64)",
    )
    one.add_argument(
        "--buffered-bytes-max",
        metavar="BYTES",
        help="held for host programs that do not read, all connections together (default: 67108864)",
    )
    for name, what, default in TIMEOUTS:
        one.add_argument(f"--{name}-timeout-s", metavar="S", help=f"{what} (default: {default})")
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
    stats = commands.add_parser(
        "stats",
        help="print a running daemon's counters",
        description="Print the counters of a daemon that was started with --stats PATH.",
        epilog=STATS_EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stats.add_argument("path", metavar="PATH", help="what the daemon got as --stats")
    stats.add_argument("--json", action="store_true", help="all of them, as JSON")
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Print a script that completes this command in a shell.",
        epilog=COMPLETION_EXAMPLE + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 (only here)
        from importlib.util import find_spec  # noqa: PLC0415 (only here)

        engine = find_spec("nitro_vsock.device.engine")
        compiled = engine is not None and engine.origin is not None and not engine.origin.endswith(".py")
        print(f"{PROGRAM} {version('nitro-vsock')}{' (compiled)' if compiled else ''}")
        parser.exit()
