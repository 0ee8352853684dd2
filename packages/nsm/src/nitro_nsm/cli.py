"""The command ``nsm``: arguments in, one of `nitro_nsm.commands` called, errors to exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from nitro_nsm.errors import CborError, DocumentError, HostError, InputError, NsmError, UsageError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BAD_FILE: Final = 3
EXIT_HOST: Final = 4
EXIT_INTERRUPTED: Final = 130

_EXIT_CODES: Final = """exit codes:
  0  done; the answer is yes
  1  it failed, or the answer is no (the document does not verify)
  2  wrong usage
  3  an input file is broken
  4  a file, a directory or a socket cannot be used, or something is not installed"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = import_module(f"nitro_nsm.commands.{options.command}").run
        code = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("nsm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except NsmError as error:
        print(f"nsm: {error}", file=sys.stderr)
        return exit_code(error)
    return code


def exit_code(error: NsmError) -> int:
    """The exit code that stands for an error."""
    match error:
        case UsageError():
            return EXIT_USAGE
        case InputError() | CborError() | DocumentError():
            return EXIT_BAD_FILE
        case HostError():
            return EXIT_HOST
    return EXIT_FAILED


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="nsm",
        description="The Nitro Secure Module in software: make and verify attestation documents.",
        epilog=f"example:\n  nsm verify document.cose\n\n{_EXIT_CODES}",
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

    for add in (_verify, _describe, _attest, _pki, _serve, _completion):
        add(command)
    return top


_Command = Callable[..., argparse.ArgumentParser]


def _verify(command: _Command) -> None:
    verify = command(
        "verify",
        "check that an attestation document is genuine and says what it should",
        "nsm verify document.cose",
        "nsm verify --root test --measurements hello.json --nonce 00ff document.cose",
        "nsm verify --at issued old-document.cose",
    )
    verify.add_argument(
        "file", metavar="FILE", help="the document: bytes, Base64 or hexadecimal; - is standard input"
    )
    verify.add_argument(
        "--root",
        default="aws",
        metavar="aws|test|FILE",
        help="whom to trust: AWS's hardware, our own test root, or a certificate (DER or PEM); default: aws",
    )
    verify.add_argument(
        "--at",
        default="now",
        metavar="TIME",
        help="when its certificates must be valid: now (default), issued (when it says that it was made), "
        "2026-08-03T19:36:15Z, or seconds or milliseconds since 1970",
    )
    expected = verify.add_argument_group("what the document must say")
    _pcr(expected, "a register and its value; repeat for more")
    _measurements(
        expected, "registers from the JSON of `eif describe --json` or nitro-cli; - is standard input"
    )
    for name in ("nonce", "user-data", "public-key"):
        expected.add_argument(f"--{name}", metavar="HEX|@FILE", help=f"the {name.replace('-', ' ')}")
    expected.add_argument(
        "--age-max-s", type=float, metavar="SECONDS", help="made at most so long before --at"
    )
    _json(verify)


def _describe(command: _Command) -> None:
    describe = command(
        "describe",
        "show what an attestation document says, and its certificates, without believing any of it",
        "nsm describe document.cose",
        "nsm describe --json document.cose | jq -r '.pcrs[\"0\"]'",
    )
    describe.add_argument("file", metavar="FILE", help="bytes, Base64 or hexadecimal; - is standard input")
    _json(describe)


def _attest(command: _Command) -> None:
    attest = command(
        "attest",
        "make an attestation document without any machine, under the test root or an own one",
        "nsm attest --pcr 0=$(printf %096d 7) --nonce 00ff --output document.cose",
        "eif describe --json hello.eif | nsm attest --measurements - --output document.cose",
    )
    said = attest.add_argument_group("what the document says")
    for name in ("nonce", "user-data", "public-key"):
        said.add_argument(f"--{name}", metavar="HEX|@FILE", help=f"the {name.replace('-', ' ')}")
    _identity(attest)
    output = attest.add_argument_group("output")
    output.add_argument("--output", metavar="FILE", help="where to write it; default: standard output")
    output.add_argument("--base64", action="store_true", help="write it as Base64 text")
    _json(output, "print what was made as JSON, with the document as Base64")


def _pki(command: _Command) -> None:
    pki = command(
        "pki",
        "show, export or replace the test root",
        "nsm pki show",
        "nsm pki export > test-root.pem",
    )
    pki.add_argument(
        "action",
        choices=["show", "export", "rotate"],
        help="show: where it is, and its fingerprint; export: its certificate, making the root if there is "
        "none; rotate: replace it, so that documents of the old one no longer verify",
    )
    pki.add_argument("--der", action="store_true", help="export DER instead of PEM")
    _json(pki)


def _serve(command: _Command) -> None:
    serve = command(
        "serve",
        "be a module on a unix socket, for programs that are tested without an enclave",
        "nsm serve --socket /tmp/nsm.sock",
    )
    serve.add_argument("--socket", required=True, metavar="PATH", help="where to listen")
    _identity(serve)
    _json(serve)


def _completion(command: _Command) -> None:
    completion = command(
        "completion",
        "print a completion script for a shell (needs the extra: pip install 'nitro-nsm[completion]')",
        "nsm completion bash > ~/.local/share/bash-completion/completions/nsm",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def _identity(command: argparse.ArgumentParser) -> None:
    identity = command.add_argument_group("the enclave")
    identity.add_argument(
        "--config", metavar="FILE", help="TOML or JSON with the fields of NsmConfig; options override it"
    )
    _pcr(identity, "a register of 0 to 15 and its value; repeat for more")
    _measurements(
        identity, "registers from the JSON of `eif describe --json` or nitro-cli; - is standard input"
    )
    identity.add_argument("--role-arn", metavar="ARN", help="the parent's IAM role, measured into PCR3")
    identity.add_argument("--instance-id", metavar="ID", help="the parent instance, measured into PCR4")
    identity.add_argument(
        "--enclave-id", metavar="HEX", help="16 digits; default: from time and chance, as on AWS"
    )
    identity.add_argument(
        "--signing-certificate", metavar="FILE", help="who signed the image, measured into PCR8"
    )
    identity.add_argument("--region", help="default: us-east-1")
    identity.add_argument(
        "--debug-mode",
        action="store_true",
        default=None,
        help="PCR0, PCR1, PCR2 and PCR8 are zero, as on AWS",
    )
    identity.add_argument(
        "--payload-map",
        choices=["indefinite", "definite"],
        help="as hardware since 2025 (default), or before",
    )
    identity.add_argument(
        "--root-key",
        metavar="FILE",
        help="sign under this root (PEM: key and certificate) and not the test root",
    )


def _pcr(group: argparse._ArgumentGroup, text: str) -> None:
    group.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help=text)


def _measurements(group: argparse._ArgumentGroup, text: str) -> None:
    group.add_argument("--measurements", metavar="FILE", help=text)


def _json(group: argparse._ActionsContainer, text: str = "print JSON") -> None:
    group.add_argument("--json", action="store_true", help=text)


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        print(f"nsm {version('nitro-nsm')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
