"""Arguments that several commands share, turned into what the library takes."""

import argparse
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nitro_eif.commands.terminal import story
from nitro_eif.errors import UsageError
from nitro_eif.files import read_file
from nitro_eif.image.metadata import (
    BUILD_TOOL,
    BuildMetadata,
    Metadata,
    build_time,
    custom_metadata,
    kernel_config,
    tool_version,
)
from nitro_eif.image.registers import pcr8

if TYPE_CHECKING:
    from cryptography import x509

    from nitro_eif.signing.keys import Signer


def add_json(parser: argparse.ArgumentParser, shape: str = "") -> None:
    """Add ``--json`` and ``--text``; ``eif`` makes ``options.json`` of them and of where the output goes.

    Args:
        parser: The command's.
        shape: What the help says of the JSON.
    """
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help=f"print JSON{shape}; the default where the output is not a terminal",
    )
    form.add_argument("--text", action="store_true", help="print text, also into a pipe or file")


def add_signing(group: argparse._ArgumentGroup, *, required: bool) -> None:
    """Add the options that name a key and its certificate.

    Args:
        group: The group of the command's help in which they stand.
        required: Whether the command cannot do without them.
    """
    group.add_argument("--signing-certificate", metavar="PEM", required=required, help="certificate file")
    group.add_argument(
        "--private-key",
        metavar="PEM|ARN",
        required=required,
        help="key file (P-256, P-384, P-521) or KMS key ARN",
    )
    group.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="first line is the key's passphrase; default: $EIF_KEY_PASSPHRASE",
    )


@dataclass(frozen=True, slots=True)
class Signing:
    """A key and its certificate."""

    signer: "Signer"
    certificate_pem: bytes
    pcr8: bytes

    def signature(self, pcr0: bytes) -> bytes:
        """The signature section of an image with this PCR0."""
        from nitro_eif.signing.sign import make_signature  # noqa: PLC0415 - cryptography is slow to import

        return make_signature(pcr0, self.signer, self.certificate_pem)


def signing_of(options: argparse.Namespace) -> Signing | None:
    """Load the key and certificate that the arguments name; `None` where they name none.

    Raises:
        UsageError: One is given without the other.
        SigningError: One cannot be used.
        HostError: One cannot be read.
    """
    if not options.signing_certificate and not options.private_key:
        return None
    if not (options.signing_certificate and options.private_key):
        raise UsageError("--signing-certificate and --private-key go together")
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - slow to import

    from nitro_eif.image.signature import load_certificate  # noqa: PLC0415
    from nitro_eif.signing.keys import load_signer  # noqa: PLC0415

    pem = read_file(options.signing_certificate)
    der = load_certificate(pem).public_bytes(Encoding.DER)
    _warn_of_dates(load_certificate(pem), datetime.now(UTC))
    signer = load_signer(options.private_key, passphrase=_passphrase(options))
    return Signing(signer, pem, pcr8(der))


def _warn_of_dates(certificate: "x509.Certificate", now: datetime) -> None:
    """Warn of a certificate with which the image is refused now; another day may be right for it."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        story(f"eif: warning: the signing certificate expired on {end:%Y-%m-%d}: Nitro refuses the image")
    elif now < start:
        story(f"eif: warning: the signing certificate is not valid before {start:%Y-%m-%d %H:%M} UTC")


def metadata_of(
    options: argparse.Namespace,
    *,
    default_name: str,
    default_version: str = "1.0",
    default_kernel: tuple[str, str] | None = None,
    docker_info: object = None,
) -> Metadata:
    """Put the metadata section together.

    Raises:
        UsageError: A time or JSON file is wrong.
        HostError: A file cannot be read.
    """
    system, kernel = default_kernel or ("OS", "kernel")
    if options.kernel_config:
        system, kernel = kernel_config(read_file(options.kernel_config).decode(errors="replace"))
    return Metadata(
        image_name=options.name or default_name,
        image_version=options.version or default_version,
        build=BuildMetadata(
            build_time=build_time(options.build_time),
            build_tool=options.build_tool or BUILD_TOOL,
            build_tool_version=options.build_tool_version or tool_version(),
            operating_system=options.img_os or system,
            kernel_version=options.img_kernel or kernel,
        ),
        docker_info=docker_info,
        custom=custom_metadata(Path(options.metadata)) if options.metadata else None,
    )


def _passphrase(options: argparse.Namespace) -> bytes | None:
    if options.passphrase_file:
        return read_file(options.passphrase_file).partition(b"\n")[0].removesuffix(b"\r")
    value = os.environ.get("EIF_KEY_PASSPHRASE")
    return None if value is None else os.fsencode(value)
