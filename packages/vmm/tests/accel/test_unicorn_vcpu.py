"""What a run of an emulated processor comes to, for each way in which the engine stops."""

from typing import Any

import pytest

from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.accel.unicorn import vcpu as module
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.vcpu import UnicornVcpu

pytestmark = pytest.mark.skipif(
    not module.__file__.endswith(".py"), reason="compiled code takes no stand-ins"
)


class Guest:
    """The engine, the interrupts and a debugger of a guest that stops in these ways."""

    def __init__(self, *stops: Stopped | None, enabled: bool = True, wakes: int = 0, runs: int = 100) -> None:
        self._stops = iter(stops)
        self.interrupts_enabled = enabled
        self.crash = "what happened"
        self.ran = 0
        self.waited = 0
        self.step_due = False
        self._wakes = wakes
        """How often a wait ends with an interrupt."""
        self._turns = runs
        """How often it is looked for a kick before there is one."""

    def run(self) -> Stopped | None:
        self.ran += 1
        return next(self._stops)

    def take_kick(self) -> bool:
        self._turns -= 1
        return self._turns < 0

    def wait(self) -> bool:
        self.waited += 1
        return self.waited <= self._wakes

    def mask(self, _on: bool) -> None: ...  # noqa: FBT001 - the processor's

    def debug(self, _mask: object) -> "Guest":
        return self


def vcpu_of(guest: Guest) -> UnicornVcpu:
    anything: Any = guest
    return UnicornVcpu(anything, anything)


@pytest.mark.parametrize(
    ("stopped", "exit_"),
    [
        (Stopped.TRIPLE_FAULT, Exit(ExitReason.TRIPLE_FAULT)),
        (Stopped.PROGRAM, Exit(ExitReason.PROGRAM)),
        (Stopped.PAGE, Exit(ExitReason.PAGE)),
        (Stopped.CRASHED, Exit(ExitReason.CRASHED, "what happened")),
    ],
)
@pytest.mark.parametrize("debugged", [False, True])
def test_each_stop_has_its_exit(stopped: Stopped, exit_: Exit, debugged: bool) -> None:  # noqa: FBT001
    guest = Guest(Stopped.ASKED, stopped)
    vcpu = vcpu_of(guest)
    if debugged:
        vcpu.debug()

    assert vcpu.run() == exit_
    assert (guest.ran, guest.waited) == (2, 0)


def test_a_halt_without_interrupts_is_for_good() -> None:
    guest = Guest(Stopped.HALTED, enabled=False)

    assert vcpu_of(guest).run() == Exit(ExitReason.HALTED)
    assert guest.waited == 0


def test_a_halt_waits_for_an_interrupt_and_goes_on() -> None:
    guest = Guest(Stopped.HALTED, Stopped.HALTED, Stopped.PAGE, wakes=2)
    vcpu = vcpu_of(guest)

    assert vcpu.run() == Exit(ExitReason.PAGE)
    assert (guest.ran, guest.waited) == (3, 2)
    assert not vcpu.halted


def test_one_that_was_kicked_while_it_waited_waits_on() -> None:
    guest = Guest(Stopped.HALTED, Stopped.PAGE, runs=2)
    vcpu = vcpu_of(guest)

    kicked = vcpu.run()
    halted = vcpu.halted
    guest._wakes, guest._turns = 9, 9

    assert kicked == Exit(ExitReason.KICKED)
    assert halted
    assert vcpu.run() == Exit(ExitReason.PAGE)
    assert (guest.ran, guest.waited) == (2, 2)


def test_a_step_does_not_wait_for_an_interrupt() -> None:
    guest = Guest(Stopped.HALTED, None, runs=1)
    vcpu = vcpu_of(guest)
    vcpu.debug()
    vcpu.run()
    guest.step_due, guest._turns = True, 9

    assert vcpu.run() == Exit(ExitReason.DEBUG)
    assert guest.waited == 0


def test_who_is_not_stepped_waits_also_with_a_debugger() -> None:
    guest = Guest(Stopped.HALTED, Stopped.PAGE, wakes=1)
    vcpu = vcpu_of(guest)
    vcpu.debug()

    assert vcpu.run() == Exit(ExitReason.PAGE)
    assert guest.waited == 1


def test_a_kick_before_a_run_stops_it() -> None:
    guest = Guest(runs=0)

    assert vcpu_of(guest).run() == Exit(ExitReason.KICKED)
    assert guest.ran == 0


def test_there_is_one_debugger() -> None:
    vcpu = vcpu_of(Guest())

    assert vcpu.debug() is vcpu.debug()
