"""The IO-APIC's registers: where they are, what their bits mean, and what is saved of them.

Sources: Intel 82093AA datasheet, and those of the ICH family for the EOI register.
"""

from typing import Final, NamedTuple

from nitro_vmm.devices.state import require, require_whole, require_whole_tuple

REGISTER_SELECT: Final = 0x00
WINDOW: Final = 0x10
END_OF_INTERRUPT: Final = 0x40

ID: Final = 0x00
VERSION: Final = 0x01
ARBITRATION: Final = 0x02
REDIRECTION_TABLE: Final = 0x10

VERSION_WITH_EOI_REGISTER: Final = 0x20

# Bits of a redirection entry (82093AA §3.2.4).
DELIVERY_MODE: Final = 0x7 << 8
LOWEST_PRIORITY: Final = 0x1 << 8
ACTIVE_LOW: Final = 1 << 13
REMOTE_IRR: Final = 1 << 14
LEVEL: Final = 1 << 15
MASKED: Final = 1 << 16
WRITABLE: Final = 0xFF00_0000_0001_AFFF
"""All but remote IRR, delivery status and the reserved bits."""


PINS_MAX: Final = 240
"""As many redirection entries as the version register can announce (82093AA §3.2.2)."""
ENTRY_MAX: Final = (1 << 64) - 1


class IoApicState(NamedTuple):
    """The IO-APIC as a guest left it."""

    io_apic_id: int
    """Its number, which the guest may have set."""
    selected: int
    """Which register the window shows."""
    entries: tuple[int, ...]
    """The redirection table, a number of 64 bits a pin."""
    lines: int
    """The lines that are up: bit N is pin N."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        require_whole(self, io_apic_id=0xF, selected=0xFF)
        require_whole_tuple(self, "entries", ENTRY_MAX, lengths=range(1, PINS_MAX + 1))
        possible = all(not entry & ~(WRITABLE | REMOTE_IRR) for entry in self.entries)
        require(self, "entries", possible, "free of reserved bits")
        require_whole(self, lines=(1 << len(self.entries)) - 1)
