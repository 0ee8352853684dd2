"""What several commands take from their arguments: documents, bytes, registers, roots and enclaves."""

import argparse
import base64
import binascii
import json
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from nitro_nsm.config import NsmConfig
from nitro_nsm.errors import HostError, InputError, UsageError
from nitro_nsm.pcrs import PCR_BYTES, PCR_COUNT
from nitro_nsm.pki.authority import Root
from nitro_nsm.pki.store import TEST_ROOT, ensure_test_root, read_test_root
from nitro_nsm.pki.trust import TrustRoot, aws_root

FILE_BYTES_MAX = 1 << 20
"""The largest of our inputs, the description of an image, has some kilobytes."""
IDENTITY_OPTIONS = ("role_arn", "instance_id", "enclave_id", "region", "debug_mode", "payload_map")


def read_file(name: str) -> bytes:
    """The contents of a file, or of standard input for `-`.

    Raises:
        HostError: It cannot be read.
        InputError: It is longer than `FILE_BYTES_MAX`.
    """
    try:
        if name == "-":
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise HostError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="give a file that is there and may be read, or - for standard input",
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise InputError(f"{name} is longer than anything that belongs there ({FILE_BYTES_MAX} bytes)")
    return data


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


def registers(pcr: Iterable[str], measurements: str | None) -> dict[int, bytes]:
    """The registers of `--pcr` and `--measurements`; of both, `--pcr` counts.

    Args:
        pcr: Registers as `N=HEX`; `PCR` before the number and `0x` before the value are allowed.
        measurements: A file, or `None`.

    Raises:
        UsageError: A register is malformed.
        InputError: The file has no measurements.
        HostError: The file cannot be read.
    """
    found = {} if measurements is None else _measured(measurements)
    for option in pcr:
        found |= [one_register(option)]
    return found


def one_register(text: str) -> tuple[int, bytes]:
    """The register and the value that `N=HEX` means.

    Raises:
        UsageError: It is malformed.
    """
    match = re.fullmatch(r"(?i:PCR)?(\d{1,2})=(?:0x)?([0-9A-Fa-f]*)", text)
    if match is None or int(match[1]) >= PCR_COUNT or len(match[2]) != 2 * PCR_BYTES:
        raise UsageError(
            f"--pcr {text!r} is not a register and its value",
            hint=f"write N=HEX: a register of 0 to {PCR_COUNT - 1}, and {PCR_BYTES} bytes in hexadecimal",
        )
    return int(match[1]), bytes.fromhex(match[2])


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
    fields = {} if options.config is None else _configured(options.config)
    fields |= {name: value for name in IDENTITY_OPTIONS if (value := getattr(options, name)) is not None}
    if options.signing_certificate is not None:
        fields["signing_certificate"] = read_file(options.signing_certificate)
    if pcrs := registers(options.pcr, options.measurements):
        fields["pcrs"] = pcrs
    try:
        return NsmConfig.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        places = (f"{'.'.join(map(str, item['loc'])) or 'the enclave'}: {item['msg']}" for item in wrong)
        raise UsageError("; ".join(places)) from error


def _measured(name: str) -> dict[int, bytes]:
    try:
        data = json.loads(read_file(name))
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    if isinstance(data, dict):
        data = data.get("Measurements", data)
    found = {}
    for key, value in data.items() if isinstance(data, dict) else ():
        if (match := re.fullmatch(r"(?i:PCR)(\d{1,2})", key)) is None:
            continue
        if not isinstance(value, str) or not re.fullmatch(rf"(?:0x)?[0-9A-Fa-f]{{{2 * PCR_BYTES}}}", value):
            raise InputError(f"{name}: {key} is not {PCR_BYTES} bytes in hexadecimal")
        found[int(match[1])] = bytes.fromhex(value.removeprefix("0x"))
    if not found:
        raise InputError(f"{name} has no measurements", hint="give what `eif describe --json` prints")
    return found


def _configured(name: str) -> dict[str, object]:
    data = read_file(name)
    try:
        fields: object = json.loads(data) if name.endswith(".json") else tomllib.loads(data.decode())
    except ValueError as error:
        raise InputError(f"{name} is neither TOML nor, by its name, JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{name} has no fields")
    return fields
