"""``nsm pki``."""

# ruff: noqa: PLC0415 - what is slow to load is imported when the command runs
import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from nitro_nsm.commands.options import add_json
from nitro_nsm.errors import UsageError

if TYPE_CHECKING:
    from nitro_nsm.pki.authority import Root

SUMMARY = "show, export or replace the test root"
EXAMPLES = ("nsm pki show", "nsm pki export > test-root.pem")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to do."""
    parser.add_argument(
        "action",
        choices=["show", "export", "rotate"],
        help="show: where it is, its fingerprint, how to trust it; export: its certificate; both make a root "
        "if there is none; rotate: replace it, so that documents of the old one no longer verify",
    )
    parser.add_argument("--der", action="store_true", help="export DER instead of PEM")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show, export or replace the test root."""
    if options.der and options.action != "export":
        raise UsageError(f"--der is for export, not for {options.action}", hint="nsm pki export --der")
    from cryptography.hazmat.primitives.serialization import Encoding

    from nitro_nsm.commands.report import print_json
    from nitro_nsm.pki.store import ensure_test_root, root_path, rotate_test_root

    there_already = False
    match options.action:
        case "show":
            with suppress(OSError):  # which making it will report
                there_already = root_path().exists()
            _show(ensure_test_root(), made=not there_already, as_json=options.json)
        case "rotate":
            _show(rotate_test_root(), made=True, as_json=options.json)
        case "export":
            certificate = ensure_test_root().certificate
            if options.json:
                print_json({"pem": certificate.public_bytes(Encoding.PEM).decode()})
            else:
                sys.stdout.buffer.write(
                    certificate.public_bytes(Encoding.DER if options.der else Encoding.PEM)
                )
    return 0


def _show(root: "Root", *, made: bool, as_json: bool) -> None:
    from nitro_nsm.commands.report import certificate_json, print_json
    from nitro_nsm.pki.store import root_path

    shown = certificate_json(root.der)
    if as_json:
        print_json({"path": str(root_path()), "made": made, **shown})
        return
    print(f"path    {root_path()}" + (" (made just now)" if made else ""))
    print(f"sha256  {shown['sha256']}")
    print(f"name    {shown['subject']}")
    print(f"valid   {shown['not_before']} to {shown['not_after']}")
    print("trust   here: nsm verify DOCUMENT --root test")
    print("        elsewhere: nsm pki export > test-root.pem, and nsm verify DOCUMENT --root test-root.pem")
    print("        the file at path holds the private key, too: who has it can sign any document")
