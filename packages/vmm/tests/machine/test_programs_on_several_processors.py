"""A program that the kernel lets go on, on another processor does not run away from whoever looks at it."""

import threading
from collections.abc import Sequence
from typing import Final

import pytest

from nitro_vmm.accel import Bus, EntryState, Exit, ExitReason, ProgramState, Ram
from nitro_vmm.address_map import MIB
from nitro_vmm.boot import long_mode
from nitro_vmm.errors import GuestError
from nitro_vmm.machine.machine import End, Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.paging import PRESENT
from nitro_vmm.machine.program import Program
from nitro_vmm.testing import FakeAccelerator, FakeVcpu, FakeVm

PATIENCE_S = 30
TABLES = 0xA000
RIP, STACK = 0x20_0000, 0x20_1800
NUMBER = 39


class Guest:
    """A kernel with one program, which it moves to another processor with each system call."""

    def __init__(self, processors: int, calls: int) -> None:
        self.changed = threading.Condition()
        self.at = 0
        """On which processor the program is."""
        self.processors = processors
        self.in_kernel = True
        """Whether the kernel is to return to the program."""
        self.general: tuple[int, ...] = (0,) * 4 + (STACK,) + (0,) * 11
        self.calls: Final = calls
        self.made = 0
        self.ran_away = False


class Vcpu(FakeVcpu):
    """A processor of such a guest; a `StopsAtPrograms`."""

    def __init__(self, guest: Guest, number: int, bus: Bus) -> None:
        super().__init__(lambda _vcpu: self._run_guest(), bus)
        self._guest = guest
        self._number = number
        self._stopped = False
        self._asked = False
        self.watched = True

    def _run_guest(self) -> Exit:
        guest = self._guest
        with guest.changed:
            while True:
                if self._asked:
                    self._asked = False
                    return Exit(ExitReason.KICKED)
                if guest.at == self._number and guest.in_kernel:
                    guest.in_kernel = False
                    self._stopped = True
                    return Exit(ExitReason.PROGRAM)
                if guest.at == self._number and self._stopped:
                    # It goes on without having made a call: the look is over, or nobody looked.
                    guest.ran_away = guest.made < guest.calls
                    return Exit(ExitReason.HALTED)
                guest.changed.wait(PATIENCE_S)

    def kick(self) -> None:
        with self._guest.changed:
            self._asked = True
            self._guest.changed.notify_all()

    def watch_programs(self, *, wanted: bool) -> bool:
        self.watched = wanted
        return True

    def watch_page(self, address: int) -> bool:
        return address > 0

    @property
    def program(self) -> ProgramState | None:
        return ProgramState(self._guest.general, RIP, TABLES) if self._stopped else None

    def set_general(self, values: Sequence[int]) -> None:
        self._guest.general = tuple(values)

    def enter_system_call(self) -> bool:
        guest = self._guest
        with guest.changed:
            guest.made += 1
            guest.general = (guest.general[0] + 1000, *guest.general[1:])
            self._stopped = False
            guest.at = (guest.at + 1) % guest.processors
            guest.in_kernel = True
            guest.changed.notify_all()
        return True


class Accelerator(FakeAccelerator):
    """Makes such a guest."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(*[lambda vcpu: vcpu.wait_for_kick()] * guest.processors)
        self._guest = guest

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> FakeVm:
        vm = super().create_vm(ram, bus, processors=processors)
        self.vcpus = vm.vcpus = [Vcpu(self._guest, number, bus) for number in range(self._guest.processors)]
        return vm


def machine_of(guest: Guest) -> tuple[Machine, Accelerator]:
    memory, accelerator = Memory(4 * MIB), Accelerator(guest)
    long_mode.write(memory.guest)
    for table in (TABLES, TABLES + 0x1000, TABLES + 0x2008):
        entry = memory.guest.slice(table, 8)
        entry[:] = (int.from_bytes(entry, "little") | PRESENT | 4).to_bytes(8, "little")
    machine = Machine(
        memory,
        accelerator,
        console=lambda _data: None,
        console_ready=lambda: None,
        processors=guest.processors,
    )
    return machine, accelerator


ENTRY: EntryState | None = None


@pytest.mark.parametrize("processors", [1, 2, 4])
def test_a_call_that_ends_on_another_processor_is_seen(processors: int) -> None:
    guest = Guest(processors, calls=50)
    machine, accelerator = machine_of(guest)
    results: list[int] = []

    def look(program: Program) -> None:
        results.extend(program.call(NUMBER) for _ in range(guest.calls))
        program.leave()

    machine.at_first_program(look)
    ending = machine.run(ENTRY)

    assert results == [NUMBER + 1000] * guest.calls
    assert not guest.ran_away
    assert ending.end is End.HALTED
    assert not accelerator.vcpus[guest.at].watched  # type: ignore[attr-defined]


def test_a_failure_in_another_processors_thread_ends_the_run() -> None:
    guest = Guest(2, calls=0)
    guest.at = 1
    machine, _ = machine_of(guest)

    def look(_program: Program) -> None:
        raise GuestError("no")

    machine.at_first_program(look)

    with pytest.raises(GuestError, match="no"):
        machine.run(ENTRY)


def test_a_machine_may_be_stopped_while_a_program_is_on_its_way() -> None:
    guest = Guest(3, calls=5)
    machine, _ = machine_of(guest)

    def look(program: Program) -> None:
        program.call(NUMBER)
        machine.stop()
        program.call(NUMBER)

    machine.at_first_program(look)

    assert machine.run(ENTRY).end is End.STOPPED
