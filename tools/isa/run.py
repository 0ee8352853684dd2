"""Runs the program on either side, and gives back what it wrote."""

import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass

from isa import layout
from isa.inputs import KINDS
from nitro_vmm.accel import ExitReason, open_accelerator
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode

TIMEOUT_S = 120
"""How long a process may take, whatever it waits for."""
PROCESSOR_S, RUNS_PER_S = 2, 4_000
"""How much processor time it may take: so many seconds, and one more for so many runs of a form."""
HOST_ENTRY = layout.BASE + 16


MREMAP_MAYMOVE_FIXED = 3
EXCEPTION, GUEST_CRASHED, NO_MEMORY = 99, 98, 97
CODES = {
    EXCEPTION: "a Python exception",
    GUEST_CRASHED: "a crash of the guest",
    NO_MEMORY: "no memory at the harness's address",
}

Piece = Callable[[int, int], memoryview]
"""The memory from an address on, of a length."""


class RunError(Exception):
    """A side did not come to its end; the message says how.

    Attributes:
        form: which one it was at, counted from the first of the run.
    """

    def __init__(self, message: str, form: int) -> None:
        super().__init__(message)
        self.form = form


@dataclass(frozen=True, slots=True)
class Work:
    """A program with its inputs, and what of it to run."""

    program: bytes
    inputs: dict[str, bytes]
    count: int
    """Inputs of each kind."""

    @property
    def results_address(self) -> int:
        """Behind the inputs."""
        end = layout.INPUTS + len(KINDS) * self.count * layout.RECORD_BYTES
        return (end + MIB - 1) & ~(MIB - 1)

    def image(self, first: int, forms: int) -> list[tuple[int, bytes]]:
        """What to put where in memory to run some forms."""
        control = struct.pack("<4Q", first, forms, self.count, self.results_address)
        pieces = [(layout.BASE, self.program), (layout.CONTROL, control)]
        for number, kind in enumerate(KINDS):
            pieces.append((layout.INPUTS + number * self.count * layout.RECORD_BYTES, self.inputs[kind]))
        return pieces

    def results_bytes(self, forms: int) -> int:
        """How much the results take."""
        return forms * self.count * layout.RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Results:
    """What one side wrote."""

    records: bytes
    features: tuple[int, ...]
    """EAX, EBX, ECX and EDX of CPUID's leaves 1, 7 and 0x80000001."""


class _NoBus:
    """Nothing is there."""

    def read_port(self, _port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write_port(self, _port: int, _size: int, _value: int) -> None: ...

    def read_memory(self, _address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write_memory(self, _address: int, _size: int, _value: int) -> None: ...

    def finish_output(self) -> None: ...


class _Ram:
    def __init__(self, size: int) -> None:
        self.buffer = mmap.mmap(-1, size)

    def slice(self, address: int, length: int) -> memoryview:
        return memoryview(self.buffer)[address : address + length]


def emulated(work: Work, first: int, forms: int) -> Results:
    """Run forms on `nitro_vmm`'s processor, in a process of its own, for a form may kill it.

    Raises:
        RunError: the guest crashed, or the process died or did not end.
    """
    size = work.results_address + work.results_bytes(forms)
    size = (size + 2 * MIB - 1) & ~(2 * MIB - 1)
    ram = _Ram(size)
    long_mode.write(ram)
    _fill(ram.slice, work, first, forms)
    _in_a_process(lambda: _run_guest(ram, size), "the guest's process", ram.slice, work, forms)
    return _results(ram.slice, work, forms)


def native(work: Work, first: int, forms: int) -> Results:
    """Run forms on this machine's processor, in a process of their own.

    Raises:
        RunError: the process died or did not end.
    """
    size = work.results_address + work.results_bytes(forms) - layout.BASE
    size = (size + mmap.PAGESIZE - 1) & ~(mmap.PAGESIZE - 1)
    shared = mmap.mmap(-1, size)

    def piece(address: int, length: int) -> memoryview:
        return memoryview(shared)[address - layout.BASE : address - layout.BASE + length]

    _fill(piece, work, first, forms)
    _in_a_process(lambda: _run_here(shared, size), "this machine's process", piece, work, forms)
    return _results(piece, work, forms)


def _fill(piece: Piece, work: Work, first: int, forms: int) -> None:
    for address, data in work.image(first, forms):
        piece(address, len(data))[:] = data


def _in_a_process(call: Callable[[], int], what: str, piece: Piece, work: Work, forms: int) -> None:
    """Call a function in a child, whose exit code is what it returns.

    Raises:
        RunError: it is not 0, or the child died.
    """
    child = os.fork()
    if not child:
        try:
            for number in (signal.SIGALRM, signal.SIGPROF):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(TIMEOUT_S)
            signal.setitimer(signal.ITIMER_PROF, PROCESSOR_S + forms * work.count / RUNS_PER_S)
            os._exit(call())
        finally:
            os._exit(EXCEPTION)
    _, status = os.waitpid(child, 0)
    if status:
        left = int.from_bytes(piece(layout.CONTROL + 8, 8), "little")
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else CODES.get(code, f"exit code {code}")
        raise RunError(f"{what} ended with {how}", forms - left - 1)


def _run_guest(ram: "_Ram", size: int) -> int:
    machine = open_accelerator("unicorn").create_vm([(RamRange(0, size), ram.buffer)], _NoBus())
    (processor,) = machine.vcpus
    processor.enter(long_mode.entry_state(layout.BASE, rsp=layout.SCRATCH_STACK))
    return 0 if processor.run().reason is ExitReason.HALTED else GUEST_CRASHED


def _run_here(shared: mmap.mmap, size: int) -> int:
    """Move the shared memory to its address, and call the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    here = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    moved = libc.mremap(here, size, size, MREMAP_MAYMOVE_FIXED, layout.BASE)
    if moved != layout.BASE or libc.mprotect(
        layout.BASE, size, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ):
        return NO_MEMORY
    ctypes.CFUNCTYPE(ctypes.c_int)(HOST_ENTRY)()
    return 0


def _results(piece: Piece, work: Work, forms: int) -> Results:
    records = bytes(piece(work.results_address, work.results_bytes(forms)))
    features = struct.unpack("<12I", piece(layout.FEATURES, 48))
    return Results(records, features)
