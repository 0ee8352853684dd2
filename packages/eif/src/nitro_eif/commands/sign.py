"""``eif sign``: sign an image, or sign it anew."""

import argparse

from nitro_eif.commands.options import signing_of
from nitro_eif.errors import UsageError
from nitro_eif.signature import sign
from nitro_eif.terminal import Meter, print_json, story


def run(options: argparse.Namespace) -> int:
    """Sign in place, or into ``--output``, and print the measurements."""
    signing = signing_of(options)
    if signing is None:
        raise UsageError("give --signing-certificate and --private-key")
    with Meter("Measuring") as meter:
        measurements = sign(
            options.image, signing.signer, signing.certificate_pem, output=options.output, progress=meter
        )
    story(f"eif: {options.output or options.image} is signed")
    print_json({"Measurements": measurements.as_json()})
    return 0
