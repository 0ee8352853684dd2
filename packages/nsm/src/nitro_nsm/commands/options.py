"""The options that several commands have in common."""

import argparse

CONTENTS = ("nonce", "user-data", "public-key")


def add_contents(group: argparse._ArgumentGroup) -> None:
    """Add what the enclave itself puts into a document."""
    for name in CONTENTS:
        group.add_argument(f"--{name}", metavar="HEX|@FILE", help=f"the {name.replace('-', ' ')}")


def add_pcr(group: argparse._ArgumentGroup, text: str) -> None:
    """Add ``--pcr``."""
    group.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help=text)


def add_measurements(group: argparse._ArgumentGroup) -> None:
    """Add ``--measurements``."""
    group.add_argument(
        "--measurements",
        metavar="FILE",
        help="registers from the JSON of `eif describe --json` or nitro-cli; - is standard input",
    )


def add_json(group: argparse._ActionsContainer, text: str = "print JSON") -> None:
    """Add ``--json``."""
    group.add_argument("--json", action="store_true", help=text)


def add_root(group: argparse._ActionsContainer) -> None:
    """Add ``--root``: the root that a verifier trusts."""
    group.add_argument(
        "--root",
        default="aws",
        metavar="aws|test|FILE",
        help="whom to trust: AWS's hardware, our own test root, or a certificate (DER or PEM); default: aws",
    )


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add what makes one enclave's module different from another's."""
    identity = parser.add_argument_group("the enclave")
    identity.add_argument(
        "--config", metavar="FILE", help="TOML or JSON with the fields of NsmConfig; options override it"
    )
    add_pcr(identity, "a register of 0 to 15 and its value; repeat for more")
    add_measurements(identity)
    identity.add_argument("--role-arn", metavar="ARN", help="the parent's IAM role, measured into PCR3")
    identity.add_argument("--instance-id", metavar="ID", help="the parent instance, measured into PCR4")
    identity.add_argument(
        "--enclave-id", metavar="HEX", help="16 digits; default: from time and chance, as on AWS"
    )
    identity.add_argument(
        "--signing-certificate", metavar="FILE", help="who signed the image, measured into PCR8"
    )
    identity.add_argument("--region", help="default: us-east-1")
    identity.add_argument(
        "--debug-mode",
        action="store_true",
        default=None,
        help="PCR0, PCR1, PCR2 and PCR8 are zero, as on AWS",
    )
    identity.add_argument(
        "--payload-map",
        choices=["indefinite", "definite"],
        help="as hardware since 2025 (default), or before",
    )
    identity.add_argument(
        "--root-key",
        metavar="FILE",
        help="sign under this root (PEM: key and certificate) instead of the test root",
    )
