"""``nsm verify``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import re
import sys
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_contents, add_json, add_measurements, add_pcr, add_root
from nitro_nsm.errors import DocumentError, HostError, InputError, Step, UsageError

if TYPE_CHECKING:
    from nitro_nsm.pki.trust import TrustRoot

SUMMARY = "check that an attestation document is genuine and says what it should"
EXAMPLES = (
    "nsm verify document.cose",
    "nsm verify --root test --measurements hello.json --nonce 00ff document.cose",
    "nsm verify --at issued old-document.cose",
)
MILLISECONDS_FROM = 10**11
"""From here on a number means milliseconds, as in documents (1973). As seconds it would be the year 5138."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the document, whom to trust, and what it must say."""
    parser.add_argument(
        "file", metavar="FILE", help="the document: bytes, Base64 or hexadecimal; - is standard input"
    )
    add_root(parser)
    parser.add_argument(
        "--at",
        default="now",
        metavar="TIME",
        help="when its certificates must be valid: now (default), issued (when it says that it was made), "
        "2026-08-03T19:36:15Z, or seconds or milliseconds since 1970",
    )
    expected = parser.add_argument_group("what the document must say")
    add_pcr(expected, "a register and its value; repeat for more")
    add_measurements(expected)
    add_contents(expected)
    expected.add_argument(
        "--age-max-s", type=float, metavar="SECONDS", help="made at most so long before --at"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Say whether the document verifies."""
    from nitro_nsm.commands.inputs import octets, read_document, registers, trust_root
    from nitro_nsm.commands.report import document_json, document_text, print_json
    from nitro_nsm.verification import verify

    warnings.simplefilter("ignore")  # the parser warns about certificates that we refuse anyway
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
    from nitro_nsm.document import EPOCH
    from nitro_nsm.verification import parse_document

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
        raise UsageError(
            f"--at {text!r} is not a time: {error}", hint="now, issued, or for example 2026-08-03T19:36:15Z"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _age(seconds: float | None) -> timedelta | None:
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise UsageError(f"--age-max-s {seconds} is not an age: {error}") from error


def _hint(error: DocumentError, document: bytes, root: "TrustRoot") -> None:
    """Say so if another root would have vouched for the document, or another time."""
    from nitro_nsm.pki.store import TEST_ROOT, read_test_root
    from nitro_nsm.verification import parse_document

    if error.step is not Step.CERTIFICATES:
        return
    claims = parse_document(document)
    if claims.cabundle[0] == root.certificate:
        print("  hint: it may have been valid when it was made: try --at issued", file=sys.stderr)
        return
    try:
        test = read_test_root()
    except (InputError, HostError):
        return
    if claims.cabundle[0] == test.der:
        print(
            f"  hint: it was made under our own test root: trust that by --root {TEST_ROOT}", file=sys.stderr
        )
