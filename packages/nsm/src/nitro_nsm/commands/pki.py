"""``nsm pki``."""

import argparse
import sys

from cryptography.hazmat.primitives.serialization import Encoding

from nitro_nsm.authority import Root
from nitro_nsm.commands.report import certificate_json, print_json
from nitro_nsm.errors import UsageError
from nitro_nsm.storage import ensure_test_root, read_test_root, root_path, rotate_test_root


def run(options: argparse.Namespace) -> int:
    """Show, export or replace the test root."""
    if options.der and options.action != "export":
        raise UsageError(f"--der is for export, not for {options.action}")
    match options.action:
        case "show":
            _show(read_test_root(), as_json=options.json)
        case "rotate":
            _show(rotate_test_root(), as_json=options.json)
        case "export":
            certificate = ensure_test_root().certificate
            if options.json:
                print_json({"pem": certificate.public_bytes(Encoding.PEM).decode()})
            else:
                sys.stdout.buffer.write(
                    certificate.public_bytes(Encoding.DER if options.der else Encoding.PEM)
                )
    return 0


def _show(root: Root, *, as_json: bool) -> None:
    shown = certificate_json(root.der)
    if as_json:
        print_json({"path": str(root_path()), **shown})
        return
    print(f"path    {root_path()}")
    print(f"sha256  {shown['sha256']}")
    print(f"name    {shown['subject']}")
    print(f"valid   {shown['not_before']} to {shown['not_after']}")
