"""The local APIC of the one processor: which interrupt comes next, and the timer.

Source: Intel SDM vol. 3A, chapter "Advanced Programmable Interrupt Controller (APIC)"; sections are named by
their titles because their numbers change between editions.

A vector's way: `accept` sets its bit in IRR; `pending_vector` names it once its class (the upper four bits)
is above the processor's priority (PPR: the task priority TPR or the class being served, whichever is higher);
the processor takes it and `acknowledge` moves the bit to ISR; the guest's write to EOI clears it there, and
if it came from a level-triggered line (TMR) the IO-APIC is told, which sends it again while the line is up.

The processor may take the vector long before anybody calls `acknowledge`. Until then an IRR bit says
"pending" for an interrupt that is being served, so `acknowledge` has to come before any other call.

Not offered: x2APIC, TSC-deadline mode, NMI, SMI and start-up messages, suppression of EOI broadcasts. TPR is
reached by MMIO only (CR8 stays within the processor).
"""

from collections.abc import Callable
from typing import Final

EOI: Final = 0xB0
ICR_LOW: Final = 0x300
INITIAL_COUNT: Final = 0x380

LVT_TIMER: Final = 0x320
LVT_THERMAL: Final = 0x330
LVT_PERFORMANCE: Final = 0x340
LVT_LINT0: Final = 0x350
LVT_LINT1: Final = 0x360
LVT_ERROR: Final = 0x370

LVT_MASKED: Final = 1 << 16
LVT_PERIODIC: Final = 1 << 17
LVT_WRITABLE: Final = {
    LVT_TIMER: 0x3_00FF,
    LVT_THERMAL: 0x1_07FF,
    LVT_PERFORMANCE: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF,
    LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}
"""The bits of each local vector table entry that keep what is written (figure "Local Vector Table (LVT)")."""

VERSION: Final = 0x14 | (len(LVT_WRITABLE) - 1) << 16
SOFTWARE_ENABLED: Final = 1 << 8
VECTOR_MIN: Final = 16
"""Lower ones are illegal (section "Valid Interrupt Vectors")."""

ERROR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ERROR_RECEIVED_ILLEGAL_VECTOR: Final = 1 << 6
ERROR_ILLEGAL_REGISTER: Final = 1 << 7

PERIOD_NS_MIN: Final = 200_000
"""A guest that asks for a faster periodic timer gets this one, as under KVM: it cannot keep the host busy."""

NS_PER_S: Final = 1_000_000_000


