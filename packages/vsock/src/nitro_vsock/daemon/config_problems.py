"""What pydantic found wrong with a configuration, in the words of people who write configurations."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from nitro_vsock.daemon.config import DaemonConfig, VmConfig

Location = Sequence[int | str]
"""Where a value is: keys, and positions in lists."""


def dotted(location: Location) -> str:
    """A location as a file has it: ``vms.0.socket``."""
    return ".".join(map(str, location))


def problems(error: ValidationError, name: Callable[[Location], str] = dotted) -> str:
    """Everything that pydantic found, in one line: where and what.

    Args:
        error: Raised for a `DaemonConfig` or an `Allowlist`.
        name: What the user calls the place of a value.
    """
    return "; ".join(
        ": ".join(filter(None, (name(found["loc"]), _explained(found, _keys(error.title, found["loc"])))))
        for found in error.errors()
    )


def _explained(found: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What is wrong with one value.

    Args:
        found: What pydantic says.
        keys: The keys that there could be in its place.
    """
    context = found.get("ctx", {})
    match found["type"]:
        case "extra_forbidden":
            likely = difflib.get_close_matches(str(found["loc"][-1]), keys, n=1) or keys
            return "there is no such key" + (f", but {', '.join(likely)}" if likely else "")
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "float_parsing" | "float_type":
            return "must be a number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "greater_than":
            return f"must be greater than {context['gt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "less_than":
            return f"must be at most {context['lt'] - 1}"
        case "tuple_type" | "frozen_set_type" | "list_type":
            return "must be a list"
        case "model_type":
            return "must be a mapping"
        case "path_type" | "string_type":
            return "must be a text"
        case "missing":
            return "is missing"
        case _:
            message: str = found["msg"]
            return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _keys(model: str, location: Location) -> Sequence[str]:
    """The keys that there could be at a place of the model; empty where the place itself makes that plain."""
    match model, *location:
        case [DaemonConfig.__name__, _]:
            return list(DaemonConfig.model_fields)
        case [DaemonConfig.__name__, "vms", int(), _]:
            return list(VmConfig.model_fields)
        case _:
            return ()
