"""Configuration and allow-list files (YAML), and the value of ``--vm``, read into plain values."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from nitro_vsock.daemon.config_problems import problems
from nitro_vsock.errors import UsageError, VsockError
from nitro_vsock.host.allowlist import Allowlist

FILE_BYTES_MAX = 16 << 20
"""Larger files are refused unread, because parsing YAML takes many times as much memory."""


class ConfigFileError(VsockError):
    """A configuration file or allow-list cannot be used. The message names the file and the key."""


def _underscored(mapping: Mapping[object, object]) -> dict[str, object]:
    return {str(key).replace("-", "_"): value for key, value in mapping.items()}


def parse_vm(text: str) -> dict[str, object]:
    """Read the value of ``--vm``: ``key=value`` pairs with commas between, whatever the keys are.

    Raises:
        UsageError: A part is not a pair, or a key comes twice.
    """
    found: dict[str, object] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        name = key.replace("-", "_")
        if not separator:
            raise UsageError(f"--vm: {part!r} is not key=value")
        if name in {"publish", "proxy"}:
            found[name] = (*found.get(name, ()), value)  # type: ignore[misc]
        elif name in found:
            raise UsageError(f"--vm: {name} is given twice")
        else:
            found[name] = value
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A loader that refuses a key that comes twice, as YAML does (1.2 §3.2.1.1) and PyYAML does not."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Look at the keys of a mapping, before those of others are merged into it."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(name)
        return node


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML file's mapping, with underscores in its keys.

    Raises:
        ConfigFileError: It cannot be read, or holds something else.
    """
    try:
        if not path.is_file() and path.exists():
            raise ConfigFileError(f"{path}: it is not a regular file")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigFileError(f"{path}: it has more than {FILE_BYTES_MAX} bytes")
        content = yaml.load(data, _Loader)  # noqa: S506 (a safe one)
    except OSError as error:
        raise ConfigFileError(f"{path}: cannot read it: {error.strerror}") from error
    except (
        *(yaml.YAMLError, RecursionError, ValueError),
        # PyYAML raises these for tags whose values do not fit them.
        *(LookupError, AttributeError, TypeError),
    ) as error:
        raise ConfigFileError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigFileError(f"{path}: there is no mapping at its top")
    return _underscored(content)


def read_config(path: Path) -> dict[str, object]:
    """The keys of a ``--config`` file. Only its shape is checked.

    Raises:
        ConfigFileError: It cannot be read, or its ``vms`` is not a list of mappings.
    """
    content = read_yaml(path)
    vms = content.get("vms")
    if not isinstance(vms, list) or not all(isinstance(vm, dict) for vm in vms):
        raise ConfigFileError(f"{path}: needs a list 'vms' with one mapping for each guest")
    return {**content, "vms": [_underscored(vm) for vm in vms]}


def read_allowlist(path: Path) -> Allowlist:
    """The allow-list of vsock-proxy in a file.

    Raises:
        ConfigFileError: It cannot be read, or holds something else.
    """
    try:
        return Allowlist.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigFileError(f"{path}: {problems(error)}") from error
