"""The configuration that a command line asks for, with the files that it names."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nitro_vsock.arguments import SINGLE
from nitro_vsock.daemon.config import DaemonConfig
from nitro_vsock.daemon.config_file import ConfigFileError, parse_vm, read_allowlist, read_config
from nitro_vsock.daemon.config_problems import Location, problems
from nitro_vsock.errors import UsageError


def configured(arguments: argparse.Namespace) -> DaemonConfig:
    """All flags and files as one configuration.

    Raises:
        UsageError: The flags contradict each other, or a value is wrong.
        ConfigFileError: The same for a file.
    """
    if arguments.supervisor_fd is not None:
        return DaemonConfig.model_validate_json(sys.stdin.buffer.read())
    single = {name: value for name in SINGLE if (value := getattr(arguments, name)) is not None}
    given = [bool(single) or arguments.fd is not None, bool(arguments.vm), arguments.config is not None]
    if sum(given) != 1:
        raise UsageError("give the flags of one guest, or --vm for each of several, or --config")
    if arguments.fd is not None and "socket" in single:
        raise UsageError("--fd stands for --socket, give one of them")
    content: dict[str, Any] = {}
    if arguments.config is not None:
        content = read_config(arguments.config)
    elif arguments.vm:
        content["vms"] = [parse_vm(text) for text in arguments.vm]
    else:
        content["vms"] = [single]
    if arguments.stats is not None:
        content["stats"] = arguments.stats
    if arguments.allow_uid:
        content["allow_uid"] = arguments.allow_uid
    allowlist = arguments.proxy_allowlist or content.get("proxy_allowlist")
    if isinstance(allowlist, str | Path):
        content["proxy_allowlist"] = read_allowlist(Path(allowlist))
    try:
        found = DaemonConfig.model_validate(content)
    except ValidationError as error:
        if arguments.config is not None:
            raise ConfigFileError(f"{arguments.config}: {problems(error)}") from error
        raise UsageError(problems(error, _flag_of_vm if arguments.vm else _flag)) from error
    without = [vm.guest_cid for vm in found.vms if vm.socket is None]
    if without and arguments.fd is None:
        what = f"guest {without[0]} needs a socket for its front-end"
        if arguments.config is not None:
            raise ConfigFileError(f"{arguments.config}: {what}")
        raise UsageError(what)
    return found


def _flag(location: Location) -> str:
    """What the command line of one guest calls a place in the configuration."""
    names = [str(part) for part in location if isinstance(part, str) and part != "vms"]
    return f"--{names[0].replace('_', '-')}" if names else ""


def _flag_of_vm(location: Location) -> str:
    """What a command line with ``--vm`` calls a place in the configuration."""
    match location:
        case ["vms", int(index), *keys]:
            return " ".join([f"--vm {index + 1}", *(str(key).replace("_", "-") for key in keys[:1])])
    return _flag(location)
