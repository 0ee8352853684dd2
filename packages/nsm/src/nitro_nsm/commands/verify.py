"""``nsm verify``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import re
import sys
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_contents, add_json, add_root
from nitro_nsm.errors import DocumentError, HostError, InputError, Step, UsageError

if TYPE_CHECKING:
    from nitro_nsm.pki.trust import TrustRoot
    from nitro_nsm.policy import Policy

SUMMARY = "check that an attestation document is genuine and says what it should"
EXAMPLES = (
    "nsm verify --measurements app.json --forbid-debug --max-age 300 document.cose",
    "nsm verify --root test --policy policy.yaml --nonce 00ff document.cose",
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
    policy = parser.add_argument_group("which enclaves to believe")
    policy.add_argument(
        "--policy", metavar="FILE", help="JSON, YAML or TOML with the fields of Policy; options override it"
    )
    policy.add_argument(
        "--measurements",
        action="append",
        metavar="FILE",
        help="an image that may have made it, as `eif describe --json` or nitro-cli prints it; repeat for "
        "more, of which one must fit; - is standard input",
    )
    policy.add_argument(
        *("--pcr", "--require-pcr"),
        dest="pcr",
        action="append",
        metavar="N[=HEX]",
        help="a register that must have this value or, without one, must be there and not zero; repeat for "
        "more",
    )
    policy.add_argument(
        "--signer",
        action="append",
        metavar="FILE",
        help="a certificate (DER or PEM) of who may have signed the image, which PCR8 must measure; repeat "
        "for more",
    )
    policy.add_argument(
        "--forbid-debug",
        action="store_true",
        default=None,
        help="refuse debug mode, where PCR0, PCR1 and PCR2 are zero",
    )
    policy.add_argument(
        "--max-age", type=float, dest="max_age_s", metavar="SECONDS", help="made at most so long before --at"
    )
    policy.add_argument(
        "--max-skew",
        type=float,
        dest="max_skew_s",
        metavar="SECONDS",
        help="how far after --at it may have been made; default: 60",
    )
    policy.add_argument(
        "--not-before-leaf",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="refuse a document that was made before its own certificate; default: yes",
    )
    policy.add_argument(
        "--allow-unknown",
        action="store_true",
        default=None,
        help="accept fields that this version does not know",
    )
    add_contents(parser.add_argument_group("what the document must say"))
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Say whether the document verifies."""
    from nitro_nsm.commands.inputs import octets, read_document, trust_root
    from nitro_nsm.commands.report import document_json, document_text, print_json
    from nitro_nsm.verification import verify

    warnings.simplefilter("ignore")  # the parser warns about certificates that we refuse anyway
    policy = _policy(options)
    document = read_document(options.file)
    root = trust_root(options.root)
    try:
        verified = verify(
            document,
            at=_time(options.at, document),
            root=root,
            policy=policy,
            nonce=octets(options.nonce, "--nonce"),
            user_data=octets(options.user_data, "--user-data"),
            public_key=octets(options.public_key, "--public-key"),
        )
    except DocumentError as error:
        hint = error.hint or _hint(error, document, root)
        if options.json:
            said = {"verified": False, "root": root.name, "step": error.step.value, "error": str(error)}
            print_json(said | ({"hint": hint} if hint else {}))
        else:
            print(f"REFUSED  {error}")
            if hint:
                print(f"  hint: {hint}", file=sys.stderr)
        return 1
    if options.json:
        at = verified.verified_at.isoformat()
        print_json(
            {
                "verified": True,
                "root": verified.root,
                "at": at,
                "enclave_named": policy.names_enclave,
                "document": document_json(verified),
            }
        )
    else:
        print(f"VERIFIED  under the root {verified.root} ({root.fingerprint})")
        print(document_text(verified))
    if not policy.names_enclave:
        print(
            "nsm: warning: nothing was expected of image, registers or signer: any enclave under this root "
            "may have made the document",
            file=sys.stderr,
        )
        print("  hint: give --measurements, --pcr, --signer or --policy", file=sys.stderr)
    return 0


def _policy(options: argparse.Namespace) -> "Policy":
    """The policy of the file, with what the options change.

    Raises:
        UsageError: An option is malformed.
        InputError: A file is.
        HostError: A file cannot be read.
    """
    from pydantic import ValidationError

    from nitro_nsm.commands.inputs import image, one_register
    from nitro_nsm.files import read_file
    from nitro_nsm.policy import Policy
    from nitro_nsm.policy_file import complaints, policy_fields

    fields = {} if options.policy is None else policy_fields(options.policy)
    if options.measurements is not None:
        fields["measurements"] = [image(name) for name in options.measurements]
    if options.signer is not None:
        fields["signers"] = [read_file(name) for name in options.signer]
    if options.pcr is not None:
        found = [one_register(text) for text in options.pcr]
        values: dict[int, bytes] = {}
        for index, value in found:
            if value is not None and values.setdefault(index, value) != value:
                raise UsageError(
                    f"--pcr gives PCR{index} two values",
                    hint="to allow several images, give each as a file by --measurements",
                )
        fields["pcrs"] = values
        fields["required_pcrs"] = frozenset(index for index, value in found if value is None)
    for name in ("forbid_debug", "max_age_s", "max_skew_s", "not_before_leaf", "allow_unknown"):
        if (given := getattr(options, name)) is not None:
            fields[name] = given
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        raise UsageError(complaints(error), hint="nsm verify --help") from error


def _time(text: str, document: bytes) -> datetime:
    from nitro_nsm.document import EPOCH
    from nitro_nsm.verification import parse_document

    if text == "now":
        return datetime.now(UTC)
    if text == "issued":
        return parse_document(document, allow_unknown=True).time
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


def _hint(error: DocumentError, document: bytes, root: "TrustRoot") -> str:
    """What would have vouched for the document: another root, or another time."""
    from nitro_nsm.pki.store import TEST_ROOT, read_test_root
    from nitro_nsm.verification import parse_document

    if error.step is not Step.CERTIFICATES:
        return ""
    claims = parse_document(document, allow_unknown=True)
    if claims.cabundle[0] == root.certificate:
        return "it may have been valid when it was made: try --at issued"
    try:
        test = read_test_root()
    except (InputError, HostError):
        return ""
    if claims.cabundle[0] == test.der:
        return f"it was made under our own test root: trust that by --root {TEST_ROOT}"
    return ""
