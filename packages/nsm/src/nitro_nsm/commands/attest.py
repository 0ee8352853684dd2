"""``nsm attest``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import base64
import sys
from pathlib import Path

from nitro_nsm.commands.options import add_contents, add_identity, add_json
from nitro_nsm.errors import HostError, Refusal, UsageError

SUMMARY = "make an attestation document without any machine, under the test root or an own one"
EXAMPLES = (
    "nsm attest --pcr 0=$(printf %096d 7) --nonce 00ff --output document.cose",
    "eif describe --json hello.eif | nsm attest --measurements - --output document.cose",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take who the enclave is and what it says."""
    add_contents(parser.add_argument_group("what the document says"))
    add_identity(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="FILE", help="where to write it; default: standard output")
    output.add_argument("--base64", action="store_true", help="write it as Base64 text")
    add_json(output, "print what was made as JSON, with the document as Base64")


def run(options: argparse.Namespace) -> int:
    """Make a document."""
    from nitro_nsm.client import NsmClient
    from nitro_nsm.commands.inputs import enclave, octets, signing_root
    from nitro_nsm.commands.report import document_json, print_json
    from nitro_nsm.module import Nsm
    from nitro_nsm.verification import parse_document

    to_terminal = options.output is None and sys.stdout.isatty()
    if to_terminal and not (options.base64 or options.json):
        raise UsageError(
            "a document is not text, and standard output is a terminal",
            hint="name a file by --output, or ask for --base64",
        )
    config = enclave(options)
    root = signing_root(options)
    try:
        document = NsmClient(Nsm(config, root=root).handle).attest(
            user_data=octets(options.user_data, "--user-data"),
            nonce=octets(options.nonce, "--nonce"),
            public_key=octets(options.public_key, "--public-key"),
        )
    except Refusal as refusal:
        raise UsageError(f"the module makes no such document: {refusal}") from refusal
    text = base64.b64encode(document)
    if options.output is not None:
        _write(Path(options.output), text + b"\n" if options.base64 else document)
    if options.json:
        print_json(
            {"root": root.name, "base64": text.decode(), "document": document_json(parse_document(document))}
        )
    elif options.output is None:
        sys.stdout.buffer.write(text + b"\n" if options.base64 else document)
    return 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror or error}") from error
