"""What several tests share: the vectors, and a root made once."""

from pathlib import Path

import pytest

from nitro_nsm import Root
from nitro_nsm.testing import seeded_entropy
from vectors import VECTORS


@pytest.fixture(scope="session")
def vectors() -> Path:
    if not VECTORS.exists():
        pytest.skip(f"the vectors are not at {VECTORS}")
    return VECTORS


@pytest.fixture(scope="session")
def root() -> Root:
    return Root.create("test", entropy=seeded_entropy(1))
