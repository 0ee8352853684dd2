"""The state in which a processor starts a kernel."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EntryState:
    """The processor's registers at the kernel's first instruction.

    64-bit mode (CR4.PAE, EFER.LME and LMA, CR0.PG and PE), interrupts off, CS and the data segments loaded
    from the GDT by these selectors; what is not mentioned is 0.
    """

    rip: int
    rsi: int
    """``boot_params``."""
    rsp: int
    cr3: int
    gdt_address: int
    gdt_limit: int
    code_selector: int
    data_selector: int
    command_line: bytes
    """As the guest sees it."""
