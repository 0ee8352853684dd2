"""What several tests share: vectors that are not part of the project, and a root made once."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nitro_nsm import Root

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"


def entropy(seed: int = 0) -> Callable[[int], bytes]:
    """Bytes that are different each time, and the same in each run."""
    counter = itertools.count(seed << 32)
    return lambda count: hashlib.shake_256(next(counter).to_bytes(8, "big")).digest(count)


def expectations(folder: str) -> list[dict[str, Any]]:
    """The entries of a folder's `expected.json`; none where there are no vectors."""
    path = VECTORS / folder / "expected.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


@pytest.fixture(scope="session")
def vectors() -> Path:
    if not VECTORS.exists():
        pytest.skip(f"the vectors are not at {VECTORS}")
    return VECTORS


@pytest.fixture(scope="session")
def root() -> Root:
    return Root.create("test", entropy=entropy(1))
