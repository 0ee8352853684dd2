"""``eif unsign``: take an image's signature away."""

import argparse

from nitro_eif.signature import remove_signature
from nitro_eif.terminal import story


def run(options: argparse.Namespace) -> int:
    """Remove the signature in place, or into ``--output``."""
    remove_signature(options.image, output=options.output)
    story(f"eif: {options.output or options.image} has no signature")
    return 0
