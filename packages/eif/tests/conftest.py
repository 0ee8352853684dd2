"""Fixtures that several tests use."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import Container
from fake_registry import FakeRegistry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setattr("nitro_eif.container.registry.FIRST_DELAY_S", 0)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with FakeRegistry(Container()) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line print as at a terminal, where tests do not ask for JSON."""
    monkeypatch.setattr("nitro_eif.cli._is_terminal", lambda: True)
