"""One processor on KVM: runs the guest, carries its accesses to the bus, and stops when asked.

**How it is stopped.** A signal ends the kernel's run of the guest. The thread keeps that signal blocked, and
the kernel unblocks it only while the guest runs. So a signal that comes at another moment stays pending, and
the next run ends at once. No handler is needed, which only a program's main thread could install. The signal
is SIGURG, because it does no harm to a thread that does not expect it.

**HLT with interrupts off.** The kernel lets a processor sleep in HLT without telling, even if nothing can
wake it any more. `look_for_halt` interrupts a processor that has been quiet for a while, to see whether that
is so.

**Accesses that end a run** (see `stops`). The kernel has to finish an access before the processor's state is
one to be looked at. So the thread sends itself the signal: the next run finishes the access, and no more.
"""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from nitro_vmm.accel import Bus
from nitro_vmm.accel.kvm import ioctl, programs, structures
from nitro_vmm.accel.kvm.debug import KvmDebug
from nitro_vmm.accel.kvm.ioctl import VcpuFile
from nitro_vmm.accel.kvm.state import VcpuState, restore_vcpu, save_vcpu
from nitro_vmm.accel.kvm.stops import PORT, Return, Stops
from nitro_vmm.accel.kvm.structures import Registers, Segment, Table
from nitro_vmm.accel.state import EntryState, Exit, ExitReason, ProgramState

KICK: Final = signal.SIGURG

CR0: Final = 0x8005_0033
"""PG, AM, WP, NE, ET, MP and PE (Intel SDM vol. 3A, "Control Registers")."""
CR4: Final = 0x20
"""Physical address extension, which 64-bit mode needs."""
EFER: Final = 0x500
"""64-bit mode, enabled and active."""
CODE: Final = 0xB
"""The type of a code segment: execute, read, accessed."""
DATA: Final = 3
"""The type of a data segment: read, write, accessed."""
BUSY_TASK: Final = 0xB
"""The type of a 64-bit task state segment that is in use."""
FLAT_LIMIT: Final = 0xFFFF_FFFF
RFLAGS_ALWAYS_SET: Final = 1 << 1
RFLAGS_INTERRUPTS: Final = 1 << 9

PORT_READ: Final = "reads of ports"
PORT_WRITE: Final = "writes to ports"
DEVICE_READ: Final = "reads of device memory"
DEVICE_WRITE: Final = "writes to device memory"
INTERRUPTED: Final = "looks from here"
OTHER: Final = "others"
KINDS: Final = (PORT_READ, PORT_WRITE, DEVICE_READ, DEVICE_WRITE, INTERRUPTED, OTHER)
"""Why the guest was left: what `KvmVcpu.exits` counts."""

NO_RETURNS: Final = "the instructions are not found by which this kernel returns to programs"
INTERNAL_ERRORS: Final = {
    1: "an instruction that KVM cannot emulate",
    2: "an exception while another one was delivered, which KVM cannot emulate",
    3: "an exit of the host's processor while an event was delivered",
    4: "an exit of the host's processor that KVM does not know",
}
"""``KVM_INTERNAL_ERROR_...`` (Linux, uapi/linux/kvm.h)."""


