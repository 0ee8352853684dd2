"""For tests of programs that use this package: tiny kernels, and processors that are Python functions."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from nitro_vmm.accel import Attended, Bus, Debug, EntryState, Exit, ExitReason, Line, Ram, Vcpu, VmState
from nitro_vmm.address_map import COM1
from nitro_vmm.boot import elf

KERNEL_ENTRY: Final = 0x20_0000
"""Where `tiny_kernel` is loaded and begins."""


class ElfSegment(NamedTuple):
    """A segment of an ELF file to be made: what the loader puts where."""

    address: int
    """Physical."""
    data: bytes
    memory_bytes: int
    """How much memory it takes, with zeros behind the data."""
    virtual_address: int = 0
    """What the file says it is; 0 for the physical one."""


def elf_kernel(
    segments: Sequence[ElfSegment], *, entry: int = KERNEL_ENTRY, machine: int = elf.EM_X86_64
) -> bytes:
    """An ELF file with these segments (System V ABI, "ELF Header" and "Program Header").

    Args:
        segments: All readable, writable and executable, in the order in which they are in the file.
        entry: Address of the first instruction.
        machine: What it says that it is for (``e_machine``).
    """
    ident = elf.IDENT_64_LITTLE + b"\x01" + bytes(9)
    executable, readable_writable_executable, page_bytes = 2, 7, 4096
    sizes = (elf.HEADER.size, elf.PROGRAM_HEADER.size, len(segments), 0, 0, 0)
    head = elf.HEADER.pack(ident, executable, machine, 1, entry, elf.HEADER.size, 0, 0, *sizes)
    offset = elf.HEADER.size + len(segments) * elf.PROGRAM_HEADER.size
    for segment in segments:
        virtual_address = segment.virtual_address or segment.address
        place = (offset, virtual_address, segment.address, len(segment.data), segment.memory_bytes)
        head += elf.PROGRAM_HEADER.pack(elf.PT_LOAD, readable_writable_executable, *place, page_bytes)
        offset += len(segment.data)
    return head + b"".join(segment.data for segment in segments)


def tiny_kernel(code: bytes, *, memory_bytes: int = 0x1000) -> bytes:
    """An ELF file of one segment, which an EIF may hold as its kernel.

    Args:
        code: 64-bit instructions, run with interrupts off.
        memory_bytes: How much memory the segment takes, with zeros behind the code.
    """
    return elf_kernel([ElfSegment(KERNEL_ENTRY, code, memory_bytes)])


class FakeState(NamedTuple):
    """The state of processors that keep nothing."""

    def check(self) -> None:
        """See `VmState.check`; does nothing."""


class FakeVcpu:
    """A processor that runs a Python function instead of guest code; a `Vcpu`.

    Args:
        program: Called in the processor's thread, each time that it runs; returns why it stopped.
        bus: What the program reaches.
    """

    def __init__(self, program: "Callable[[FakeVcpu], Exit]", bus: Bus) -> None:
        self.bus = bus
        """The machine's devices."""
        self.runs: int = 0
        """How often it was run."""
        self._program = program
        self._kicked = threading.Event()

    def debug(self) -> Debug | None:
        """See `Vcpu.debug`."""
        return None

    def enter(self, entry: EntryState) -> None:
        """See `Vcpu.enter`."""

    def run(self) -> Exit:
        """See `Vcpu.run`."""
        self.runs += 1
        exit_ = self._program(self)
        if exit_.reason is ExitReason.KICKED:
            self._kicked.clear()
        return exit_

    def kick(self) -> None:
        """See `Vcpu.kick`."""
        self._kicked.set()

    def wait_for_kick(self) -> Exit:
        """Do nothing until somebody wants the processor to stop; what a program may return."""
        self._kicked.wait()
        return Exit(ExitReason.KICKED)

    def print(self, text: bytes) -> None:
        """Print on the console, as a guest does."""
        for byte in text:
            self.bus.write_port(COM1, 1, byte)
            self.bus.finish_output()


class FakeAccelerator:
    """Makes machines whose processors are Python functions; an `Accelerator`, which makes a `FakeVm`.

    Args:
        programs: One for each processor, see `FakeVcpu`.
    """

    name: Final = "fake"
    processors_max: Final = 15

    def __init__(self, *programs: Callable[[FakeVcpu], Exit]) -> None:
        self._programs = programs

    @property
    def processors_default(self) -> int:
        """See `Accelerator.processors_default`."""
        return len(self._programs)

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> "FakeVm":  # noqa: ARG002
        """See `Accelerator.create_vm`; there is a processor for each program."""
        return FakeVm(self._programs, bus)


class FakeVm:
    """One machine's processors, with interrupt lines that are remembered; a `Vm`.

    Args:
        programs: One for each processor.
        bus: The machine's.
    """

    tsc_hz: Final = 1_000_000_000
    kvm_clock: Final = False

    def __init__(self, programs: Iterable[Callable[[FakeVcpu], Exit]], bus: Bus) -> None:
        self.vcpus: Sequence[Vcpu] = [FakeVcpu(program, bus) for program in programs]
        self.lines: dict[int, bool] = {}
        """The level of each interrupt line that was ever set."""
        self.closed: bool = False
        """Whether the machine is done with it."""
        self._lock = threading.RLock()

    def line(self, irq: int) -> Line:
        """See `Vm.line`."""

        def set_level(level: bool) -> None:  # noqa: FBT001 - the shape of a line
            self.lines[irq] = level

        return set_level

    def signal_on_write(self, address: int, value: int, eventfd: int) -> None:
        """See `Vm.signal_on_write`; does nothing."""

    def share_word(self, address: int, word: memoryview) -> None:
        """See `Vm.share_word`; does nothing."""

    def attend(self, device: Attended) -> None:
        """See `Vm.attend`; does nothing."""

    def locked(self, function: Callable[[], None]) -> None:
        """See `Vm.locked`."""
        with self._lock:
            function()

    def state(self) -> VmState:
        """See `Vm.state`."""
        return FakeState()

    def restore(self, state: VmState) -> None:
        """See `Vm.restore`."""

    def close(self) -> None:
        """See `Vm.close`."""
        self.closed = True
