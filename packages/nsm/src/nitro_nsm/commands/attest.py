"""``nsm attest``."""

import argparse
import base64
import sys
from pathlib import Path

from nitro_nsm.client import NsmClient
from nitro_nsm.commands.inputs import enclave, octets, signing_root
from nitro_nsm.commands.report import document_json, print_json
from nitro_nsm.errors import HostError, Refusal, UsageError
from nitro_nsm.module import Nsm
from nitro_nsm.verification import parse_document


def run(options: argparse.Namespace) -> int:
    """Make a document."""
    to_terminal = options.output is None and sys.stdout.isatty()
    if to_terminal and not (options.base64 or options.json):
        raise UsageError("a document is not text: name a file by --output, or ask for --base64")
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