class KvmVcpu:
    """A `Vcpu`.

    Args:
        file: The kernel's side of it.
        bus: Everything that is not RAM.
        lock: The bus lock.
        stops: Where it has to stop.
        debug: Where a debugger wants it to.
        halted: Says whether all processors have halted for good; asked when this one seems to.
        collected: Called when the kernel has come back, before its reason is looked at: to carry out writes
            that it has collected.
    """

    def __init__(
        self,
        file: VcpuFile,
        bus: Bus,
        lock: AbstractContextManager[bool],
        *,
        stops: Stops,
        debug: KvmDebug,
        halted: Callable[[], bool],
        collected: Callable[[], None] = lambda: None,
    ) -> None:
        # All are there from the start, because another thread adds them up meanwhile.
        self.exits: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        """How often the kernel has come back from the guest, by what for, in words."""
        self.looks_asleep = 0
        """How often in a row it was seen in HLT with interrupts off, or waiting for its start."""
        self._file = file
        self._bus = bus
        self._lock = lock
        self._stops = stops
        self._debug = debug
        self._halted = halted
        self._collected = collected
        self._asked = threading.Condition()
        self._kicked = False
        self._pending: Callable[[], Exit | None] | None = None
        """What is to be done when the kernel has finished an access that ends the run."""
        self._thread: int | None = None
        file.set_signals(set(range(1, 65)) - {KICK})

    def debug(self) -> KvmDebug:
        """See `Vcpu.debug`; the same for all processors."""
        return self._debug

    def enter(self, entry: EntryState) -> None:
        """See `Vcpu.enter`."""
        code = Segment(0, FLAT_LIMIT, entry.code_selector, CODE, present=1, s=1, l=1, g=1)
        data = Segment(0, FLAT_LIMIT, entry.data_selector, DATA, present=1, db=1, s=1, g=1)
        task = Segment(0, 0xFFFF, 0, BUSY_TASK, present=1)
        self._file.set_system_registers(
            replace(
                self._file.system_registers(),
                segments=(code, data, data, data, data, data, task, Segment(unusable=1)),
                gdt=Table(entry.gdt_address, entry.gdt_limit),
                idt=Table(),
                cr0=CR0,
                cr3=entry.cr3,
                cr4=CR4,
                efer=EFER,
            )
        )
        self._file.set_registers(
            Registers(rip=entry.rip, rsi=entry.rsi, rsp=entry.rsp, rflags=RFLAGS_ALWAYS_SET)
        )

    def run(self) -> Exit:
        """See `Vcpu.run`."""
        with self._asked:
            if self._debug.holds(self._file):
                self._asked.wait_for(lambda: self._kicked)
                self._kicked = False
                return Exit(ExitReason.KICKED)
        self._debug.apply(self._file)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
        with self._asked:
            self._thread = threading.get_ident()
            if self._kicked:
                signal.pthread_kill(self._thread, KICK)  # for a kick that came when nothing ran
        try:
            prepares = True
            while True:
                if prepares and not self._stops.prepare(self._file):
                    return self._crash(NO_RETURNS)
                prepares = True
                try:
                    reason = self._file.run()
                except InterruptedError:
                    self.exits[INTERRUPTED] += 1
                    self._collected()
                    if (exit_ := self._finish_access() or self._interrupted()) is not None:
                        return exit_
                    continue
                self.looks_asleep = 0
                self._collected()
                if reason == ioctl.EXIT_IO:
                    # While a kernel prints, looking each time whether it is ready would take long.
                    prepares = self._access_port() == ioctl.IO_OUT
                elif reason == ioctl.EXIT_MMIO:
                    self._access_memory()
                elif (exit_ := self._ended(reason)) is not None:
                    return exit_
        finally:
            with self._asked:
                self._thread = None
            signal.sigtimedwait({KICK}, 0)  # one that came too late must not hit what the thread does next
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kick(self) -> None:
        """See `Vcpu.kick`."""
        with self._asked:
            self._kicked = True
            self._asked.notify_all()
            self._interrupt()

    # Programs of the guest; see `StopsAtPrograms`.

    def watch_programs(self, *, wanted: bool) -> bool:
        """See `StopsAtPrograms`; for all processors of the machine."""
        self._stops.want_programs(wanted=wanted)
        return True

    def watch_page(self, address: int) -> bool:
        """See `StopsAtPrograms`; for all processors of the machine."""
        return self._stops.watch_page(address)

    @property
    def program(self) -> ProgramState | None:
        """See `StopsAtPrograms`."""
        return programs.program_of(self._file)

    def set_general(self, values: Sequence[int]) -> None:
        """See `StopsAtPrograms`."""
        programs.set_general(self._file, values)

    def enter_system_call(self) -> bool:
        """See `StopsAtPrograms`."""
        return programs.enter_system_call(self._file)

    def look_for_halt(self) -> None:
        """Let `run` see whether the guest sleeps for good; from any thread, now and then."""
        with self._asked:
            self._interrupt()

    def state(self, msrs: list[int], xsave_bytes: int) -> VcpuState:
        """See `save_vcpu`; while no `run` goes on."""
        return save_vcpu(self._file, msrs, xsave_bytes)

    def restore(self, state: VcpuState, *, is_first: bool) -> None:
        """See `restore_vcpu`; before the first `run`."""
        restore_vcpu(self._file, state, is_first=is_first)

    def close(self) -> None:
        """Give back what the kernel gave."""
        self._file.close()

    def _interrupt(self) -> None:
        if self._thread is not None:
            signal.pthread_kill(self._thread, KICK)

    def _interrupted(self) -> Exit | None:
        signal.sigtimedwait({KICK}, 0)
        with self._asked:
            kicked, self._kicked = self._kicked, False
        if kicked:
            return Exit(ExitReason.KICKED)
        state = self._file.mp_state()
        asleep = state == ioctl.MP_STATE_UNINITIALIZED or (
            state == ioctl.MP_STATE_HALTED and not self._file.registers().rflags & RFLAGS_INTERRUPTS
        )
        self.looks_asleep = self.looks_asleep + 1 if asleep else 0
        return Exit(ExitReason.HALTED) if asleep and self._halted() else None

    def _access_port(self) -> int:
        """IN or OUT, of one element or, with REP, of several; returns which."""
        shared, bus = self._file.shared, self._bus
        direction, size, port, count, start = structures.RUN_IO.unpack_from(shared, structures.RUN_EXIT)
        if port == PORT and direction == ioctl.IO_OUT:
            kind = self._stops.return_at(self._file.registers().rip)
            if kind is not None:
                self._end_run_by(lambda: self._return(kind))
                return ioctl.IO_OUT
        self.exits[PORT_WRITE if direction == ioctl.IO_OUT else PORT_READ] += 1
        for place in range(start, start + size * count, size):
            if direction == ioctl.IO_OUT:
                value = int.from_bytes(shared[place : place + size], "little")
                with self._lock:
                    bus.write_port(port, size, value)
                bus.finish_output()
            else:
                with self._lock:
                    value = bus.read_port(port, size)
                shared[place : place + size] = value.to_bytes(size, "little")
        return int(direction)

    def _access_memory(self) -> None:
        shared = self._file.shared
        address, data, size, is_write = structures.RUN_MMIO.unpack_from(shared, structures.RUN_EXIT)
        self.exits[DEVICE_WRITE if is_write else DEVICE_READ] += 1
        if (memory := self._stops.page_at(address, size)) is not None:
            self._access_page(memory, data, is_write=is_write)
            return
        with self._lock:
            if is_write:
                self._bus.write_memory(address, size, int.from_bytes(data[:size], "little"))
                return
            value = self._bus.read_memory(address, size)
        place = structures.RUN_MMIO_DATA
        shared[place : place + size] = value.to_bytes(size, "little")

    def _access_page(self, memory: memoryview, data: bytes, *, is_write: bool) -> None:
        if is_write:
            memory[:] = data[: len(memory)]
        else:
            place = structures.RUN_MMIO_DATA
            self._file.shared[place : place + len(memory)] = bytes(memory)
        if self._stops.touched(self._file):
            self._end_run_by(self._at_page)

    def _at_page(self) -> Exit:
        # A machine whose programs are not noticed later must not be saved.
        return Exit(ExitReason.PAGE) if self._stops.finds_returns(self._file) else self._crash(NO_RETURNS)

    def _end_run_by(self, function: Callable[[], Exit | None]) -> None:
        self._pending = function
        with self._asked:
            self._interrupt()

    def _finish_access(self) -> Exit | None:
        function, self._pending = self._pending, None
        return None if function is None else function()

    def _return(self, kind: Return) -> Exit | None:
        """Do what the kernel's instructions would have done by which it returns."""
        try:
            if kind is Return.SYSTEM_CALL:
                programs.system_return(self._file)
            else:
                programs.interrupt_return(self._file, self._stops.memory)
        except LookupError as error:
            return self._crash(str(error))
        return None if self.program is None else Exit(ExitReason.PROGRAM)

    def _ended(self, reason: int) -> Exit | None:
        """What an exit means that is no access."""
        self.exits[OTHER] += 1
        shared = self._file.shared
        match reason:
            case ioctl.EXIT_INTR:
                return None
            case ioctl.EXIT_DEBUG:
                self._debug.stopped(self._file)
                return Exit(ExitReason.DEBUG)
            case ioctl.EXIT_SHUTDOWN:
                return Exit(ExitReason.TRIPLE_FAULT)
            case ioctl.EXIT_FAIL_ENTRY:
                (code,) = structures.RUN_FAIL_ENTRY.unpack_from(shared, structures.RUN_EXIT)
                return self._crash(f"the host's processor refused to run the guest (reason {code:#x})")
            case ioctl.EXIT_INTERNAL_ERROR:
                code, flags, size, data = structures.RUN_INTERNAL.unpack_from(shared, structures.RUN_EXIT)
                what = INTERNAL_ERRORS.get(code, f"an error within KVM ({code})")
                if code == ioctl.INTERNAL_EMULATION and flags & ioctl.INTERNAL_HAS_BYTES:
                    what = f"{what} ({data[:size].hex(' ')})"
                return self._crash(what)
        return self._crash(f"an exit that is not known here ({reason})")

    def _crash(self, what: str) -> Exit:
        return Exit(ExitReason.CRASHED, f"{what}, at {self._file.registers().rip:#x}")
