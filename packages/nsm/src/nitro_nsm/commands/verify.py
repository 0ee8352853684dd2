"""``nsm verify``."""

import argparse
import re
import sys
import warnings
from datetime import UTC, datetime, timedelta

from nitro_nsm.commands.inputs import octets, read_document, registers, trust_root
from nitro_nsm.commands.report import document_json, document_text, print_json
from nitro_nsm.document import EPOCH
from nitro_nsm.errors import DocumentError, HostError, InputError, Step, UsageError
from nitro_nsm.roots import TrustRoot
from nitro_nsm.storage import TEST_ROOT, read_test_root
from nitro_nsm.verification import parse_document, verify

MILLISECONDS_FROM = (
    10**11
)  # as seconds that would be in the year 5138; as milliseconds, as in documents, 1973


def run(options: argparse.Namespace) -> int:
    """Say whether the document verifies."""
    warnings.simplefilter("ignore")  # of the certificate parser, about certificates that we refuse anyway
    document = read_document(options.file)
    root = trust_root(options.root)
    try:
        verified = verify(
            document,
            at=_time(options.at, document),
            root=root,
            pcrs=registers(options.pcr, options.measurements),
            nonce=octets(options.nonce, "--nonce"),
            user_data=octets(options.user_data, "--user-data"),
            public_key=octets(options.public_key, "--public-key"),
            age_max=_age(options.age_max_s),
        )
    except DocumentError as error:
        if options.json:
            print_json({"verified": False, "root": root.name, "step": error.step.value, "error": str(error)})
        else:
            print(f"REFUSED  {error}")
            _hint(error, document, root)
        return 1
    if options.json:
        at = verified.verified_at.isoformat()
        print_json({"verified": True, "root": verified.root, "at": at, "document": document_json(verified)})
    else:
        print(f"VERIFIED  under the root {verified.root} ({root.fingerprint})")
        print(document_text(verified))
    return 0


def _time(text: str, document: bytes) -> datetime:
    if text == "now":
        return datetime.now(UTC)
    if text == "issued":
        return parse_document(document).time
    try:
        if re.fullmatch(r"\d{1,15}", text):
            number = int(text)
            return EPOCH + timedelta(milliseconds=number if number >= MILLISECONDS_FROM else 1000 * number)
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--at {text!r} is no time: {error}") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _age(seconds: float | None) -> timedelta | None:
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise UsageError(f"--age-max-s {seconds} is no age: {error}") from error


def _hint(error: DocumentError, document: bytes, root: TrustRoot) -> None:
    """If another root would have vouched for it, or another time, say so."""
    if error.step is not Step.CERTIFICATES:
        return
    claims = parse_document(document)
    if claims.cabundle[0] == root.certificate:
        print("it may have been valid when it was made: try --at issued", file=sys.stderr)
        return
    try:
        test = read_test_root()
    except (InputError, HostError):
        return
    if claims.cabundle[0] == test.der:
        print(f"it was made under our own test root: trust that by --root {TEST_ROOT}", file=sys.stderr)
