"""``eif assemble``: an image from the files that ``eif extract`` wrote."""

import argparse
from pathlib import Path

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import Meter, print_measurements, story
from nitro_eif.disassembly import assemble
from nitro_eif.image.measure import measure
from nitro_eif.image.reader import Eif

EXAMPLES = ("eif assemble parts --output hello.eif",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--output", metavar="FILE", required=True)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Assemble and print the measurements."""
    same = assemble(Path(options.directory), Path(options.output))
    with Eif.open(options.output) as eif, Meter("Measuring") as meter:
        measurements = measure(eif, progress=meter)
    story(
        f"eif: {'the image that was extracted' if same else 'another image than the one that was extracted'}"
    )
    print_measurements(measurements.as_json(), as_json=options.json)
    return 0
