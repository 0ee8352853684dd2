"""Checking a request against AWS's own description of the KMS API, which botocore brings along.

moto takes what it gets and fails somewhere inside if that is of the wrong kind, so nothing reaches it that
the description does not allow. Members that are unknown are dropped, as AWS ignores them.
"""

import base64
import binascii
from functools import cache
from typing import TYPE_CHECKING

from nitro_nsm.kms.errors import KmsError

if TYPE_CHECKING:
    from botocore.model import ServiceModel, Shape

INTEGER_MAX = (1 << 63) - 1


@cache
def service() -> "ServiceModel":
    """The description of the KMS API."""
    from botocore.loaders import Loader  # noqa: PLC0415 - takes 100 ms, and the extra
    from botocore.model import ServiceModel  # noqa: PLC0415

    return ServiceModel(Loader().load_service_model("kms", "service-2"))


def checked(operation: str, parameters: object) -> dict[str, object]:
    """The parameters of a request that the API knows.

    Args:
        operation: Such as `Decrypt`.
        parameters: The body, decoded from JSON.

    Raises:
        KmsError: The operation is not known (UnknownOperationException), or a parameter is missing, of the
        wrong
            kind or outside of its bounds (SerializationException, ValidationException).
    """
    if operation not in service().operation_names:
        raise KmsError("UnknownOperationException", f"{operation} is not an operation of KMS")
    found = _checked(service().operation_model(operation).input_shape, parameters, "")
    if not isinstance(found, dict):
        raise serialization("the request is not a map")
    return found


def serialization(why: str) -> KmsError:
    """The error about a request that is not even of the right form."""
    return KmsError("SerializationException", why)


def _checked(shape: "Shape", value: object, place: str) -> object:
    match shape.type_name, value:
        case "structure", dict(members):
            for name in shape.required_members:
                if members.get(name) is None:
                    raise _invalid(f"{place}{name} is missing")
            return {
                name: _checked(member, members[name], f"{place}{name}.")
                for name, member in shape.members.items()
                if members.get(name) is not None
            }
        case "list", list(elements):
            _check_bounds(shape, len(elements), place)
            return [_checked(shape.member, element, place) for element in elements]
        case "map", dict(entries):
            return {
                str(_checked(shape.key, key, place)): _checked(shape.value, entry, place)
                for key, entry in entries.items()
            }
        case "string", str(text):
            _check_bounds(shape, len(text), place)
            if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
                raise serialization(f"{place.rstrip('.')} is not Unicode")  # JSON can spell half a character
            if shape.enum and text not in shape.enum:
                raise _invalid(f"{place.rstrip('.')} must be one of {', '.join(shape.enum)}")
            return text
        case "blob", str(text):
            try:
                data = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise serialization(f"{place.rstrip('.')} is not Base64") from None
            _check_bounds(shape, len(data), place)
            return text
        case "integer" | "long", int(number) if not isinstance(number, bool):
            if abs(number) > INTEGER_MAX:
                raise serialization(f"{place.rstrip('.')} is too large")
            _check_bounds(shape, number, place)
            return number
        case "boolean", bool(truth):
            return truth
        case "timestamp", int() | float() if not isinstance(value, bool):
            return value
    raise serialization(f"{place.rstrip('.') or 'the request'} is not a {shape.type_name}")


def _check_bounds(shape: "Shape", size: int, place: str) -> None:
    least, most = shape.metadata.get("min", size), shape.metadata.get("max", size)
    if not least <= size <= most:
        raise _invalid(f"{place.rstrip('.')} must be within {least} and {most}, and is {size}")


def _invalid(why: str) -> KmsError:
    return KmsError("ValidationException", f"1 validation error detected: {why}")
