"""The state of processors: in which one a kernel starts, why a run ends, and what a saved machine keeps."""

from enum import Enum, auto
from typing import NamedTuple, Protocol


class EntryState(NamedTuple):
    """The processor's registers at the kernel's first instruction.

    64-bit mode (CR4.PAE, EFER.LME and LMA, CR0.PG and PE), interrupts off, CS and the data segments loaded
    from the GDT by these selectors; what is not mentioned is 0.
    """

    rip: int
    """The address of the first instruction."""
    rsi: int
    """The address of ``boot_params``."""
    rsp: int
    """The top of the stack."""
    cr3: int
    """The address of the page tables."""
    gdt_address: int
    """Where the global descriptor table is."""
    gdt_limit: int
    """Its size in bytes, less one."""
    code_selector: int
    """What CS is loaded with."""
    data_selector: int
    """What DS, ES, FS, GS and SS are loaded with."""
    command_line: bytes
    """The kernel's command line, as the guest sees it."""


class ExitReason(Enum):
    """Why a processor's run came to an end."""

    KICKED = auto()
    """Somebody asked for it."""
    HALTED = auto()
    """HLT with interrupts off: nothing can wake the processor any more."""
    TRIPLE_FAULT = auto()
    """An exception could not be delivered, nor the double fault that follows."""
    DEBUG = auto()
    """A breakpoint, or the end of a debugger's step."""
    PROGRAM = auto()
    """A program of the guest's is about to run, and `StopsAtPrograms.watch_programs` was asked for."""
    PAGE = auto()
    """The guest has touched the page of `StopsAtPrograms.watch_page`."""
    CRASHED = auto()
    """The guest ran where there is no code, or did what the accelerator cannot run."""


class Exit(NamedTuple):
    """The end of a run."""

    reason: ExitReason
    """Why."""
    details: str = ""
    """More about a crash, for people."""


class ProgramState(NamedTuple):
    """A 64-bit program of the guest's, before whose next instruction its processor stands."""

    general: tuple[int, ...]
    """The general registers: RAX RCX RDX RBX RSP RBP RSI RDI R8 and so on to R15."""
    rip: int
    """Where that instruction is."""
    page_tables: int
    """CR3."""


class VmState(Protocol):
    """What a saved machine keeps of processors and interrupt controllers. Each accelerator has a class."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
