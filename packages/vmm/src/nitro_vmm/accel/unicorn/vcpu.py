"""One virtual processor on Unicorn: runs guest code, takes interrupts, delivers exceptions.

Unicorn translates and runs; `PrivateState` reaches what it hides. Here is what a processor has to do besides:

* Exceptions: QEMU's own delivery, called from the hook, after `obstacle` has seen that it cannot fault.
* Interrupts: `Cpu.offer` leaves a vector that QEMU takes at the next block boundary when the guest allows
  interrupts; it tells nobody, so `Cpu.taken` has to be asked. Both may be called while the guest runs.
* SYSCALL, CPUID and port accesses: hooks.
* Physical addresses without RAM: all go to the bus. No hook covers RAM, which would slow down every store.
"""

import ctypes
import mmap
import threading
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, Protocol

import unicorn
from unicorn import x86_const as x86

from nitro_vmm.accel.state import EntryState
from nitro_vmm.accel.unicorn import identity
from nitro_vmm.accel.unicorn.exceptions import (
    DOUBLE_FAULT,
    PAGE_FAULT,
    Fault,
    State,
    Table,
    combined,
    obstacle,
)
from nitro_vmm.accel.unicorn.private import CS, SS, VIRQ_VECTOR, PrivateState, Segment
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

MSR_EFER: Final = 0xC000_0080
EFER_LONG_MODE: Final = 1 << 8 | 1 << 10
"""LME and LMA."""
CR0_PG_ET_PE: Final = 0x8000_0011
CR4_PAE: Final = 1 << 5
RFLAGS_RESERVED: Final = 2

# The high half of flat descriptors (SDM vol. 3A, "Segment Descriptors"): 64-bit code, data.
FLAT_CODE: Final = 0x00A0_9B00
FLAT_DATA: Final = 0x00C0_9300
FLAT_LIMIT: Final = 0xFFFF_FFFF
EMPTY_TSS: Final = 0x8B00
"""Present and busy, as after a reset: QEMU aborts the process when an interrupt needs one that is not."""


class Bus(Protocol):
    """Where accesses go that are not to RAM."""

    def read_port(self, port: int, size: int) -> int:
        """IN."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""

    def read_memory(self, address: int, size: int) -> int:
        """A load."""

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store."""


class Stopped(Enum):
    """Why `Cpu.run` returned."""

    HALTED = auto()
    """HLT: waits for an interrupt."""
    ASKED = auto()
    """`Cpu.stop` was called."""
    TRIPLE_FAULT = auto()
    """An exception could not be delivered, nor the double fault that follows."""
    CRASHED = auto()
    """The guest ran where there is no code; `Cpu.crash` says more."""


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
        self.crash = ""
        self._uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.ctl_exits_enabled(True)
        self._bus = bus
        self._leaves = identity.leaves(tsc_hz)
        self._stop_asked = threading.Event()
        self._triple_fault = False
        self._words: list[tuple[int, int, memoryview]] = []
        self._pins = [ctypes.c_char.from_buffer(buffer) for _, buffer in ram]
        end = 0
        for (address, size), pin, buffer in (
            (where, pin, mem) for (where, mem), pin in zip(ram, self._pins, strict=True)
        ):
            self._map_bus(end, address)
            uc.mem_map_ptr(address, size, unicorn.UC_PROT_ALL, ctypes.addressof(pin))
            self._words.append((address, address + size, memoryview(buffer).cast("Q")))
            end = address + size
        self._map_bus(end, identity.PHYSICAL_ADDRESS_END)
        self._private = PrivateState(uc)
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

    def enter(self, entry: EntryState) -> None:
        """Set the registers for the kernel's first instruction."""
        uc, private = self._uc, self._private
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE)
        uc.reg_write(x86.UC_X86_REG_CR3, entry.cr3)
        uc.reg_write(x86.UC_X86_REG_MSR, (MSR_EFER, EFER_LONG_MODE))
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PG_ET_PE)
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, entry.gdt_address, entry.gdt_limit, 0))
        uc.reg_write(x86.UC_X86_REG_TR, (0, 0, 0, EMPTY_TSS))
        for index in range(6):
            code = index == CS
            selector = entry.code_selector if code else entry.data_selector
            private.set_segment(index, Segment(selector, 0, FLAT_LIMIT, FLAT_CODE if code else FLAT_DATA))
        uc.reg_write(x86.UC_X86_REG_EFLAGS, RFLAGS_RESERVED)
        uc.reg_write(x86.UC_X86_REG_RSP, entry.rsp)
        uc.reg_write(x86.UC_X86_REG_RSI, entry.rsi)
        private.rip.value = entry.rip

    def run(self) -> Stopped:
        """Run the guest until it stops. The thread that calls this is the processor's."""
        if self._stop_asked.is_set():
            return Stopped.ASKED
        try:
            self._uc.emu_start(self._private.rip.value, 0)
        except unicorn.UcError as error:
            self.crash = f"{error} at {self._private.rip.value:#x}"
            return Stopped.CRASHED
        self._private.halted.value = 0
        if self._triple_fault:
            return Stopped.TRIPLE_FAULT
        return Stopped.ASKED if self._stop_asked.is_set() else Stopped.HALTED

    def stop(self) -> None:
        """Let `run` return soon. From another thread, call it again until it has."""
        self._stop_asked.set()
        self._uc.emu_stop()

    def forget_stop(self) -> None:
        """Run again; after `run` has obeyed a `stop`."""
        self._stop_asked.clear()

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, for when the processor is halted."""
        return bool(self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & RFLAGS_IF)

    # Interrupts.

    @property
    def taken(self) -> bool:
        """Whether nothing is offered: the vector of the last offer was taken, or there was none."""
        return not self._private.interrupt_pending.value

    def offer(self, vector: int) -> None:
        """Interrupt the guest as soon as it lets us; not while an earlier offer stands, but in a hook."""
        self._vector.value = vector
        self._private.interrupt_pending.value = 1
        self._private.leave_block.value = 0xFFFF

    def withdraw(self) -> None:
        """Take an offer back; only from a hook, when the guest does not run."""
        self._private.interrupt_pending.value = 0

    # Hooks. They run in the processor's thread while the guest stands still.

    def _on_in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        return self._bus.read_port(port, size)

    def _on_out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self._bus.write_port(port, size, value)

    def _map_bus(self, start: int, end: int) -> None:
        if start == end:
            return
        bus = self._bus

        def read(_uc: unicorn.Uc, offset: int, size: int, _data: object) -> int:
            return bus.read_memory(start + offset, size)

        def write(_uc: unicorn.Uc, offset: int, size: int, value: int, _data: object) -> None:
            bus.write_memory(start + offset, size, value)

        self._uc.mmio_map(start, end - start, read, None, write, None)

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
