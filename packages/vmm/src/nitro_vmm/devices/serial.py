"""A 16550A serial port: the guest's console.

Source: National Semiconductor PC16550D datasheet. The line is infinitely fast: a byte has left as soon as it
is written, so the transmitter is always empty and a polling guest never waits. Bytes for the guest wait in a
queue that is deeper than the chip's FIFO. A guest cannot tell, because it reads until the line status says
that there is no more.

Input is taken only while it could interrupt: enabled in IER, and connected by OUT2 as a PC wires it. In Linux
that is so once a program has opened the terminal, after it has cleared the FIFOs. So what was typed or piped
in during the boot waits on the host; the real chip would lose it.
"""

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from nitro_vmm.devices.state import require, require_bytes, require_flags, require_whole


class Register(IntEnum):
    """Offsets from the port's base.

    While DLAB is set, the divisor latch is at 0 and 1. Reading 2 gives IIR, writing it sets FCR.
    """

    DATA = 0
    INTERRUPT_ENABLE = 1
    INTERRUPT_IDENTIFICATION = 2
    FIFO_CONTROL = 2
    LINE_CONTROL = 3
    MODEM_CONTROL = 4
    LINE_STATUS = 5
    MODEM_STATUS = 6
    SCRATCH = 7


IER_RECEIVED: Final = 0x01
IER_TRANSMITTER_EMPTY: Final = 0x02
IER_LINE_STATUS: Final = 0x04
IER_MODEM_STATUS: Final = 0x08

IIR_MODEM_STATUS: Final = 0x00
IIR_NONE: Final = 0x01
IIR_TRANSMITTER_EMPTY: Final = 0x02
IIR_RECEIVED: Final = 0x04
IIR_LINE_STATUS: Final = 0x06
IIR_RECEIVED_TIMEOUT: Final = 0x0C
IIR_FIFOS_ENABLED: Final = 0xC0

FCR_ENABLE: Final = 0x01
FCR_CLEAR_RECEIVED: Final = 0x02
FCR_TRIGGERS: Final = (1, 4, 8, 14)

LCR_DLAB: Final = 0x80

MCR_DTR: Final = 0x01
MCR_RTS: Final = 0x02
MCR_OUT1: Final = 0x04
MCR_OUT2: Final = 0x08
MCR_LOOPBACK: Final = 0x10

LSR_RECEIVED: Final = 0x01
LSR_OVERRUN: Final = 0x02
LSR_TRANSMITTER_EMPTY: Final = 0x60
"""Both the holding register and the shift register."""

MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80
MSR_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD

INPUT_BYTES_MAX: Final = 1024
"""How much input waits inside the port. That is enough for a pasted line; the host's pipe holds the rest."""


