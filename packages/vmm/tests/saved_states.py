"""Saved states for tests."""

from typing import Any, TypeVar

State = TypeVar("State")


def checked(state: State) -> State:
    """The state, which was read from somewhere.

    Raises:
        StateError: It cannot be.
    """
    checks: Any = state
    checks.check()
    return state


def changed(state: State, **changes: object) -> State:
    """The same state but for some values, as if it had been read from somewhere.

    Raises:
        StateError: It cannot be.
    """
    parts: Any = state
    other: State = parts._replace(**changes)
    return checked(other) if hasattr(other, "check") else other
