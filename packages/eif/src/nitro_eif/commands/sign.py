"""``eif sign``: sign an image, or sign it anew."""

import argparse

from nitro_eif.commands.options import add_json, add_signing, signing_of
from nitro_eif.commands.terminal import Meter, print_measurements, story
from nitro_eif.errors import UsageError

EXAMPLES = ("eif sign hello.eif --signing-certificate signer.pem --private-key signer.key",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("image", metavar="EIF")
    parser.add_argument("--output", metavar="FILE", help="default: in place")
    add_signing(parser.add_argument_group("signing"), required=True)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Sign in place, or into ``--output``, and print the measurements."""
    from nitro_eif.signing.sign import sign  # noqa: PLC0415 - cryptography is slow to import

    signing = signing_of(options)
    if signing is None:
        raise UsageError("give --signing-certificate and --private-key")
    with Meter("Measuring") as meter:
        measurements = sign(
            options.image, signing.signer, signing.certificate_pem, output=options.output, progress=meter
        )
    story(f"eif: {options.output or options.image} is signed")
    print_measurements(measurements.as_json(), as_json=options.json)
    return 0
