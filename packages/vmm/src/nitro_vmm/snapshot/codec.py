"""Saved states as bytes: named tuples to CBOR (RFC 8949) and back.

The types of the fields say what may come; everything else is refused, and so nothing is ever made but the
classes that the caller names and those of their fields. A named tuple is a map of its fields by name, all of
them, and another tuple an array. Numbers, flags, text, bytes and `None` are themselves.
"""

import io
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import cbor2

from nitro_vmm.errors import StateError, UsageError
from nitro_vsock import VsockError

T = TypeVar("T")

PLAIN: Final = (int, bool, str, bytes, type(None))
ELEMENTS_MAX: Final = 1 << 20
"""How long an array may be: a machine has one number for each run of its pages."""


def encode(value: object) -> bytes:
    """A named tuple of plain values as bytes; the same value always gives the same bytes.

    Raises:
        StateError: `decode` would refuse it.
        VsockError: The same, of a state of nitro-vsock's.
    """
    return cbor2.dumps(_plain(value), canonical=True)


def decode(data: bytes, kind: type[T], *, extended: Mapping[type, type] | None = None) -> T:
    """What `encode` made.

    Args:
        data: The bytes, which may be anybody's.
        kind: The class of the value.
        extended: What stands for a class that others extend, by that class.

    Raises:
        StateError: They are not such a value.
    """
    return made(parsed(data), kind, extended=extended)


def parsed(data: bytes) -> object:
    """The plain values in bytes that may be anybody's, for `made`.

    Raises:
        StateError: They are not CBOR.
    """
    stream = io.BytesIO(data)
    try:
        plain: object = cbor2.CBORDecoder(stream).decode()
    except Exception as error:  # cbor2 lets errors of many kinds out
        raise StateError(f"the saved state is damaged: {type(error).__name__}") from error
    if stream.tell() != len(data):
        raise StateError("the saved state is damaged: something follows it")
    return plain


def made(plain: object, kind: type[T], *, extended: Mapping[type, type] | None = None) -> T:
    """A named tuple of plain values; see `decode`.

    Raises:
        StateError: They are not its fields.
    """
    try:
        value = _made(plain, kind, extended or {}, kind.__name__)
    except (UsageError, VsockError) as error:
        raise StateError(f"the saved state cannot be: {error}") from error
    assert isinstance(value, kind)  # noqa: S101 - `_made` has seen to it
    return value


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        kind: Any = type(value)
        if _is_named(kind):
            _check(value)
            return {name: _plain(element) for name, element in zip(kind._fields, value, strict=True)}
        return [_plain(element) for element in value]
    assert type(value) in PLAIN, f"{type(value)} cannot be saved"  # noqa: S101 - a mistake of ours
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _made(plain: object, kind: Any, extended: Mapping[type, type], where: str) -> object:  # noqa: ANN401
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _made_of_one(plain, get_args(kind), extended, where)
    if origin is tuple:
        return _made_tuple(plain, get_args(kind), extended, where)
    kind = extended.get(kind, kind)
    if _is_named(kind):
        return _made_named(plain, kind, extended, where)
    if kind not in PLAIN:
        raise TypeError(f"{kind} cannot be saved")  # a mistake of ours
    if type(plain) is not kind:
        raise StateError(f"the saved {where} is a {type(plain).__name__}, not {kind.__name__}")
    return plain


def _check(state: Any) -> None:  # noqa: ANN401 - of any class, and not each has something to check
    if hasattr(state, "check"):
        state.check()


def _is_named(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _made_named(plain: object, kind: Any, extended: Mapping[type, type], where: str) -> object:  # noqa: ANN401
    hints, names = _hints(kind), kind._fields
    if not isinstance(plain, dict) or sorted(plain, key=str) != sorted(names):
        raise StateError(f"the saved {where} does not have the fields of {kind.__name__}")
    value = kind(*(_made(plain[name], hints[name], extended, f"{where}.{name}") for name in names))
    _check(value)
    return value


def _made_of_one(plain: object, kinds: tuple[Any, ...], extended: Mapping[type, type], where: str) -> object:
    if plain is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) != 1:
        raise TypeError(f"{where} can be of several kinds")  # a mistake of ours
    return _made(plain, others[0], extended, where)


def _made_tuple(plain: object, kinds: tuple[Any, ...], extended: Mapping[type, type], where: str) -> object:
    if not isinstance(plain, list) or len(plain) > ELEMENTS_MAX:
        raise StateError(f"the saved {where} is no list of a possible length")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(plain)
    if len(plain) != len(kinds):
        raise StateError(f"the saved {where} has {len(plain)} elements, not {len(kinds)}")
    return tuple(_made(one, kind, extended, where) for one, kind in zip(plain, kinds, strict=True))
