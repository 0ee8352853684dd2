"""``eif build``: an image from its parts or from an application."""

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from nitro_eif.commands.options import metadata_of, signing_of
from nitro_eif.errors import UsageError
from nitro_eif.format import Architecture
from nitro_eif.measure import measure_contents
from nitro_eif.reader import map_file
from nitro_eif.terminal import Meter, print_json
from nitro_eif.writer import Contents, write_eif


def run(options: argparse.Namespace) -> int:
    """Build the image and print its measurements, as eif_build prints them."""
    if not (options.kernel and options.cmdline is not None and options.ramdisk):
        raise UsageError("give --kernel, --cmdline and at least one --ramdisk")
    signing = signing_of(options)
    metadata = metadata_of(options, default_name=Path(options.kernel).name)
    with ExitStack() as stack:
        contents = Contents(
            kernel=stack.enter_context(map_file(options.kernel)),
            cmdline=os.fsencode(options.cmdline),
            ramdisks=[stack.enter_context(map_file(ramdisk)) for ramdisk in options.ramdisk],
            metadata=metadata.pack(),
            architecture=Architecture(options.arch),
        )
        with Meter("Measuring") as meter:
            measurements = measure_contents(contents, progress=meter)
        if signing is not None:
            contents = replace(contents, signature=signing.signature(measurements.pcr0))
            measurements = replace(measurements, pcr8=signing.pcr8)
        write_eif(contents, options.output)
    if options.json:
        print_json({"Measurements": measurements.as_json()})
    else:
        print(f"Output file: {options.output}")
        print_json(measurements.as_json())
    return 0
