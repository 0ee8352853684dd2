"""The command ``eif``: arguments in, one of `nitro_eif.commands` called, errors to exit codes."""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Final

from nitro_eif.errors import EifError, EifFormatError, HostError, UsageError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BAD_FILE: Final = 3
EXIT_HOST: Final = 4
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

_EXIT_CODES: Final = """exit codes:
  0  done; the answer is yes
  1  it failed, or the answer is no (not valid, not the same, not signed by this key)
  2  wrong usage
  3  an input file is broken
  4  a file cannot be opened, the network fails, or something is not installed
  130, 143  interrupted, terminated"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names and images may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            run: Callable[[argparse.Namespace], int]
            run = import_module(f"nitro_eif.commands.{options.command}").run
            code = run(options)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("eif: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except EifError as error:
        print(f"eif: {error}", file=sys.stderr)
        return exit_code(error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"eif: {place}{error.strerror or error}", file=sys.stderr)
        return EXIT_HOST
    except MemoryError:
        print("eif: not enough memory", file=sys.stderr)
        return EXIT_HOST
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the program like an error, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: EifError) -> int:
    """Give the exit code that stands for an error."""
    match error:
        case EifFormatError():
            return EXIT_BAD_FILE
        case UsageError():
            return EXIT_USAGE
        case HostError():
            return EXIT_HOST
    return EXIT_FAILED


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="eif",
        description="Read, measure, build, sign and explain AWS Nitro Enclave Image Files.",
        epilog=f"example:\n  eif describe hello.eif\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="example:\n" + "\n".join(f"  {example}" for example in examples) + f"\n\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _build(command)
    _describe(command)
    _verify(command)
    _diff(command)
    _extract(command)
    _sign(command)
    _pcr(command)
    completion = command(
        "completion", "print a completion script", "eif completion bash > ~/.bash_completion.d/eif"
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from nitro_eif.metadata import tool_version  # noqa: PLC0415 - only here

        print(f"eif {tool_version()}")
        parser.exit()


_Command = Callable[..., argparse.ArgumentParser]


def _build(command: _Command) -> None:
    build = command(
        "build",
        "build an image from kernel, command line and ramdisks, or from an application",
        "eif build --kernel bzImage --cmdline 'reboot=k panic=30' --ramdisk init.cpio --output hello.eif",
        "eif build --image alpine:3.22 --kernel-package linux-image.deb --cmd 'echo hi' --output hello.eif",
    )
    build.add_argument("--output", metavar="FILE", required=True, help="the image to write")
    build.add_argument("--kernel", metavar="FILE", help="bzImage (x86_64) or Image (aarch64)")
    build.add_argument("--cmdline", metavar="TEXT", help="the kernel's command line")
    build.add_argument(
        "--ramdisk", metavar="FILE", action="append", default=[], help="cpio archive; repeat for more"
    )
    build.add_argument("--arch", choices=["x86_64", "aarch64"], default="x86_64", help="default: %(default)s")
    build.add_argument("--compress", choices=["gzip", "xz", "zstd"], help="compress the ramdisks")
    _application(build)
    identity = build.add_argument_group("metadata (not measured)")
    identity.add_argument("--name", help="image name; default: the kernel's file name")
    identity.add_argument("--version", help="image version; default: 1.0")
    identity.add_argument("--metadata", metavar="FILE", help="JSON object of your own, at most 4096 bytes")
    identity.add_argument(
        "--build-time", metavar="TIME", help="RFC 3339; default: $SOURCE_DATE_EPOCH, or now"
    )
    identity.add_argument("--build-tool", metavar="NAME", help="default: nitro-eif")
    identity.add_argument("--build-tool-version", metavar="TEXT", help="default: this tool's version")
    identity.add_argument("--img-os", metavar="NAME", help="default: from --kernel-config, or OS")
    identity.add_argument("--img-kernel", metavar="TEXT", help="default: from --kernel-config, or kernel")
    identity.add_argument(
        "--kernel-config",
        "--kernel_config",
        metavar="FILE",
        help="the kernel's .config, for its system and version",
    )
    build.add_argument(
        "--algo", choices=["sha384"], default="sha384", help="there is one: Nitro measures with SHA-384"
    )
    _signing(build.add_argument_group("signing"), required=False)
    _json(build)


def _application(build: argparse.ArgumentParser) -> None:
    source = build.add_argument_group("an application, instead of --ramdisk")
    source.add_argument(
        "--image",
        metavar="IMAGE",
        help="registry reference, OCI layout directory or archive, docker save archive",
    )
    source.add_argument("--rootfs", metavar="PATH", help="root file system: a directory or tar archive")
    source.add_argument(
        "--plain-http", action="store_true", help="pull without TLS; only from a network you trust"
    )
    source.add_argument(
        "--entrypoint",
        metavar="TEXT",
        help="instead of the image's ENTRYPOINT and CMD; split as a shell does",
    )
    source.add_argument("--cmd", metavar="TEXT", help="instead of the image's CMD; split as a shell does")
    source.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], help="added; repeat for more"
    )
    source.add_argument("--workdir", metavar="PATH", help="instead of the image's WORKDIR")
    source.add_argument("--user", metavar="USER[:GROUP]", help="instead of the image's USER")
    source.add_argument(
        "--nitro-cli", action="store_true", help="as nitro-cli: CMD or else ENTRYPOINT, no WORKDIR, no USER"
    )
    base = build.add_argument_group("kernel and init for an application")
    base.add_argument(
        "--blobs", metavar="DIR", help="nitro-cli's blobs: kernel, command line, init and nsm.ko"
    )
    base.add_argument(
        "--kernel-package", metavar="DEB", help="Debian kernel package; modules are picked from it"
    )
    base.add_argument(
        "--module", metavar="NAME", action="append", default=[], help="one more module of the package"
    )
    base.add_argument(
        "--init", metavar="FILE", help="static executable; default: this package's, or the blobs'"
    )


def _describe(command: _Command) -> None:
    describe = command(
        "describe",
        "explain an image: sections, measurements, metadata, and what is wrong with it",
        "eif describe hello.eif",
        "eif describe --json hello.eif | jq -r .Measurements.PCR0",
    )
    describe.add_argument("image", metavar="EIF")
    describe.add_argument("--findings", action="store_true", help="say of each finding who minds, and why")
    _json(describe, "print JSON in nitro-cli describe-eif's shape")


def _verify(command: _Command) -> None:
    verify = command(
        "verify",
        "check that Nitro would boot an image, and that it is the one you expect",
        "eif verify hello.eif",
        "eif verify --signed --signing-certificate signer.pem --pcr0 $PCR0 hello.eif",
    )
    verify.add_argument("image", metavar="EIF")
    verify.add_argument("--signed", action="store_true", help="it must be signed")
    verify.add_argument(
        "--signing-certificate", metavar="PEM", help="it must be signed with this certificate"
    )
    for register in ("pcr0", "pcr1", "pcr2", "pcr8"):
        verify.add_argument(f"--{register}", metavar="HEX", help=f"it must measure this {register.upper()}")
    _json(verify)


def _diff(command: _Command) -> None:
    diff = command(
        "diff",
        "say what differs between two images, and which registers change because of it",
        "eif diff yesterday.eif today.eif",
    )
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    _json(diff)


def _extract(command: _Command) -> None:
    extract = command(
        "extract",
        "write an image's sections to files, or list the files in its ramdisks",
        "eif extract hello.eif --output parts",
        "eif extract hello.eif --tree",
    )
    extract.add_argument("image", metavar="EIF")
    extract.add_argument("--output", metavar="DIR", help="where to; must be empty or not exist")
    extract.add_argument("--tree", action="store_true", help="list the ramdisks' files instead")
    extract.add_argument("--ramdisk", metavar="N", type=int, help="with --tree: only this one, from 0")
    _json(extract)
    assemble = command(
        "assemble",
        "put an image together from the files that extract wrote",
        "eif assemble parts --output hello.eif",
    )
    assemble.add_argument("directory", metavar="DIR")
    assemble.add_argument("--output", metavar="FILE", required=True)
    _json(assemble, "print JSON, as always")


def _sign(command: _Command) -> None:
    sign = command(
        "sign",
        "sign an image, replacing a signature that it has",
        "eif sign hello.eif --signing-certificate signer.pem --private-key signer.key",
    )
    sign.add_argument("image", metavar="EIF")
    sign.add_argument("--output", metavar="FILE", help="default: in place")
    _signing(sign.add_argument_group("signing"), required=True)
    _json(sign, "print JSON, as always")
    unsign = command("unsign", "take an image's signature away", "eif unsign hello.eif")
    unsign.add_argument("image", metavar="EIF")
    unsign.add_argument("--output", metavar="FILE", help="default: in place")


def _pcr(command: _Command) -> None:
    pcr = command(
        "pcr",
        "compute the register that a file, certificate, role or instance makes",
        "eif pcr --input application.cpio",
        "eif pcr --role-arn arn:aws:iam::123456789012:role/Webserver",
    )
    pcr.add_argument("--input", metavar="FILE", help="any file: PCR, as PCR0 to PCR2 are made")
    pcr.add_argument("--signing-certificate", metavar="PEM", help="certificate: PCR8")
    pcr.add_argument("--role-arn", metavar="ARN", help="the parent instance's IAM role: PCR3")
    pcr.add_argument("--instance-id", metavar="ID", help="the parent instance: PCR4")
    _json(pcr, "print JSON, as always")


def _signing(group: argparse._ArgumentGroup, *, required: bool) -> None:
    group.add_argument("--signing-certificate", metavar="PEM", required=required, help="certificate file")
    group.add_argument(
        "--private-key",
        metavar="PEM|ARN",
        required=required,
        help="key file (P-256, P-384, P-521) or KMS key ARN",
    )
    group.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="first line is the key's passphrase; default: $EIF_KEY_PASSPHRASE",
    )


def _json(command: argparse.ArgumentParser, text: str = "print JSON") -> None:
    command.add_argument("--json", action="store_true", help=text)


if __name__ == "__main__":
    sys.exit(main())
