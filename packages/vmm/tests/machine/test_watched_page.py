"""A page that a guest touches, as somebody who waits for that sees it."""

import pytest

from nitro_vmm.accel import Bus, Exit, ExitReason, ProgramState, Ram
from nitro_vmm.address_map import MIB
from nitro_vmm.errors import HostError
from nitro_vmm.machine.machine import End, Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.testing import FakeAccelerator, FakeVcpu, FakeVm

PAGE = 0x5000


class Vcpu(FakeVcpu):
    """Touches the page once if it is watched, and halts; a `StopsAtPrograms`."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(lambda _vcpu: self._run(), bus)
        self.watched: list[int] = []

    def _run(self) -> Exit:
        return Exit(ExitReason.PAGE if self.runs <= len(self.watched) else ExitReason.HALTED)

    def watch_page(self, address: int) -> bool:
        if address == PAGE:
            self.watched.append(address)
        return address == PAGE

    def watch_programs(self, *, wanted: bool) -> bool:
        return not wanted

    @property
    def program(self) -> ProgramState | None:
        return None

    def set_general(self, values: object) -> None: ...

    def enter_system_call(self) -> bool:
        return False


class Accelerator(FakeAccelerator):
    """Makes a machine with such a processor."""

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> FakeVm:
        vm = super().create_vm(ram, bus, processors=processors)
        vm.vcpus = [Vcpu(bus)]
        return vm


def machine_of(accelerator: FakeAccelerator) -> Machine:
    return Machine(Memory(4 * MIB), accelerator, console=lambda _data: None, console_ready=lambda: None)


def test_who_waits_for_a_page_is_called_once_and_the_guest_goes_on() -> None:
    machine = machine_of(Accelerator(lambda vcpu: vcpu.wait_for_kick()))
    touched: list[int] = []

    machine.at_page(PAGE, lambda: touched.append(PAGE))
    ending = machine.run(None)

    assert touched == [PAGE]
    assert ending.end is End.HALTED


@pytest.mark.parametrize(
    ("accelerator", "address"),
    [(Accelerator, PAGE + 0x1000), (FakeAccelerator, PAGE)],
    ids=["page", "accelerator"],
)
def test_a_page_that_cannot_be_watched_is_an_error(accelerator: type[FakeAccelerator], address: int) -> None:
    machine = machine_of(accelerator(lambda vcpu: vcpu.wait_for_kick()))

    with pytest.raises(HostError, match="does not notice which memory the guest touches"):
        machine.at_page(address, lambda: None)


def test_programs_that_cannot_be_watched_are_an_error() -> None:
    machine = machine_of(Accelerator(lambda vcpu: vcpu.wait_for_kick()))

    with pytest.raises(HostError, match="does not notice when the guest's first program starts"):
        machine.at_first_program(lambda _program: None)
