"""One virtual processor on Unicorn: runs guest code, takes interrupts, delivers exceptions.

Unicorn translates and runs, and leaves much of a processor to its user. `NativeEngine` does that in C;
`PythonEngine` stands in where the native part is missing. Here is what both need: the memory's map and the
first state.

Physical addresses without RAM all go to the bus. No hook covers RAM, which would slow down every store.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from nitro_vmm.accel.state import EntryState, ProgramState
from nitro_vmm.accel.unicorn import identity, native
from nitro_vmm.accel.unicorn.engine import Bus, Engine, Stopped
from nitro_vmm.accel.unicorn.native_engine import NativeEngine
from nitro_vmm.accel.unicorn.private import (
    CS,
    FLAT_CODE,
    FLAT_DATA,
    FLAT_LIMIT,
    PrivateState,
    Segment,
)
from nitro_vmm.accel.unicorn.public import PROT_ALL, Register, Uc
from nitro_vmm.address_map import RamRange

if TYPE_CHECKING:
    from nitro_vmm.accel.unicorn.debug import UnicornDebug

MSR_EFER: Final = 0xC000_0080
EFER_LONG_MODE: Final = 1 << 8 | 1 << 10
"""LME and LMA."""
CR0_PG_ET_PE: Final = 0x8000_0011
CR4_PAE: Final = 1 << 5
RFLAGS_RESERVED: Final = 2

EMPTY_TSS: Final = 0x8B00
"""Present and busy, as after a reset: QEMU gives up when an interrupt needs one that is not."""

TRANSLATION_BUFFER_BYTES: Final = 256 << 20
"""How much translated code is kept; when it is full, all is dropped. Only what is used takes memory."""


class Cpu:
    """The processor.

    Args:
        ram: What `address_map.ram_ranges` said, and the memory for each.
        bus: Everything else.
        tsc_hz: The frequency that CPUID names.

    Raises:
        HostError: Unicorn is not the one that we know.
    """

    def __init__(self, ram: Sequence[tuple[RamRange, mmap.mmap]], bus: Bus, *, tsc_hz: int) -> None:
        self._uc = uc = _new_engine()
        uc.ctl_set_tcg_buffer_size(TRANSLATION_BUFFER_BYTES)
        uc.ctl_exits_enabled(True)
        self._pins = [ctypes.c_char.from_buffer(buffer) for _, buffer in ram]
        holes, end = [], 0
        for ((address, size), _), pin in zip(ram, self._pins, strict=True):
            if end < address:
                holes.append(RamRange(end, address - end))
            uc.mem_map_ptr(address, size, PROT_ALL, ctypes.addressof(pin))
            end = address + size
        holes.append(RamRange(end, identity.PHYSICAL_ADDRESS_END - end))
        self._private = PrivateState(uc)
        leaves = identity.leaves(tsc_hz, native=native.LIBRARY is not None)
        self._engine: Engine
        if native.LIBRARY is not None:
            places = [(where, ctypes.addressof(pin)) for (where, _), pin in zip(ram, self._pins, strict=True)]
            self._engine = NativeEngine(
                native.LIBRARY, uc, bus, tsc_hz=tsc_hz, ram=places, holes=holes, leaves=leaves
            )
        else:
            from nitro_vmm.accel.unicorn.python_engine import PythonEngine  # noqa: PLC0415 - only here

            views = [(where, memoryview(buffer)) for where, buffer in ram]
            self._engine = PythonEngine(uc, self._private, bus, holes=holes, ram=views, leaves=leaves)

    def enter(self, entry: EntryState) -> None:
        """Set the registers for the kernel's first instruction."""
        uc, private = self._uc, self._private
        uc.reg_write(Register.CR4, CR4_PAE)
        uc.reg_write(Register.CR3, entry.cr3)
        uc.reg_write(Register.MSR, (MSR_EFER, EFER_LONG_MODE))
        uc.reg_write(Register.CR0, CR0_PG_ET_PE)
        uc.reg_write(Register.GDTR, (0, entry.gdt_address, entry.gdt_limit, 0))
        uc.reg_write(Register.TR, (0, 0, 0, EMPTY_TSS))
        for index in range(6):
            code = index == CS
            selector = entry.code_selector if code else entry.data_selector
            private.set_segment(index, Segment(selector, 0, FLAT_LIMIT, FLAT_CODE if code else FLAT_DATA))
        uc.reg_write(Register.EFLAGS, RFLAGS_RESERVED)
        uc.reg_write(Register.RSP, entry.rsp)
        uc.reg_write(Register.RSI, entry.rsi)
        private.rip.value = entry.rip

    @property
    def crash(self) -> str:
        """What `Stopped.CRASHED` means, for people; empty otherwise."""
        return self._engine.crash

    def run(self) -> Stopped:
        """Run the guest until it stops. The thread that calls this is the processor's."""
        return self._engine.run()

    def stop(self) -> None:
        """Let `run` return soon. From another thread, call it again until it has."""
        self._engine.stop()

    def forget_stop(self) -> None:
        """Run again; after `run` has obeyed a `stop`."""
        self._engine.forget_stop()

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, for when the processor is halted."""
        return self._engine.interrupts_enabled

    def debug(self, mask: Callable[[bool], None]) -> "UnicornDebug":
        """What a debugger needs of the processor.

        Args:
            mask: Holds interrupts back, or lets them through again.
        """
        from nitro_vmm.accel.unicorn.debug import UnicornDebug  # noqa: PLC0415 - few guests have one

        return UnicornDebug(self._uc, self._private, self._engine.run, mask)

    # Saved machines.

    def save(self) -> bytes:
        """All registers; while `run` does not go on and nothing is offered."""
        return self._private.save()

    def load(self, registers: bytes, *, tsc_offset: int) -> None:
        """Go on with registers that `save` gave, instead of `enter`.

        Args:
            registers: Of the same build of Unicorn.
            tsc_offset: What to add to the host's time stamp counter for the guest's.
        """
        self._private.load(registers)
        self._private.tsc_offset.value = tsc_offset
        # Through the public interface, so that translations of addresses are forgotten.
        self._uc.reg_write(Register.CR3, self._private.control[3])

    @property
    def tsc_offset(self) -> int:
        """What is added to the host's time stamp counter for the guest's."""
        return int(self._private.tsc_offset.value)

    # Programs of the guest.

    def watch_programs(self, *, wanted: bool) -> bool:
        """Stop where a program is about to run; false without the native part."""
        return self._engine.watch_programs(wanted=wanted)

    def watch_page(self, address: int) -> bool:
        """Stop when a page is touched; false without the native part."""
        return self._engine.watch_page(address)

    @property
    def program(self) -> ProgramState | None:
        """The program before whose next instruction the processor stands; `None` if it is in the kernel."""
        if not self._engine.is_at_program:
            return None
        private = self._private
        return ProgramState(tuple(private.registers), private.rip.value, private.control[3])

    def set_general(self, values: Sequence[int]) -> None:
        """Change the general registers, in the order of `ProgramState.general`."""
        self._private.registers[:] = list(values)

    def enter_system_call(self) -> bool:
        """Go on as if the program had executed SYSCALL; false if there is none."""
        return self._engine.enter_system_call()

    # Interrupts.

    @property
    def taken(self) -> bool:
        """Whether nothing is offered: the vector of the last offer was taken, or there was none."""
        return not self._private.interrupt_pending.value

    def share_word(self, address: int, word: memoryview) -> None:
        """Have the guest read four bytes of a device from ``word``, if that is cheaper than a hook."""
        self._engine.share_word(address, word)

    def offer(self, vector: int) -> None:
        """Interrupt the guest as soon as it lets us; not while an earlier offer stands, but in a hook."""
        self._engine.offer(vector)

    def withdraw(self) -> None:
        """Take an offer back; only from a hook, when the guest does not run."""
        self._engine.withdraw()


def _new_engine() -> Uc:
    if native.LIBRARY is not None:
        return Uc()
    # Hooks in Python need Unicorn's own binding, which has the same methods and more.
    import unicorn  # noqa: PLC0415 - takes long to import

    engine: Uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    return engine
