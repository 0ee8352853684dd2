"""What a guest that goes on from a saved machine is given, and when it knows its new address."""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from nitro_vmm.boot import canonical
from nitro_vmm.enclave import resume
from nitro_vmm.enclave.resume import Resumption
from states import description, parameters


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


@pytest.mark.parametrize(("kind", "filled"), [("kernel", ["ramdisks"]), ("image", [])])
def test_only_a_saved_kernel_gets_the_images_ramdisks(
    monkeypatch: pytest.MonkeyPatch, kind: str, filled: list[str]
) -> None:
    """A saved image has unpacked its own, and uses the memory for something else."""
    anything: Any = SimpleNamespace(say=print, proceed=None, timeline=SimpleNamespace(note=print), cid=16)
    described = description(parameters=parameters(kind=kind, ramdisk_bytes=4096))
    saved: Any = SimpleNamespace(file=SimpleNamespace(name="saved"), description=described, load=print)
    image: Any = SimpleNamespace(memory_mib=4)
    machine = SimpleNamespace(restore=print, change_generation=print, at_first_program=print)
    given: list[str] = []
    monkeypatch.setattr(resume, "Memory", lambda *_, **__: SimpleNamespace(guest=[]))
    monkeypatch.setattr(resume, "make_hardware", lambda *_: SimpleNamespace(machine=machine))
    monkeypatch.setattr(canonical, "fill", lambda *arguments: given.append(arguments[3]))

    eif: Any = SimpleNamespace(ramdisks="ramdisks")
    Resumption(anything, anything, ExitStack(), anything, "")._go_on(image, saved, eif)

    assert given == filled
