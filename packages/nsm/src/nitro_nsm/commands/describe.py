"""``nsm describe``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import sys
import warnings

from nitro_nsm.commands.options import add_json

SUMMARY = "show what an attestation document says, and its certificates, without believing any of it"
EXAMPLES = ("nsm describe document.cose", "nsm describe --json document.cose | jq -r '.pcrs[\"0\"]'")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the document."""
    parser.add_argument("file", metavar="FILE", help="bytes, Base64 or hexadecimal; - is standard input")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show what a document says."""
    from nitro_nsm.commands.inputs import read_document
    from nitro_nsm.commands.report import document_json, document_text, print_json
    from nitro_nsm.verification import parse_document

    warnings.simplefilter("ignore")
    document = parse_document(read_document(options.file), allow_unknown=True)
    if options.json:
        print_json(document_json(document))
    else:
        print("nothing of this is verified", file=sys.stderr)
        print(document_text(document))
    return 0
