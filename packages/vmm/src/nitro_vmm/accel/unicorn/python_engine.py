"""Runs a guest without the native part: Unicorn's hooks are Python functions.

What QEMU would leave by a long jump must not happen below a Python frame, so exceptions are delivered only
after `obstacle` has seen that nothing is in their way. That is slower than the native part, and leaves wrong
what only C can mend.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Final

import unicorn
from unicorn import x86_const as x86

from nitro_vmm.accel.unicorn.engine import Bus, Stopped
from nitro_vmm.accel.unicorn.exceptions import (
    DOUBLE_FAULT,
    PAGE_FAULT,
    Fault,
    State,
    Table,
    combined,
    obstacle,
)
from nitro_vmm.accel.unicorn.identity import Leaf
from nitro_vmm.accel.unicorn.private import (
    CS,
    FLAT_CODE,
    FLAT_DATA,
    FLAT_LIMIT,
    SS,
    VIRQ_VECTOR,
    PrivateState,
    Segment,
)
from nitro_vmm.address_map import RamRange

INVALID_OPCODE: Final = 6
BREAKPOINT: Final = 3
OVERFLOW: Final = 4

RCX: Final = 1
R11: Final = 11

RFLAGS_IF: Final = 1 << 9
RFLAGS_RF: Final = 1 << 16
HFLAGS_CPL: Final = 3
HFLAGS_LMA: Final = 1 << 14
HFLAGS_CS64: Final = 1 << 15
EFER_SCE: Final = 1 << 0
SYSCALL_BYTES: Final = 2


class PythonEngine:
    """See `Engine`.

    Args:
        uc: The engine, with its RAM mapped.
        private: Its inner state.
        bus: Where accesses go that are not to RAM.
        holes: The addresses without RAM.
        ram: The RAM's addresses, and the memory for each.
        leaves: CPUID.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        private: PrivateState,
        bus: Bus,
        *,
        holes: Sequence[RamRange],
        ram: Sequence[tuple[RamRange, memoryview]],
        leaves: dict[int, Leaf],
    ) -> None:
        self.crash = ""
        self._uc = uc
        self._private = private
        self._bus = bus
        self._leaves = leaves
        self._stop_asked = threading.Event()
        self._triple_fault = False
        self._words = [(start, start + size, memory.cast("Q")) for (start, size), memory in ram]
        for hole in holes:
            self._map_bus(hole)
        self._vector = ctypes.c_uint32.from_buffer(ram[0][1], VIRQ_VECTOR)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        uc.hook_add(unicorn.UC_HOOK_INSN_INVALID, self._on_invalid_opcode)
        for instruction, hook in (
            (x86.UC_X86_INS_SYSCALL, self._on_syscall),
            (x86.UC_X86_INS_CPUID, self._on_cpuid),
            (x86.UC_X86_INS_IN, self._on_in),
            (x86.UC_X86_INS_OUT, self._on_out),
        ):
            uc.hook_add(unicorn.UC_HOOK_INSN, hook, None, 1, 0, instruction)

    def run(self) -> Stopped:
        """See `Engine`."""
        if self._stop_asked.is_set():
            return Stopped.ASKED
        try:
            self._uc.emu_start(self._private.rip.value, 0)
        except unicorn.UcError as error:
            self.crash = f"{error} at {self._private.rip.value:#x}"
            return Stopped.CRASHED
        if self._triple_fault:
            return Stopped.TRIPLE_FAULT
        return Stopped.ASKED if self._stop_asked.is_set() else Stopped.HALTED

    def stop(self) -> None:
        """See `Engine`."""
        self._stop_asked.set()
        self._uc.emu_stop()

    def forget_stop(self) -> None:
        """See `Engine`."""
        self._stop_asked.clear()

    @property
    def interrupts_enabled(self) -> bool:
        """See `Engine`."""
        return bool(self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & RFLAGS_IF)

    # Programs. Unicorn alone cannot tell when the guest comes to one.

    @property
    def is_at_program(self) -> bool:
        """See `Engine`."""
        return False

    def watch_programs(self, *, wanted: bool) -> bool:
        """See `Engine`."""
        return not wanted

    def watch_page(self, address: int) -> bool:  # noqa: ARG002
        """See `Engine`."""
        return False

    def enter_system_call(self) -> bool:
        """See `Engine`."""
        return False

    # Interrupts.

    def share_word(self, address: int, word: memoryview) -> None:
        """See `Engine`."""

    def offer(self, vector: int) -> None:
        """See `Engine`."""
        self._vector.value = vector
        self._private.interrupt_pending.value = 1
        self._private.leave_block.value = 0xFFFF

    def withdraw(self) -> None:
        """See `Engine`."""
        self._private.interrupt_pending.value = 0

    # Hooks. They run in the processor's thread while the guest stands still.

    def _on_in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        return self._bus.read_port(port, size)

    def _on_out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self._bus.write_port(port, size, value)

    def _map_bus(self, hole: RamRange) -> None:
        bus, (start, size) = self._bus, hole

        def read(_uc: unicorn.Uc, offset: int, width: int, _data: object) -> int:
            return bus.read_memory(start + offset, width)

        def write(_uc: unicorn.Uc, offset: int, width: int, value: int, _data: object) -> None:
            bus.write_memory(start + offset, width, value)

        self._uc.mmio_map(start, size, read, None, write, None)

    def _on_cpuid(self, _uc: unicorn.Uc, _data: object) -> int:
        registers = self._private.registers
        leaf, subleaf = registers[0] & 0xFFFF_FFFF, registers[RCX] & 0xFFFF_FFFF
        values = self._leaves.get(leaf) if not subleaf or leaf != 7 else None
        registers[0], registers[3], registers[RCX], registers[2] = values or (0, 0, 0, 0)
        return 1

    def _on_syscall(self, uc: unicorn.Uc, _data: object) -> None:
        private = self._private
        if not (private.efer.value & EFER_SCE and private.hflags.value & HFLAGS_CS64):
            self._raise(Fault(INVALID_OPCODE))
            private.rip.value -= SYSCALL_BYTES  # Unicorn adds it after the hook
            return
        flags = uc.reg_read(x86.UC_X86_REG_EFLAGS)
        private.registers[RCX] = private.rip.value + SYSCALL_BYTES
        private.registers[R11] = flags & ~RFLAGS_RF
        uc.reg_write(x86.UC_X86_REG_EFLAGS, flags & ~private.fmask.value & ~RFLAGS_RF)
        selector = private.star.value >> 32 & 0xFFFC
        private.set_segment(CS, Segment(selector, 0, FLAT_LIMIT, FLAT_CODE))
        private.set_segment(SS, Segment(selector + 8, 0, FLAT_LIMIT, FLAT_DATA))
        private.hflags.value &= ~HFLAGS_CPL
        private.rip.value = private.lstar.value - SYSCALL_BYTES & (1 << 64) - 1

    def _on_invalid_opcode(self, _uc: unicorn.Uc, _data: object) -> bool:
        self._raise(Fault(INVALID_OPCODE))
        return True

    def _on_exception(self, _uc: unicorn.Uc, vector: int, _data: object) -> None:
        private = self._private
        fault = Fault(vector, private.error_code.value)
        if not private.exception_is_int.value:
            self._raise(fault)
            return
        second = obstacle(self._state(), vector, self._read_physical, software=True)
        if second is None:
            private.deliver_exception()
            return
        private.rip.value -= 1 if vector in (BREAKPOINT, OVERFLOW) else 2  # back to the INT instruction
        self._raise(second)

    def _raise(self, fault: Fault) -> None:
        """Deliver an exception, or what it turns into."""
        private = self._private
        state = self._state()
        pending: Fault | None = fault
        while pending is not None:
            second = obstacle(state, pending.vector, self._read_physical)
            if second is None:
                break
            pending = combined(pending.vector, second)
        if pending is None or not private.hflags.value & HFLAGS_LMA:
            self._triple_fault = True
            self._uc.emu_stop()
            return
        private.exception_is_int.value = 0
        private.exception_index.value = pending.vector
        private.error_code.value = 0 if pending.vector == DOUBLE_FAULT else pending.error_code
        if pending.vector == PAGE_FAULT and pending.address is not None:
            private.control[2] = pending.address
        private.deliver_exception()

    def _state(self) -> State:
        private = self._private
        idt, gdt, tss = private.idt, private.gdt, private.task_register
        control = private.control
        return State(
            private.hflags.value & HFLAGS_CPL,
            private.registers[4],
            control[0],
            control[3],
            control[4],
            private.efer.value,
            Table(idt.base, idt.limit),
            Table(gdt.base, gdt.limit),
            Table(tss.base, tss.limit),
        )

    def _read_physical(self, address: int) -> int | None:
        for start, end, words in self._words:
            if start <= address < end:
                return words[address - start >> 3]
        return None
