"""For tests of programs that use this package: tiny kernels, and processors that are Python functions."""

import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nitro_vmm.accel import Bus, EntryState, Exit, ExitReason, Line, Ram, Vcpu, VmState
from nitro_vmm.address_map import COM1

KERNEL_ENTRY: Final = 0x20_0000
"""Where `tiny_kernel` is loaded and begins."""


def tiny_kernel(code: bytes, *, memory_bytes: int = 0x1000) -> bytes:
    """An ELF file of one segment, which an EIF may hold as its kernel.

    Args:
        code: 64-bit instructions, run with interrupts off.
        memory_bytes: How much memory the segment takes, with zeros behind the code.
    """
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    # A file header, and a program header behind it (System V ABI, "ELF Header" and "Program Header").
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, KERNEL_ENTRY, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 120, KERNEL_ENTRY, KERNEL_ENTRY, len(code), memory_bytes, 0x1000)
    return head + segment + code


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

    def __init__(self, *programs: Callable[[FakeVcpu], Exit]) -> None:
        self._programs = programs

    def create_vm(self, ram: Ram, bus: Bus) -> "FakeVm":  # noqa: ARG002 - the programs are given
        """See `Accelerator.create_vm`."""
        return FakeVm(self._programs, bus)


class FakeVm:
    """One machine's processors, with interrupt lines that are remembered; a `Vm`.

    Args:
        programs: One for each processor.
        bus: The machine's.
    """

    tsc_hz: Final = 1_000_000_000

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

    def locked(self, function: Callable[[], None]) -> None:
        """See `Vm.locked`."""
        with self._lock:
            function()

    def state(self) -> VmState:
        """See `Vm.state`."""
        return VmState()

    def restore(self, state: VmState) -> None:
        """See `Vm.restore`."""

    def close(self) -> None:
        """See `Vm.close`."""
        self.closed = True
