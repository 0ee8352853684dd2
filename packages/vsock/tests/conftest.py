"""What the tests of the engine share."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_bench import Bench, open_descriptors
from nitro_vsock.host import af_vsock


@pytest.fixture
def any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has AF_VSOCK, for tests that only look at configurations."""
    monkeypatch.setattr(af_vsock, "check_available", lambda: None)


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
