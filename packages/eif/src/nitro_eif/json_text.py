"""JSON from files of others: bounded, so that neither its size nor its depth hurts who reads it."""

import json
from typing import Any, Final

JSON_BYTES_MAX: Final = 4 << 20
"""Documents of container images are this long at most (OCI distribution-spec 1.1, "Pushing Manifests")."""
JSON_DEPTH_MAX: Final = 100
"""How deep lists and objects may lie in each other: more would exhaust the stack of who walks them."""


def parse_json(data: bytes | memoryview) -> Any:  # noqa: ANN401 - JSON
    """Parse a JSON text.

    Raises:
        ValueError: It is not JSON, too long, or nested too deeply. A `json.JSONDecodeError` knows the place.
    """
    if len(data) > JSON_BYTES_MAX:
        raise ValueError(f"it has {len(data)} bytes, more than {JSON_BYTES_MAX}")
    try:
        value = json.loads(bytes(data))
    except RecursionError:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH_MAX} levels") from None
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {JSON_DEPTH_MAX} levels")
