"""``eif unsign``: take an image's signature away."""

import argparse

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import Meter, print_measurements, story
from nitro_eif.image.measure import measure
from nitro_eif.image.reader import Eif

EXAMPLES = ("eif unsign hello.eif",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("image", metavar="EIF")
    parser.add_argument("--output", metavar="FILE", help="default: in place")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Remove the signature in place, or into ``--output``."""
    from nitro_eif.signing.sign import remove_signature  # noqa: PLC0415 - cryptography is slow to import

    output = options.output or options.image
    remove_signature(options.image, output=output)
    story(f"eif: {output} has no signature")
    with Eif.open(output) as eif, Meter("Measuring") as meter:
        measurements = measure(eif, progress=meter)
    print_measurements(measurements.as_json(), as_json=options.json)
    return 0