class LocalApic:
    """The register page and the state behind it.

    Args:
        clock_ns: A monotonic clock, nanoseconds.
        timer_hz: What the timer counts before its divider.
        changed: Called when `pending_vector` has another answer than before, or when `deadline_ns` has come
            nearer; not called by `acknowledge`, whose caller asks by itself.
        apic_id: The processor's number as the MP table and the MADT give it.
    """

    def __init__(
        self, clock_ns: Callable[[], int], timer_hz: int, changed: Callable[[], None], *, apic_id: int = 0
    ) -> None:
        self.end_of_level_interrupt: Callable[[int], None] = lambda _vector: None
        """The IO-APIC's: called with the vector at the EOI of a level-triggered interrupt."""
        self._clock_ns = clock_ns
        self._timer_hz = timer_hz
        self._changed = changed
        self._announced: int | None = None
        self._apic_id = apic_id
        self._irr = self._isr = self._tmr = 0
        self._task_priority = 0
        self._spurious = 0xFF
        self._logical_destination = 0
        self._destination_format = 0xFFFF_FFFF
        self._lvt = dict.fromkeys(LVT_WRITABLE, LVT_MASKED)
        self._command_low = self._command_high = 0
        self._errors = self._errors_shown = 0
        self._divide = 0
        self._divisor = 2
        self._initial_count = 0
        self._expires_ns: int | None = None
        self._readers: dict[int, Callable[[], int]] = {
            0x20: lambda: self._apic_id << 24,
            0x30: lambda: VERSION,
            0x80: lambda: self._task_priority,
            0x90: lambda: 0,
            0xA0: self._processor_priority,
            EOI: lambda: 0,
            0xC0: lambda: 0,
            0xD0: lambda: self._logical_destination,
            0xE0: lambda: self._destination_format,
            0xF0: lambda: self._spurious,
            0x280: lambda: self._errors_shown,
            ICR_LOW: lambda: self._command_low,
            0x310: lambda: self._command_high,
            INITIAL_COUNT: lambda: self._initial_count,
            0x390: self._read_current_count,
            0x3E0: lambda: self._divide,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            0x80: self._write_task_priority,
            EOI: self._write_end_of_interrupt,
            0xD0: self._write_logical_destination,
            0xE0: self._write_destination_format,
            0xF0: self._write_spurious,
            0x280: self._write_errors,
            ICR_LOW: self._write_command_low,
            0x310: self._write_command_high,
            INITIAL_COUNT: self._write_initial_count,
            0x3E0: self._write_divide,
        }

    # What the bus calls.

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset`` of the page; reserved ones read 0 and are noted in ESR."""
        value = self._read_register(offset & ~0xF) >> 8 * (offset & 0xF) if offset & 0xC == 0 else 0
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; only aligned accesses of four bytes have a meaning."""
        if size != 4:
            return
        if (writer := self._writers.get(offset)) is not None:
            writer(value)
        elif offset in LVT_WRITABLE:
            self._write_lvt(offset, value)
        elif offset not in self._readers and not 0x100 <= offset < 0x280:
            self._note_error(ERROR_ILLEGAL_REGISTER)

    # What the IO-APIC and the processor call.

    def accept(self, vector: int, level: bool) -> bool:  # noqa: FBT001 - the trigger mode
        """Take an interrupt message; false when it is refused because software has disabled the APIC."""
        if not self._spurious & SOFTWARE_ENABLED:
            return False
        if vector < VECTOR_MIN:
            self._note_error(ERROR_RECEIVED_ILLEGAL_VECTOR)
            return True
        bit = 1 << vector
        self._irr |= bit
        if level:
            self._tmr |= bit
        else:
            self._tmr &= ~bit
        self._announce()
        return True

    def pending_vector(self) -> int | None:
        """The vector that the processor should take now; asking changes nothing."""
        vector = self._irr.bit_length() - 1
        if vector >> 4 > self._processor_priority() >> 4 and self._spurious & SOFTWARE_ENABLED:
            return vector
        return None

    def acknowledge(self, vector: int) -> None:
        """The processor has taken ``vector``: it is now being served."""
        bit = 1 << vector
        if self._irr & bit:
            self._irr ^= bit
            self._isr |= bit
        self._announced = self.pending_vector()

    # The timer.

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` has an interrupt to make, on the given clock."""
        return None if self._lvt[LVT_TIMER] & LVT_MASKED else self._expires_ns

    def tick(self, now_ns: int) -> None:
        """Let the timer fire if its time has come; several missed periods make one interrupt."""
        expires_ns = self._expires_ns
        if expires_ns is None or now_ns < expires_ns:
            return
        entry = self._lvt[LVT_TIMER]
        if entry & LVT_PERIODIC:
            period_ns = max(PERIOD_NS_MIN, self._counts_to_ns(self._initial_count))
            self._expires_ns = expires_ns + ((now_ns - expires_ns) // period_ns + 1) * period_ns
        else:
            self._expires_ns = None
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF, level=False)

    def _counts_to_ns(self, counts: int) -> int:
        return -(-counts * self._divisor * NS_PER_S // self._timer_hz)

    def _arm(self, counts: int) -> None:
        before_ns = self.deadline_ns
        self._expires_ns = self._clock_ns() + self._counts_to_ns(counts) if counts else None
        self._announce_deadline(before_ns)

    def _read_current_count(self) -> int:
        now_ns = self._clock_ns()
        self.tick(now_ns)
        if self._expires_ns is None:
            return 0
        left = -((now_ns - self._expires_ns) * self._timer_hz // (self._divisor * NS_PER_S))
        return min(left, self._initial_count)

    def _write_initial_count(self, value: int) -> None:
        self._initial_count = value & 0xFFFF_FFFF
        self._arm(self._initial_count)

    def _write_divide(self, value: int) -> None:
        left = self._read_current_count()
        self._divide = value & 0b1011
        self._divisor = 1 << ((value >> 1 & 4 | value & 3) + 1 & 7)
        self._arm(left)

    # Priorities and ends of interrupts.

    def _processor_priority(self) -> int:
        serving = max(self._isr.bit_length() - 1, 0) & 0xF0
        return self._task_priority if self._task_priority & 0xF0 >= serving else serving

    def _announce(self) -> None:
        pending = self.pending_vector()
        if pending != self._announced:
            self._announced = pending
            self._changed()

    def _announce_deadline(self, before_ns: int | None) -> None:
        now_ns = self.deadline_ns
        if now_ns is not None and (before_ns is None or now_ns < before_ns):
            self._changed()

    def _write_task_priority(self, value: int) -> None:
        self._task_priority = value & 0xFF
        self._announce()

    def _write_end_of_interrupt(self, _value: int) -> None:
        vector = self._isr.bit_length() - 1
        if vector < 0:
            return
        bit = 1 << vector
        self._isr ^= bit
        if self._tmr & bit:
            self.end_of_level_interrupt(vector)
        self._announce()

    # Interrupts between processors: the only one there is may send to itself.

    def _write_command_high(self, value: int) -> None:
        self._command_high = value & 0xFF00_0000

    def _write_command_low(self, value: int) -> None:
        self._command_low = value & 0xC_CFFF
        fixed_or_lowest_priority = value & 0x600 == 0
        if not (fixed_or_lowest_priority and self._is_destination(value)):
            return
        vector = value & 0xFF
        if vector < VECTOR_MIN:
            self._note_error(ERROR_SEND_ILLEGAL_VECTOR)
        else:
            self.accept(vector, level=False)

    def _is_destination(self, command: int) -> bool:
        match command >> 18 & 3:
            case 1 | 2:
                return True
            case 3:
                return False
        destination = self._command_high >> 24
        if destination == 0xFF:
            return True
        if not command & 1 << 11:
            return destination == self._apic_id
        address = self._logical_destination >> 24
        if self._destination_format >> 28 == 0xF:
            return destination & address != 0
        return destination >> 4 == address >> 4 and destination & address & 0xF != 0

    # The remaining registers.

    def _read_register(self, offset: int) -> int:
        if (reader := self._readers.get(offset)) is not None:
            return reader()
        if offset in LVT_WRITABLE:
            return self._lvt[offset]
        bank, word = offset >> 7, offset >> 4 & 7
        match bank:
            case 2:
                return self._isr >> 32 * word & 0xFFFF_FFFF
            case 3:
                return self._tmr >> 32 * word & 0xFFFF_FFFF
            case 4:
                return self._irr >> 32 * word & 0xFFFF_FFFF
        self._note_error(ERROR_ILLEGAL_REGISTER)
        return 0

    def _write_lvt(self, offset: int, value: int) -> None:
        if offset == LVT_TIMER:
            self.tick(self._clock_ns())
        before_ns = self.deadline_ns
        self._lvt[offset] = value & LVT_WRITABLE[offset]
        if not self._spurious & SOFTWARE_ENABLED:
            self._lvt[offset] |= LVT_MASKED
        self._announce_deadline(before_ns)

    def _write_spurious(self, value: int) -> None:
        self._spurious = value & 0x3FF
        if not value & SOFTWARE_ENABLED:
            for offset in self._lvt:
                self._lvt[offset] |= LVT_MASKED
        self._announce()

    def _write_logical_destination(self, value: int) -> None:
        self._logical_destination = value & 0xFF00_0000

    def _write_destination_format(self, value: int) -> None:
        self._destination_format = value | 0x0FFF_FFFF

    def _write_errors(self, _value: int) -> None:
        self._errors_shown, self._errors = self._errors, 0

    def _note_error(self, error: int) -> None:
        """Remember for ESR, and interrupt when it is new (section "Error Handling")."""
        if self._errors & error:
            return
        self._errors |= error
        entry = self._lvt[LVT_ERROR]
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF, level=False)
