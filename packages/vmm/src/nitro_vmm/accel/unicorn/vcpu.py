"""The processor as the machine runs it: HLT waits, and kicks arrive."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nitro_vmm.accel.state import EntryState, Exit, ExitReason, ProgramState
from nitro_vmm.accel.unicorn.cpu import Cpu
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.interrupts import Interrupts

if TYPE_CHECKING:
    from nitro_vmm.accel.unicorn.debug import UnicornDebug

HALTED: Final = Stopped.HALTED
ASKED: Final = Stopped.ASKED
"""Here, because to look for a member of an enum takes time, and a guest halts often."""

REASONS: Final = {
    None: ExitReason.DEBUG,
    Stopped.HALTED: ExitReason.HALTED,
    Stopped.TRIPLE_FAULT: ExitReason.TRIPLE_FAULT,
    Stopped.PROGRAM: ExitReason.PROGRAM,
    Stopped.PAGE: ExitReason.PAGE,
    Stopped.CRASHED: ExitReason.CRASHED,
}
"""What the end of a run is to the machine. After `Stopped.ASKED` it goes on, unless there was a kick."""


class UnicornVcpu:
    """See `Vcpu`.

    Args:
        cpu: The processor as Unicorn runs it.
        interrupts: What wakes it.
    """

    def __init__(self, cpu: Cpu, interrupts: Interrupts) -> None:
        self.halted = False
        """Whether it waits in HLT for an interrupt."""
        self._cpu = cpu
        self._interrupts = interrupts
        self._debug: UnicornDebug | None = None

    def debug(self) -> "UnicornDebug":
        """See `Vcpu.debug`."""
        if self._debug is None:
            self._debug = self._cpu.debug(self._interrupts.mask)
        return self._debug

    def enter(self, entry: EntryState) -> None:
        """See `Vcpu.enter`."""
        self._cpu.enter(entry)

    def run(self) -> Exit:
        """See `Vcpu.run`."""
        cpu, interrupts = self._cpu, self._interrupts
        while not interrupts.take_kick():
            steps = self._debug is not None and self._debug.step_due
            if self.halted and not steps and not interrupts.wait():
                continue  # kicked; it goes on waiting when it is run again
            self.halted = False
            stopped = cpu.run() if self._debug is None else self._debug.run()
            self.halted = stopped is HALTED and cpu.interrupts_enabled
            if not self.halted and stopped is not ASKED:
                return Exit(REASONS[stopped], cpu.crash if stopped is Stopped.CRASHED else "")
        return Exit(ExitReason.KICKED)

    def watch_programs(self, *, wanted: bool) -> bool:
        """See `StopsAtPrograms`."""
        return self._cpu.watch_programs(wanted=wanted)

    def watch_page(self, address: int) -> bool:
        """See `StopsAtPrograms`."""
        return self._cpu.watch_page(address)

    @property
    def program(self) -> ProgramState | None:
        """See `StopsAtPrograms`."""
        return self._cpu.program

    def set_general(self, values: Sequence[int]) -> None:
        """See `StopsAtPrograms`."""
        self._cpu.set_general(values)

    def enter_system_call(self) -> bool:
        """See `StopsAtPrograms`."""
        return self._cpu.enter_system_call()

    def kick(self) -> None:
        """See `Vcpu.kick`."""
        self._interrupts.kick()
