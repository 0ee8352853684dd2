"""``eif pcr``: the register that a file, certificate, role or instance makes."""

import argparse

from nitro_eif.commands.options import add_json
from nitro_eif.commands.terminal import print_json, table
from nitro_eif.errors import UsageError
from nitro_eif.files import chunks, map_file, read_file
from nitro_eif.image.registers import pcr3, pcr4, pcr8, pcr_of_data

EXAMPLES = (
    "eif pcr --input application.cpio",
    "eif pcr --role-arn arn:aws:iam::123456789012:role/Webserver",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments to its parser."""
    parser.add_argument("--input", metavar="FILE", help="any file: PCR, as PCR0 to PCR2 are made")
    parser.add_argument("--signing-certificate", metavar="PEM", help="certificate: PCR8")
    parser.add_argument("--role-arn", metavar="ARN", help="the parent instance's IAM role: PCR3")
    parser.add_argument("--instance-id", metavar="ID", help="the parent instance: PCR4")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is asked for, as nitro-cli prints it."""
    values = {}
    if options.input:
        with map_file(options.input) as view:
            values["PCR"] = pcr_of_data(chunks(view))
    if options.signing_certificate:
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - slow to import

        from nitro_eif.image.signature import load_certificate  # noqa: PLC0415

        certificate = load_certificate(read_file(options.signing_certificate))
        values["PCR8"] = pcr8(certificate.public_bytes(Encoding.DER))
    if options.role_arn:
        values["PCR3"] = pcr3(options.role_arn)
    if options.instance_id:
        values["PCR4"] = pcr4(options.instance_id)
    if not values:
        raise UsageError("say what to measure: --input, --signing-certificate, --role-arn or --instance-id")
    registers = {name: value.hex() for name, value in values.items()}
    if options.json:
        print_json(registers)
    else:
        print(table(registers.items(), indent=""))
    return 0
