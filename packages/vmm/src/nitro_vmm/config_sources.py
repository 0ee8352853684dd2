"""Where an enclave's configuration comes from: defaults, a file, QEMU's options, the environment, and flags.

Later sources win. A file is JSON, TOML or YAML with the names of `EnclaveConfig`'s fields, or a configuration
of ``nitro-cli run-enclave --config``. Messages name the source that is at fault, in its own spelling.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nitro_vmm.config import EnclaveConfig, KmsSettings
from nitro_vmm.defaults import ENVIRONMENT_PREFIX
from nitro_vmm.errors import UsageError
from nitro_vmm.qemu_options import QemuOptions

FILE_BYTES_MAX: Final = 1 << 20

NITRO_CLI_KEYS: Final = {"enclave_cid": "cid", "enclave_name": "name", "cpu_count": "processors"}
"""What nitro-cli calls our fields; the others have the same names there, or are below."""

YES_OR_NO: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
"""What a variable says that switches something on or off."""

MESSAGES: Final = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "missing": "must be given",
    "string_unicode": "must be UTF-8",
    "literal_error": "must be one of {expected}",
}
"""What is wrong, by pydantic's names of the errors."""


def load_config(
    flags: Mapping[str, object],
    *,
    spellings: Mapping[str, str] | None = None,
    path: Path | None = None,
    qemu: QemuOptions | None = None,
    environment: Mapping[str, str] = os.environ,
) -> EnclaveConfig:
    """Make a configuration of all its sources.

    Args:
        flags: What was given directly, by field; it wins over the rest.
        spellings: What ``flags`` are called in messages.
        path: The configuration's file, if there is one.
        qemu: What a command line of QEMU's says, if there is one.
        environment: Variables such as ``NITRO_VMM_MEMORY_MIB``; lists have commas in them.

    Raises:
        UsageError: A source cannot be read, or what it says cannot be.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    if path is not None:
        for name, value in read_file(path).items():
            values[name], origins[name] = value, f"{path}: {name}"
    if qemu is not None:
        values |= qemu.values
        origins |= qemu.spellings
    for name, value in _of_environment(environment).items():
        values[name], origins[name] = value, ENVIRONMENT_PREFIX + name.upper()
    for name, value in flags.items():
        values[name], origins[name] = value, (spellings or {}).get(name, name)
    if names_a_file(values.get("kms")):
        origins["kms"] = str(values["kms"])
        values["kms"] = read_table(Path(origins["kms"]))
    try:
        return EnclaveConfig.model_validate(values)
    except ValidationError as error:
        raise explained(error, origins) from None


def read_file(path: Path) -> dict[str, object]:
    """The fields that a file gives.

    Raises:
        UsageError: It cannot be read, or is not a table of names and values.
    """
    return translated(read_table(path))


def names_a_file(kms: object) -> bool:
    """Whether a KMS's settings stand in a file: neither a yes or no, nor ``NAME=VALUE`` pairs."""
    return isinstance(kms, str | Path) and kms != "" and "=" not in str(kms)


def read_table(path: Path) -> dict[str, Any]:
    """The names and values of a file.

    Raises:
        UsageError: It cannot be read, or is not a table of names and values.
    """
    try:
        if not path.is_file():
            raise UsageError(
                f"{path} is not a file that can be read", hint="give the path of a configuration", code="M32"
            )
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise UsageError(f"{path} has more than {FILE_BYTES_MAX} bytes", code="M32")
        parsed = _parse(path.suffix, data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="M32") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: {_one_line(error)}", hint="a configuration is a file of JSON, TOML or YAML", code="M32"
        ) from error
    if not isinstance(parsed, dict) or not all(isinstance(key, str) for key in parsed):
        raise UsageError(
            f"{path} is not a table of names and values", hint="for example: memory_mib: 512", code="M32"
        )
    return parsed


def translated(values: Mapping[str, Any]) -> dict[str, object]:
    """The same with nitro-cli's names replaced by ours.

    Raises:
        UsageError: It says something twice.
    """
    ours: dict[str, object] = {}
    for key, value in values.items():
        name = NITRO_CLI_KEYS.get(key, key)
        if key == "cpu_ids":
            name, value = "processors", len(value) if isinstance(value, list) else value  # noqa: PLW2901
        elif key == "attach_console":
            # nitro-cli attaches to the console of an enclave in debug mode, and sets that mode.
            if value is not True:
                continue
            name = "debug_mode"
            ours.pop(name, None)
        if name in ours:
            raise UsageError(f"{key} and {name} say the same", hint="give one of them")
        if key == "debug_mode" and values.get("attach_console") is True:
            continue
        ours[name] = value
    return ours


def _parse(suffix: str, text: str) -> object:
    # Imported here, because most enclaves have no file.
    match suffix.lower():
        case ".json":
            import json  # noqa: PLC0415

            return json.loads(text)
        case ".toml":
            import tomllib  # noqa: PLC0415

            return tomllib.loads(text)
    import yaml  # noqa: PLC0415

    try:
        return yaml.safe_load(text)  # JSON as well
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _of_environment(environment: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        field = EnclaveConfig.model_fields.get(name)
        if field is None:
            raise UsageError(
                f"there is no setting {variable}", hint=_similar(name, prefix=ENVIRONMENT_PREFIX)
            )
        if field.default == ():
            found[name] = value.split(",")
        elif name == "kms":  # the only field that is yes, no, or something else
            found[name] = YES_OR_NO.get(value.lower(), value)
        else:
            found[name] = value
    return found


def explained(error: ValidationError, origins: Mapping[str, str]) -> UsageError:
    """What is wrong with a configuration, in our words.

    Args:
        error: What pydantic found.
        origins: How the user spelled the fields.
    """
    # A name that is wrong first, because what is missing may be what was meant by it.
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    message = _message(first)
    if not first["loc"]:  # about several fields at once
        message, _, hint = message.partition(": ")
        for name, origin in origins.items():
            message = re.sub(rf"\b{name}\b", lambda _: origin, message)  # noqa: B023 - called at once
        return UsageError(message, hint=hint)
    name = str(first["loc"][0])
    origin = origins.get(name, name)
    model: type[BaseModel] = EnclaveConfig
    depth = 1
    if name == "kms" and len(first["loc"]) > 1:
        model, name, depth = KmsSettings, str(first["loc"][1]), 2
        origin = f"{origin}: {name}"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == depth:
        return UsageError(f"{origin}: there is no such setting", hint=_similar(name, model))
    value = first["input"]
    shown = f" {value}" if isinstance(value, str | int | float | Path) else ""
    return UsageError(f"{origin}{shown}: {message}", hint=_about(name, model))


def _message(details: ErrorDetails) -> str:
    template = MESSAGES.get(details["type"])
    if template is None:
        return details["msg"].removeprefix("Value error, ")
    return template.format(**details.get("ctx", {}))


def _about(name: str, model: type[BaseModel]) -> str:
    field = model.model_fields.get(name)
    return " ".join((field.description or "").split()) if field is not None else "see vmm run --help"


def _similar(name: str, model: type[BaseModel] = EnclaveConfig, *, prefix: str = "") -> str:
    import difflib  # noqa: PLC0415 - only where something is wrong

    names = list(model.model_fields)
    close = difflib.get_close_matches(name, names, n=1)
    if not close:
        return f"there are: {', '.join(names)}"
    return f"did you mean {prefix + close[0].upper() if prefix else close[0]}?"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