class SerialState(NamedTuple):
    """A port as a guest left it. What the guest sent has left already, and is no part of it."""

    received: bytes
    """Input that the guest has not read."""
    refused: bool
    """Whether the host has more input, which it offers again when the port says that it is ready."""
    divisor: int
    """The divisor latch, 16 bits; it changes nothing, as the line is infinitely fast."""
    enabled: int
    """The interrupt enable register."""
    transmitter_empty_due: bool
    """Whether "the transmitter is empty" is still to be reported as the cause of an interrupt."""
    fifos: bool
    """Whether the FIFOs are enabled."""
    trigger: int
    """How many received bytes make an interrupt at once; fewer count as timed out. One of `FCR_TRIGGERS`."""
    line_control: int
    """The line control register."""
    modem_control: int
    """The modem control register."""
    overrun: bool
    """Whether a looped back byte was lost since the line status was read."""
    modem: int
    """The upper half of the modem status register: the levels of its lines."""
    modem_changes: int
    """Its lower half: which of them have changed since it was read."""
    scratch: int
    """The scratch register."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        require_bytes(self, "received", INPUT_BYTES_MAX)
        require_flags(self, "refused", "transmitter_empty_due", "fifos", "overrun")
        require_whole(self, divisor=0xFFFF, enabled=0x0F, line_control=0xFF, modem_control=0x1F)
        require_whole(self, modem=0xF0, modem_changes=0x0F, scratch=0xFF, trigger=FCR_TRIGGERS[-1])
        require(self, "trigger", self.trigger in FCR_TRIGGERS, f"one of {FCR_TRIGGERS}")
        require(self, "modem", not self.modem & 0x0F, "four upper bits")


class Serial:
    """One port: eight registers, a wire to the interrupt controller, a wire out.

    Args:
        line: The interrupt line.
        transmit: Called with each byte that the guest sends.
        ready: Called within a guest's access when `receive` would take input again, after it has refused
            some.
    """

    def __init__(
        self,
        line: Callable[[bool], None],
        transmit: Callable[[bytes], None],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._line = line
        self._transmit = transmit
        self._ready = ready
        self._refused = False
        self._level = False
        self._input: deque[int] = deque()
        self._divisor = 12
        self._enabled = 0
        self._transmitter_empty_due = False
        self._fifos = False
        self._trigger = 1
        self._line_control = 0
        self._modem_control = 0
        self._overrun = False
        self._modem = MSR_CONNECTED
        self._modem_changes = 0
        self._scratch = 0

    def state(self) -> SerialState:
        """What to save so that `restore` goes on from here."""
        return SerialState(
            received=bytes(self._input),
            refused=self._refused,
            divisor=self._divisor,
            enabled=self._enabled,
            transmitter_empty_due=self._transmitter_empty_due,
            fifos=self._fifos,
            trigger=self._trigger,
            line_control=self._line_control,
            modem_control=self._modem_control,
            overrun=self._overrun,
            modem=self._modem,
            modem_changes=self._modem_changes,
            scratch=self._scratch,
        )

    def restore(self, state: SerialState) -> None:
        """Go on from a saved state, and drive the interrupt line accordingly."""
        self._input = deque(state.received)
        self._refused = state.refused
        self._divisor = state.divisor
        self._enabled = state.enabled
        self._transmitter_empty_due = state.transmitter_empty_due
        self._fifos = state.fifos
        self._trigger = state.trigger
        self._line_control = state.line_control
        self._modem_control = state.modem_control
        self._overrun = state.overrun
        self._modem = state.modem
        self._modem_changes = state.modem_changes
        self._scratch = state.scratch
        # Said again even if it is the same: the interrupt controller may be one that was not restored.
        self._level = self._cause() != IIR_NONE
        self._line(self._level)

    def receive(self, data: bytes) -> int:
        """Give the guest input.

        Returns:
            How many bytes were taken, from the start of ``data``.
        """
        room = INPUT_BYTES_MAX - len(self._input) if self._listening() else 0
        taken = data[:room]
        self._refused = len(taken) < len(data)
        self._input.extend(taken)
        self._update()
        return len(taken)

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - the registers are bytes
        """Read a register, with the effects that this has on the chip."""
        if offset == Register.LINE_STATUS:
            return self._read_line_status()
        latch = self._line_control & LCR_DLAB
        match offset:
            case Register.DATA:
                return self._divisor & 0xFF if latch else self._read_data()
            case Register.INTERRUPT_ENABLE:
                return self._divisor >> 8 if latch else self._enabled
            case Register.INTERRUPT_IDENTIFICATION:
                return self._read_interrupt_identification()
            case Register.LINE_CONTROL:
                return self._line_control
            case Register.MODEM_CONTROL:
                return self._modem_control
            case Register.MODEM_STATUS:
                return self._read_modem_status()
            case Register.SCRATCH:
                return self._scratch
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002 - the registers are bytes
        """Write a register; line and modem status cannot be written."""
        value &= 0xFF
        latch = self._line_control & LCR_DLAB
        match offset:
            case Register.DATA if not latch:
                self._write_data(value)
            case Register.DATA:
                self._divisor = self._divisor & 0xFF00 | value
            case Register.INTERRUPT_ENABLE if not latch:
                self._write_interrupt_enable(value)
            case Register.INTERRUPT_ENABLE:
                self._divisor = self._divisor & 0xFF | value << 8
            case Register.FIFO_CONTROL:
                self._write_fifo_control(value)
            case Register.LINE_CONTROL:
                self._line_control = value
            case Register.MODEM_CONTROL:
                self._write_modem_control(value)
            case Register.SCRATCH:
                self._scratch = value

    def _cause(self) -> int:
        """The most urgent reason to interrupt, as IIR names it (PC16550D table III)."""
        enabled = self._enabled
        if not enabled:
            return IIR_NONE
        if enabled & IER_LINE_STATUS and self._overrun:
            return IIR_LINE_STATUS
        if enabled & IER_RECEIVED and self._input:
            # Fewer bytes than the trigger level interrupt after a time-out of four characters. On a line that
            # is infinitely fast this time is over at once.
            return IIR_RECEIVED if len(self._input) >= self._trigger else IIR_RECEIVED_TIMEOUT
        if self._transmitter_empty_due:
            return IIR_TRANSMITTER_EMPTY
        if enabled & IER_MODEM_STATUS and self._modem_changes:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update(self) -> None:
        level = self._cause() != IIR_NONE
        if level != self._level:
            self._level = level
            self._line(level)

    def _read_data(self) -> int:
        if not self._input:
            return 0
        value = self._input.popleft()
        if not self._input:
            self._update()
            self._accept_again()
        return value

    def _write_data(self, value: int) -> None:
        if not self._modem_control & MCR_LOOPBACK:
            self._transmit(bytes((value,)))
        elif len(self._input) < INPUT_BYTES_MAX:
            self._input.append(value)
        else:
            self._overrun = True
        if self._enabled:
            self._transmitter_empty_due = bool(self._enabled & IER_TRANSMITTER_EMPTY)
            self._update()

    def _listening(self) -> bool:
        return bool(self._modem_control & MCR_OUT2 and self._enabled & IER_RECEIVED)

    def _accept_again(self) -> None:
        if self._refused and self._listening():
            self._refused = False
            self._ready()

    def _write_interrupt_enable(self, value: int) -> None:
        newly = value & ~self._enabled
        self._enabled = value & 0x0F
        if newly & IER_TRANSMITTER_EMPTY:
            self._transmitter_empty_due = True
        elif not value & IER_TRANSMITTER_EMPTY:
            self._transmitter_empty_due = False
        self._update()
        self._accept_again()

    def _read_interrupt_identification(self) -> int:
        cause = self._cause()
        if cause == IIR_TRANSMITTER_EMPTY:
            self._transmitter_empty_due = False
            self._update()
        return cause | IIR_FIFOS_ENABLED if self._fifos else cause

    def _write_fifo_control(self, value: int) -> None:
        # The chip also clears the FIFOs when they are switched on or off. Linux does that right after it has
        # enabled the interrupt, and input that the host has just given would be lost, so it is kept here.
        if value & FCR_CLEAR_RECEIVED:
            self._input.clear()
        self._fifos = bool(value & FCR_ENABLE)
        self._trigger = FCR_TRIGGERS[value >> 6] if self._fifos else 1
        self._update()
        self._accept_again()

    def _write_modem_control(self, value: int) -> None:
        self._modem_control = value & 0x1F
        modem = MSR_CONNECTED
        if value & MCR_LOOPBACK:
            modem = (
                (MSR_DSR if value & MCR_DTR else 0)
                | (MSR_CTS if value & MCR_RTS else 0)
                | (MSR_RI if value & MCR_OUT1 else 0)
                | (MSR_DCD if value & MCR_OUT2 else 0)
            )
        changed = self._modem ^ modem
        if modem & MSR_RI:
            changed &= ~MSR_RI  # the ring indicator reports only that a ring has ended
        self._modem = modem
        self._modem_changes |= changed >> 4
        self._update()
        self._accept_again()

    def _read_line_status(self) -> int:
        status = LSR_TRANSMITTER_EMPTY
        if self._input:
            status |= LSR_RECEIVED
        if self._overrun:
            status |= LSR_OVERRUN
            self._overrun = False
            self._update()
        return status

    def _read_modem_status(self) -> int:
        status = self._modem | self._modem_changes
        if self._modem_changes:
            self._modem_changes = 0
            self._update()
        return status
