"""What several commands take from their arguments: documents, bytes, registers, roots and enclaves."""

import argparse
import base64
import binascii
import re
from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from nitro_nsm.config import NsmConfig
from nitro_nsm.errors import InputError, UsageError
from nitro_nsm.files import read_file, read_settings
from nitro_nsm.pcrs import PCR_BYTES, PCR_COUNT, ZERO
from nitro_nsm.pki.authority import Root
from nitro_nsm.pki.store import TEST_ROOT, ensure_test_root, read_test_root
from nitro_nsm.pki.trust import TrustRoot, aws_root
from nitro_nsm.policy import Image
from nitro_nsm.policy_file import complaints, measurements

IDENTITY_OPTIONS = ("role_arn", "instance_id", "enclave_id", "region", "debug_mode", "payload_map")


def read_document(name: str) -> bytes:
    """The bytes of a document, whose file may also hold them as hexadecimal or Base64 (also that of URLs).

    Raises:
        HostError: The file cannot be read.
        InputError: It is too long.
    """
    data = read_file(name)
    text = b"".join(data.split())
    if re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", text):
        return bytes.fromhex(text.decode())
    if re.fullmatch(rb"[A-Za-z0-9+/_-]+={0,2}", text):
        try:
            return base64.b64decode(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), altchars=b"-_")
        except binascii.Error:
            return data
    return data


def octets(value: str | None, option: str) -> bytes | None:
    """The bytes that an option names: hexadecimal, or `@FILE`.

    Raises:
        UsageError: It is neither.
        HostError: The file cannot be read.
        InputError: The file is too long.
    """
    if value is None:
        return None
    if value.startswith("@"):
        return read_file(value[1:])
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise UsageError(
            f"{option} {value!r} is not hexadecimal", hint="for the contents of a file write @FILE"
        ) from None


def registers(pcr: Iterable[str], described: str | None) -> dict[int, bytes]:
    """The registers of `--pcr` and `--measurements`; of both, `--pcr` counts.

    Args:
        pcr: Registers as `N=HEX`; `PCR` before the number and `0x` before the value are allowed.
        described: A file with the registers of an image, or `None`.

    Raises:
        UsageError: A register is malformed.
        InputError: The file has no measurements.
        HostError: The file cannot be read.
    """
    found = {} if described is None else image(described)
    for option in pcr:
        index, value = one_register(option)
        if value is None:
            raise UsageError(f"--pcr {option!r} gives no value", hint="write N=HEX")
        found[index] = value
    return found


def one_register(text: str) -> tuple[int, bytes | None]:
    """The register and the value that `N=HEX` means, or the register and `None` for `N`.

    Raises:
        UsageError: It is malformed.
    """
    match = re.fullmatch(r"(?i:PCR)?(\d{1,2})(?:=(?:0[xX])?([0-9A-Fa-f]*))?", text)
    if match is None or int(match[1]) >= PCR_COUNT or len(match[2] or ZERO.hex()) != 2 * PCR_BYTES:
        raise UsageError(
            f"--pcr {text!r} is not a register and its value",
            hint=f"write N=HEX: a register of 0 to {PCR_COUNT - 1}, and {PCR_BYTES} bytes in hexadecimal",
        )
    return int(match[1]), None if match[2] is None else bytes.fromhex(match[2])


def trust_root(name: str) -> TrustRoot:
    """The root that `--root` names.

    Raises:
        InputError: It is not a certificate, or there is no test root yet.
        HostError: The file cannot be read.
    """
    if name == "aws":
        return aws_root()
    if name == TEST_ROOT:
        return read_test_root().trust
    return TrustRoot.load(name, read_file(name))


def signing_root(options: argparse.Namespace) -> Root:
    """The root to sign under: that of `--root-key`, or the test root, which is made now if there is none.

    Raises:
        InputError: It cannot head a chain of certificates.
        HostError: The file can be neither read nor made.
    """
    if options.root_key is None:
        return ensure_test_root()
    return Root.load(options.root_key, read_file(options.root_key))


def enclave(options: argparse.Namespace) -> NsmConfig:
    """The enclave that the options describe.

    Raises:
        UsageError: A value is impossible, or two exclude each other.
        InputError: A file is not what it should be.
        HostError: A file cannot be read.
    """
    fields = {} if options.config is None else read_settings(options.config)
    fields |= {name: value for name in IDENTITY_OPTIONS if (value := getattr(options, name)) is not None}
    if options.signing_certificate is not None:
        fields["signing_certificate"] = read_file(options.signing_certificate)
    if pcrs := registers(options.pcr, options.measurements):
        fields["pcrs"] = pcrs
    try:
        return NsmConfig.model_validate(fields)
    except ValidationError as error:
        raise UsageError(complaints(error), hint="nsm attest --help") from error


def image(name: str) -> dict[int, bytes]:
    """The registers of an image that `eif describe --json` or nitro-cli described in a file.

    Raises:
        InputError: The file has no measurements.
        HostError: It cannot be read.
    """
    said = measurements(name)
    try:
        return TypeAdapter(Image).validate_python(said)
    except ValidationError as error:
        raise InputError(
            f"{name} has no measurements: {complaints(error)}", hint="give what `eif describe --json` prints"
        ) from error
