"""Taking away from a guest what its failure does not need, and keeping what is left."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from machine_fuzz.guest import Guest


def minimise(guest: Guest, fails: Callable[[Guest], bool]) -> Guest:
    """A guest as small as can be that still fails; halves first, single operations last."""
    guest = _fewer_operations(guest, fails)
    for number in reversed(range(len(guest.tables))):
        smaller = replace(guest, tables=guest.tables[:number] + guest.tables[number + 1 :])
        if fails(smaller):
            guest = smaller
    return guest


def _fewer_operations(guest: Guest, fails: Callable[[Guest], bool]) -> Guest:
    step = max(len(guest.operations) // 2, 1)
    while True:
        position = 0
        while position < len(guest.operations):
            smaller = guest.without(position, step)
            if fails(smaller):
                guest = smaller
            else:
                position += step
        if step == 1:
            return guest
        step //= 2


def save(guest: Guest, path: Path, **notes: object) -> None:
    """Write a guest down as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        **notes,
        "operations": [operation.hex() for operation in guest.operations],
        "tables": [[address, data.hex()] for address, data in guest.tables],
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")


def load(path: Path) -> Guest:
    """Read what `save` wrote."""
    contents = json.loads(path.read_text())
    return Guest(
        tuple(bytes.fromhex(operation) for operation in contents["operations"]),
        tuple((address, bytes.fromhex(data)) for address, data in contents["tables"]),
    )
