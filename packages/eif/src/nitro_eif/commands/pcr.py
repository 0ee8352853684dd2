"""``eif pcr``: the register that a file, certificate, role or instance makes."""

import argparse

from nitro_eif.commands.options import read_file
from nitro_eif.digests import CHUNK_BYTES
from nitro_eif.errors import UsageError
from nitro_eif.measure import pcr3, pcr4, pcr8, pcr_of_data
from nitro_eif.reader import map_file
from nitro_eif.terminal import print_json


def run(options: argparse.Namespace) -> int:
    """Print what is asked for, as nitro-cli prints it."""
    values = {}
    if options.input:
        with map_file(options.input) as view:
            pieces = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
            values["PCR"] = pcr_of_data(pieces)
    if options.signing_certificate:
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - slow to import

        from nitro_eif.signature import load_certificate  # noqa: PLC0415

        certificate = load_certificate(read_file(options.signing_certificate))
        values["PCR8"] = pcr8(certificate.public_bytes(Encoding.DER))
    if options.role_arn:
        values["PCR3"] = pcr3(options.role_arn)
    if options.instance_id:
        values["PCR4"] = pcr4(options.instance_id)
    if not values:
        raise UsageError("say what to measure: --input, --signing-certificate, --role-arn or --instance-id")
    print_json({name: value.hex() for name, value in values.items()})
    return 0
