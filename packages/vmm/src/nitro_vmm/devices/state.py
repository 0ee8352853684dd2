"""Saved devices: what a device's state may hold, and the check of it.

Each device has a `NamedTuple` of plain whole numbers, flags, bytes and tuples, which any file format can
carry. (A dataclass does as well, but to make its class takes ten times as long, and every start waits for
that.) It holds what the guest has made of the device and nothing of the host: no clock reading that means
something only until the next boot, no descriptor. `state()` gives it and `restore()` takes it.

A file with such states may be damaged, or made to do harm. So `nitro_vmm.snapshot.codec` calls the method
``check`` of each state that it writes or reads, which raises `StateError` for a value that the device cannot
have. What depends on the machine (how many pins, which features) is checked by `restore` before it changes
anything.

A restored device drives its interrupt line to the level that it had. So restore the interrupt controllers
first: then one that knows the level already does not see an edge that never was.
"""

import reprlib
from collections.abc import Callable

from nitro_vmm.errors import StateError


def require(state: object, name: str, good: bool, wanted: str) -> None:  # noqa: FBT001 - the outcome of a check
    """Refuse a state whose attribute ``name`` is not what is ``wanted``.

    Raises:
        StateError: ``good`` is false. The message names the attribute, and its value in short.
    """
    if not good:
        value = reprlib.repr(getattr(state, name))
        raise StateError(f"{type(state).__name__}.{name} is {value}, not {wanted}")


def is_whole(value: object, most: int, *, least: int = 0) -> bool:
    """Whether a value is a whole number, and no flag, from ``least`` to ``most``."""
    return type(value) is int and least <= value <= most


def is_tuple_of(good: Callable[[object], bool], value: object, most: int, *, least: int = 0) -> bool:
    """Whether a value is a tuple of ``least`` to ``most`` elements that are all good."""
    return isinstance(value, tuple) and least <= len(value) <= most and all(map(good, value))


def require_whole(state: object, **most: int) -> None:
    """Each named attribute has to be a whole number from 0 to the given greatest one.

    Raises:
        StateError: One is something else.
    """
    for name, limit in most.items():
        wanted = f"a whole number from 0 to {limit:#x}"
        require(state, name, is_whole(getattr(state, name), limit), wanted)


def require_flags(state: object, *names: str) -> None:
    """Each named attribute has to be true or false.

    Raises:
        StateError: One is something else.
    """
    for name in names:
        require(state, name, isinstance(getattr(state, name), bool), "true or false")


def require_bytes(state: object, name: str, most: int, *, least: int = 0) -> None:
    """The named attribute has to be so many bytes.

    Raises:
        StateError: It is something else.
    """
    value = getattr(state, name)
    good = isinstance(value, bytes) and least <= len(value) <= most
    require(state, name, good, f"{least} to {most} bytes" if least < most else f"{most} bytes")


def require_whole_tuple(state: object, name: str, most: int, *, lengths: range) -> None:
    """The named attribute has to be a tuple of whole numbers from 0 to ``most``, of a length in ``lengths``.

    Raises:
        StateError: It is something else.
    """

    def good(number: object) -> bool:
        return is_whole(number, most)

    fits = is_tuple_of(good, getattr(state, name), lengths[-1], least=lengths[0])
    require(state, name, fits, f"{lengths[0]} to {lengths[-1]} whole numbers from 0 to {most:#x}")
