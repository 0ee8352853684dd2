"""``nsm describe``."""

import argparse
import sys
import warnings

from nitro_nsm.commands.inputs import read_document
from nitro_nsm.commands.report import document_json, document_text, print_json
from nitro_nsm.verification import parse_document


def run(options: argparse.Namespace) -> int:
    """Show what a document says."""
    warnings.simplefilter("ignore")
    document = parse_document(read_document(options.file))
    if options.json:
        print_json(document_json(document))
    else:
        print("nothing of this is verified", file=sys.stderr)
        print(document_text(document))
    return 0
