"""When a guest that goes on from a saved machine has taken notice of its new address."""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from nitro_vmm.enclave import resume
from nitro_vmm.enclave.resume import Resumption


@pytest.mark.parametrize(
    ("known", "reads", "settled"), [(True, 0, True), (False, 0, False), (False, 1, True), (False, 2, True)]
)
def test_a_new_address_is_known_once_the_guest_has_read_it(
    monkeypatch: pytest.MonkeyPatch,
    known: bool,  # noqa: FBT001
    reads: int,
    settled: bool,  # noqa: FBT001
) -> None:
    anything: Any = None
    begins: list[Any] = []
    machine: Any = SimpleNamespace(
        board=SimpleNamespace(configuration_reads={"vsock": reads}.__getitem__),
        at_first_program=begins.append,
    )
    found: list[bool] = []

    def look(_program: object, *, settled: Callable[[], bool], wall_clock_ns: Callable[[], int]) -> None:
        found.append(settled())
        assert wall_clock_ns() > 0

    monkeypatch.setattr(resume, "renew", look)

    Resumption(anything, anything, ExitStack(), anything, "")._renew_at_first_program(
        machine, address_known=known
    )
    begins[0](None)

    assert found == [settled]
