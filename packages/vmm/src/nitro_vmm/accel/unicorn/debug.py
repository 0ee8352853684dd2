"""What a debugger needs of a processor on Unicorn: registers, breakpoints, single steps.

A breakpoint is one of Unicorn's exits: where the translator comes to such an address it puts code that ends
the run, before the instruction there. So the guest's memory stays as it is, and a breakpoint may be set where
nothing is mapped yet. What is translated already does not know of new exits, so translations are dropped
whenever they change.

A step runs until a hook that covers every instruction is called for the second time. Only then may the hook
end the run, so the switch that keeps runs from ending within a block (`PrivateState`) is off meanwhile.
"""

from collections.abc import Callable
from typing import Any, Final

from unicorn import x86_const as x86

from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.private import PrivateState
from nitro_vmm.accel.unicorn.public import HOOK_CODE, Uc

MSRS: Final = {"kernel_gs_base": 0xC000_0102, "efer": 0xC000_0080}
NAMES: Final = {
    **{name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("rax", "rbx", "rcx", "rdx", "rsi")},
    **{name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("rdi", "rbp", "rsp", "eflags")},
    **{name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("cs", "ss", "ds", "es", "fs", "gs")},
    **{name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("cr0", "cr2", "cr3", "cr4", "mxcsr")},
    **{f"r{number}": getattr(x86, f"UC_X86_REG_R{number}") for number in range(8, 16)},
    **{f"xmm{number}": getattr(x86, f"UC_X86_REG_XMM{number}") for number in range(16)},
    "fs_base": x86.UC_X86_REG_FS_BASE,
    "gs_base": x86.UC_X86_REG_GS_BASE,
    "fctrl": x86.UC_X86_REG_FPCW,
    "fstat": x86.UC_X86_REG_FPSW,
    "ftag": x86.UC_X86_REG_FPTAG,
}
"""GDB's names of registers that Unicorn has under a number."""


class UnicornDebug:
    """See `Debug`. Its methods are for the thread of whoever has paused the processor.

    Args:
        uc: The engine.
        private: Its inner state.
        run: Runs the guest, see `Engine.run`.
        mask: Holds interrupts back, or lets them through again.
    """

    def __init__(
        self,
        uc: Uc,
        private: PrivateState,
        run: Callable[[], Stopped],
        mask: Callable[[bool], None],
    ) -> None:
        self._uc = uc
        self._private = private
        self._run = run
        self._mask = mask
        self._breakpoints: frozenset[int] = frozenset()
        self._stale = False
        """Whether something is translated that must not be used any more."""
        self._step_due = False

    @property
    def step_due(self) -> bool:
        """Whether the next run is a single step."""
        return self._step_due

    def read_register(self, name: str) -> int:
        """See `Debug`."""
        if name == "rip":
            return int(self._private.rip.value)
        if name.startswith("st") and name[2:].isdecimal():
            # The stack's top is a field of the status word, and Unicorn has the registers by their places.
            top = int(self._uc.reg_read(x86.UC_X86_REG_FPSW)) >> 11
            mantissa, exponent = self._uc.reg_read(x86.UC_X86_REG_FP0 + (top + int(name[2:]) & 7))
            return int(exponent) << 64 | int(mantissa)
        if name in MSRS:
            return int(self._uc.reg_read(x86.UC_X86_REG_MSR, MSRS[name]))
        number = NAMES.get(name)
        return 0 if number is None else int(self._uc.reg_read(number))

    def write_register(self, name: str, value: int) -> None:
        """See `Debug`."""
        if name == "rip":
            self._private.rip.value = value
        elif name in NAMES:
            self._uc.reg_write(NAMES[name], value)

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        """See `Debug`; there may be any number."""
        self._stale = self._stale or addresses != self._breakpoints
        self._breakpoints = addresses
        return True

    def step(self, *, due: bool) -> None:
        """See `Debug`."""
        self._step_due = due

    def forget_code(self) -> None:
        """See `Debug`."""
        self._stale = True

    def run(self) -> Stopped | None:
        """Run the guest as `Engine.run` does; `None`: a breakpoint, or the end of a step. In its thread."""
        if self._step_due:
            self._step_due = False
            stopped = self._step()
            return None if stopped is Stopped.HALTED else stopped
        if self._stale:
            self._translate_anew(self._breakpoints)
            self._stale = False
        stopped = self._run()
        # A breakpoint ends the run as HLT does. Right behind a HLT the two cannot be told apart; then the
        # guest wakes up without an interrupt, which it has to expect at any time.
        at_breakpoint = stopped is Stopped.HALTED and int(self._private.rip.value) in self._breakpoints
        return None if at_breakpoint else stopped

    def _step(self) -> Stopped:
        calls = 0

        def count(uc: Uc, _address: int, _size: int, _data: Any) -> None:  # noqa: ANN401 - Unicorn's
            nonlocal calls
            calls += 1
            if calls == 2:
                uc.emu_stop()

        # Time goes on for a guest that stands still, so each step would end in the timer's interrupt.
        self._mask(True)
        self._private.exits_within_blocks(allowed=True)
        self._translate_anew(frozenset())
        hook = self._uc.hook_add(HOOK_CODE, count)
        try:
            return self._run()
        finally:
            self._private.exits_within_blocks(allowed=False)
            self._remove(hook)
            self._mask(False)

    def _remove(self, hook: int) -> None:
        """Remove a hook for good.

        Unicorn forgets a deleted hook when the next run ends, and while it knows of any hook of this kind it
        leaves RIP as it is when the processor is wanted at the start of a block, which loses jumps. So there
        is a run that ends before its first instruction.
        """
        rip = int(self._private.rip.value)
        self._uc.hook_del(hook)
        self._translate_anew(frozenset({rip}))
        self._uc.emu_start(rip, 0)
        self._stale = True

    def _translate_anew(self, breakpoints: frozenset[int]) -> None:
        self._uc.ctl_set_exits(sorted(breakpoints))
        self._uc.ctl_flush_tb()
