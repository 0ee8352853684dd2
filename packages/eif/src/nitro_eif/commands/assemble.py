"""``eif assemble``: an image from the files that ``eif extract`` wrote."""

import argparse
from pathlib import Path

from nitro_eif.measure import measure
from nitro_eif.parts import assemble
from nitro_eif.reader import Eif
from nitro_eif.terminal import Meter, print_json, story


def run(options: argparse.Namespace) -> int:
    """Assemble and print the measurements."""
    same = assemble(Path(options.directory), Path(options.output))
    with Eif.open(options.output) as eif, Meter("Measuring") as meter:
        measurements = measure(eif, progress=meter)
    story(
        f"eif: {'the image that was extracted' if same else 'another image than the one that was extracted'}"
    )
    print_json({"Measurements": measurements.as_json()})
    return 0
