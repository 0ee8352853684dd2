"""What the tests of the engine share."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_bench import Bench, open_descriptors


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    """Whatever a test opens is closed when it ends."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def bench(no_descriptor_leaks: None, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)
