"""Reading small files of settings: bytes with a bound, and TOML, JSON or YAML by the file's name."""

import json
import sys
import tomllib
from pathlib import Path

from nitro_nsm.errors import HostError, InputError

FILE_BYTES_MAX = 1 << 20
"""The largest of our inputs, the description of an image, has some kilobytes."""


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


def read_settings(name: str) -> dict[str, object]:
    """The fields of a file: JSON or YAML if its name ends so, otherwise TOML.

    Raises:
        HostError: It cannot be read, or it is YAML and no library for that is installed.
        InputError: It is malformed, or has no fields at its outermost level.
    """
    data = read_file(name)
    kind = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(Path(name).suffix, "TOML")
    try:
        match kind:
            case "JSON":
                fields: object = json.loads(data)
            case "YAML":
                fields = _yaml(data)
            case _:
                fields = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is not {kind}: {error}", hint="files are JSON, YAML or TOML by their names' endings"
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{name} has no fields", hint="write a field and its value on each line")
    return fields


def _yaml(data: bytes) -> object:
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise HostError("reading YAML needs PyYAML", hint="pip install 'nitro-nsm[yaml]'") from None
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
