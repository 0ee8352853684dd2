"""The parser of ``nitro-cli``."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from nitro_vmm.cli.nitro import enclaves, images
from nitro_vmm.cli.nitro.errors import ERRORS, LINK, NitroCliError, explanation
from nitro_vmm.cli.streams import give_up, open_closed_streams, tell
from nitro_vmm.errors import HostError, VmmError

VERSION: Final = "1.5.0"
"""The version of aws-nitro-enclaves-cli that this follows; scripts look at it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = _Parser(prog="nitro-cli", description="nitro-cli's commands, for enclaves on this machine.")
    top.add_argument("--version", "-V", action="version", version=f"Nitro CLI {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run-enclave", help="start an enclave and wait until it has booted")
    run.add_argument("--cpu-ids", nargs="+", metavar="ID", help="processors; they are noted only")
    run.add_argument("--cpu-count", metavar="N", help="how many processors; noted only")
    run.add_argument("--memory", metavar="MIB", help="memory, MiB; M, G or T may follow the number")
    run.add_argument("--eif-path", metavar="FILE", help="the image")
    run.add_argument("--enclave-cid", metavar="CID", help="the vsock address (default: a free one)")
    run.add_argument("--debug-mode", action="store_true", help="with a console, and PCRs of zero")
    run.add_argument("--attach-console", action="store_true", help="show the console; implies debug mode")
    run.add_argument("--enclave-name", metavar="NAME", help="its name (default: the image's)")
    run.add_argument("--config", metavar="JSON", help="a file with all of this instead")
    run.set_defaults(execute=enclaves.run)

    listing = commands.add_parser("describe-enclaves", help="list the enclaves that run")
    listing.add_argument("--metadata", action="store_true", help="with their images' metadata")
    listing.set_defaults(execute=enclaves.describe)

    terminate = commands.add_parser("terminate-enclave", help="end an enclave")
    which = _add_which(terminate)
    which.add_argument("--all", action="store_true", help="all of them")
    terminate.set_defaults(execute=enclaves.terminate)

    console = commands.add_parser("console", help="show an enclave's console")
    _add_which(console)
    console.add_argument("--disconnect-timeout", metavar="S", type=int, help="detach after so many seconds")
    console.set_defaults(execute=enclaves.console)

    build = commands.add_parser("build-enclave", help="build an image from a container image")
    build.add_argument("--docker-uri", metavar="URI", required=True, help="registry reference or archive")
    build.add_argument("--docker-dir", metavar="DIR", help="refused: nothing is built here")
    build.add_argument("--output-file", metavar="FILE", required=True, help="the image to write")
    build.add_argument("--signing-certificate", metavar="PEM", help="sign: the certificate")
    build.add_argument("--private-key", metavar="PEM", help="sign: the key, or a KMS key's ARN")
    for name in ("name", "version", "metadata"):
        build.add_argument(f"--{name}", metavar=name.upper(), help=f"the image's {name}")
    build.set_defaults(execute=images.build)

    describe = commands.add_parser("describe-eif", help="describe an image")
    describe.add_argument("--eif-path", metavar="FILE", required=True, help="the image")
    describe.set_defaults(execute=images.describe)

    sign = commands.add_parser("sign-eif", help="sign an image in place")
    sign.add_argument("--eif-path", metavar="FILE", required=True, help="the image")
    sign.add_argument("--signing-certificate", metavar="PEM", required=True, help="the certificate")
    sign.add_argument("--private-key", metavar="PEM", required=True, help="the key, or a KMS key's ARN")
    sign.set_defaults(execute=images.sign)

    pcr = commands.add_parser("pcr", help="the register that a file or a certificate makes")
    either = pcr.add_mutually_exclusive_group(required=True)
    either.add_argument("--input", metavar="FILE", help="any file")
    either.add_argument("--signing-certificate", metavar="PEM", help="a certificate: PCR8")
    pcr.set_defaults(execute=images.pcr)

    explain = commands.add_parser("explain", help="what an error code means")
    explain.add_argument("--error-code", metavar="CODE", required=True, help="such as E19")
    explain.set_defaults(execute=_explain)
    return top


def _add_which(parser: argparse.ArgumentParser) -> "argparse._MutuallyExclusiveGroup":
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--enclave-id", metavar="ID", help="its id")
    which.add_argument("--enclave-name", metavar="NAME", help="its name")
    return which


def _explain(arguments: argparse.Namespace) -> None:
    if arguments.error_code not in ERRORS:
        raise NitroCliError("E03", f"There is no error code {arguments.error_code}; they are E00 to E60.")
    print(explanation(arguments.error_code))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, which is the number of the error."""
    open_closed_streams()
    arguments = parser().parse_args(argv)
    try:
        try:
            arguments.execute(arguments)
        except VmmError as error:
            code = "E07" if isinstance(error, HostError) else "E39"
            raise NitroCliError(code, f"{error}. {error.hint}") from error
        sys.stdout.flush()
    except NitroCliError as error:
        tell(f"{error}\n\nFor more details, please visit {LINK}#{error.code}")
        return error.exit_code
    except BrokenPipeError:
        give_up(sys.stdout.fileno())
        return 1
    except OSError as error:
        give_up(sys.stdout.fileno())
        tell(str(NitroCliError("E46", str(error))))
        return 46
    except KeyboardInterrupt:
        return 130
    return 0


def allocator() -> int:
    """``nitro-enclaves-allocator``: there is nothing to allocate."""
    tell("nitro-enclaves-allocator: nothing is set aside: an enclave takes processors and memory as it runs")
    return 0
