"""The IO-APIC: turns interrupt lines into messages to the local APIC.

Sources: Intel 82093AA datasheet (registers, remote IRR), and the datasheets of the ICH family for version
0x20 with its EOI register. There is one processor, so destinations are kept but not looked at.

An edge-triggered pin sends one message each time its line rises. A level-triggered pin sends one when its
line is up and the pin is neither masked nor in service ("remote IRR"). The end of the interrupt clears remote
IRR, and if the line is still up, the pin sends again.
"""

from collections.abc import Callable

from nitro_vmm.devices.io_apic_registers import (
    ARBITRATION,
    DELIVERY_MODE,
    END_OF_INTERRUPT,
    ID,
    LEVEL,
    LOWEST_PRIORITY,
    MASKED,
    REDIRECTION_TABLE,
    REGISTER_SELECT,
    REMOTE_IRR,
    VERSION,
    VERSION_WITH_EOI_REGISTER,
    WINDOW,
    WRITABLE,
    IoApicState,
)
from nitro_vmm.errors import StateError


class IoApic:
    """The register pair, the redirection table and the lines.

    Args:
        deliver: The local APIC's `accept`: vector and "is level-triggered" in, false when it was refused.
        pins: How many interrupt lines there are.
        io_apic_id: Its number at power-up; the guest may set another.
    """

    def __init__(self, deliver: Callable[[int, bool], bool], *, pins: int = 24, io_apic_id: int = 0) -> None:
        self._deliver = deliver
        self._pins = pins
        self._id = io_apic_id
        self._selected = 0
        self._entries = [MASKED] * pins
        self._lines = [False] * pins

    def state(self) -> IoApicState:
        """What to save so that `restore` goes on from here."""
        lines = sum(1 << pin for pin, level in enumerate(self._lines) if level)
        return IoApicState(self._id, self._selected, tuple(self._entries), lines)

    def restore(self, state: IoApicState) -> None:
        """Go on from a saved state. It sends nothing: what was sent before is in the local APIC's state.

        Raises:
            StateError: The saved one has another number of pins. Nothing has changed.
        """
        if len(state.entries) != self._pins:
            raise StateError(f"the saved IO-APIC has {len(state.entries)} pins, this one has {self._pins}")
        self._id = state.io_apic_id
        self._selected = state.selected
        self._entries = list(state.entries)
        self._lines = [bool(state.lines >> pin & 1) for pin in range(self._pins)]

    def read(self, offset: int, size: int) -> int:
        """Read which register is selected, or the selected one through the window; anything else reads 0."""
        if offset == REGISTER_SELECT:
            value = self._selected
        elif offset == WINDOW:
            value = self._read_selected()
        else:
            value = 0
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register, write the selected one, or end a level interrupt."""
        if offset == REGISTER_SELECT:
            self._selected = value & 0xFF
        elif offset == WINDOW and size == 4:
            self._write_selected(value)
        elif offset == END_OF_INTERRUPT:
            self.end_of_interrupt(value & 0xFF)

    def set_line(self, pin: int, level: bool) -> None:  # noqa: FBT001 - the level of a wire
        """Drive a line. "Up" means that the device wants attention, whatever polarity the guest has set."""
        if self._lines[pin] == level:
            return
        self._lines[pin] = level
        if level:
            self._send(pin)

    def line(self, pin: int) -> Callable[[bool], None]:
        """`set_line` of one pin, as devices want it."""
        return lambda level: self.set_line(pin, level)

    def end_of_interrupt(self, vector: int) -> None:
        """The guest has served ``vector``: pins that sent it may send again, and do if their lines are up."""
        for pin, entry in enumerate(self._entries):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self._entries[pin] = entry & ~REMOTE_IRR
                self._send(pin)

    def _send(self, pin: int) -> None:
        """Send the message of a pin whose line is up, if its entry lets it."""
        entry = self._entries[pin]
        if not self._lines[pin] or entry & (MASKED | REMOTE_IRR):
            return
        if entry & DELIVERY_MODE not in (0, LOWEST_PRIORITY):
            return
        if entry & LEVEL:
            if self._deliver(entry & 0xFF, True):
                self._entries[pin] |= REMOTE_IRR
        else:
            self._deliver(entry & 0xFF, False)

    def _read_selected(self) -> int:
        if self._selected in (ID, ARBITRATION):
            return self._id << 24
        if self._selected == VERSION:
            return (self._pins - 1) << 16 | VERSION_WITH_EOI_REGISTER
        pin, high = divmod(self._selected - REDIRECTION_TABLE, 2)
        if 0 <= pin < self._pins:
            return self._entries[pin] >> 32 * high & 0xFFFF_FFFF
        return 0

    def _write_selected(self, value: int) -> None:
        if self._selected == ID:
            self._id = value >> 24 & 0xF
            return
        pin, high = divmod(self._selected - REDIRECTION_TABLE, 2)
        if not 0 <= pin < self._pins:
            return
        before = self._entries[pin]
        if high:
            self._entries[pin] = before & 0xFFFF_FFFF | value << 32 & WRITABLE
            return
        entry = before & ~0xFFFF_FFFF | value & WRITABLE
        if entry & LEVEL:
            # Switching a pin to edge and back is how Linux clears remote IRR without an EOI register.
            entry |= before & REMOTE_IRR
        self._entries[pin] = entry
        if entry & LEVEL:
            self._send(pin)
