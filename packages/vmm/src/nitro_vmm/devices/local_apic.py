"""The local APIC of the one processor: which interrupt comes next, and the timer.

Source: Intel SDM vol. 3A, chapter "Advanced Programmable Interrupt Controller (APIC)". Sections are named by
their titles, because their numbers change between editions.

How an interrupt vector gets through:

1. `accept` sets its bit in IRR.
2. `pending_vector` returns it once its class, the upper four bits, is above the processor's priority (PPR).
   That is the task priority (TPR) or the class that is being served, whichever is higher.
3. The processor takes it, and `acknowledge` moves the bit to ISR.
4. The guest writes to EOI when it has served it, which clears the bit. If the vector came from a
   level-triggered line (TMR), the IO-APIC is told, which sends it again while the line is up.

The processor may take a vector long before `acknowledge` is called. Until then IRR says that an interrupt is
pending which in truth is being served, so `acknowledge` has to come before any other call.

Not offered: x2APIC, NMI, SMI and start-up messages, suppression of EOI broadcasts. The
guest reaches TPR through its register here only, because its CR8 stays within the processor.
"""

from collections.abc import Callable, Iterator

from nitro_vmm.devices.local_apic_registers import (
    COMMAND_WRITABLE,
    DESTINATION_FORMAT_FIXED,
    DESTINATION_WRITABLE,
    DIVIDE_WRITABLE,
    END_OF_INTERRUPT,
    ERROR_ILLEGAL_REGISTER,
    ERROR_RECEIVED_ILLEGAL_VECTOR,
    ERROR_SEND_ILLEGAL_VECTOR,
    LVT_DEADLINE,
    LVT_ERROR,
    LVT_MASKED,
    LVT_PERIODIC,
    LVT_TIMER,
    LVT_WRITABLE,
    NS_PER_S,
    PERIOD_NS_MIN,
    READ_ONLY,
    SET_WORDS,
    SETS_BEGIN,
    SETS_END,
    SOFTWARE_ENABLED,
    VECTOR_MIN,
    VERSION,
    LocalApicState,
    Register,
)
from nitro_vmm.errors import StateError


def _divisor(divide: int) -> int:
    """What the divide configuration register means: bits 3, 1 and 0 count 2, 4 ... 128, 1."""
    return 1 << ((divide >> 1 & 4 | divide & 3) + 1 & 7)


class LocalApic:
    """The register page and the state behind it.

    Args:
        clock_ns: A monotonic clock, nanoseconds.
        timer_hz: What the timer counts before its divider.
        sooner: Called when `deadline_ns` has come nearer, or there is one where there was none.
        apic_id: The processor's number as the MP table and the MADT give it.
    """

    def __init__(
        self, clock_ns: Callable[[], int], timer_hz: int, sooner: Callable[[], None], *, apic_id: int = 0
    ) -> None:
        self.end_of_level_interrupt: Callable[[int], None] = lambda _vector: None
        """The IO-APIC's: called with the vector at the EOI of a level-triggered interrupt."""
        self._clock_ns = clock_ns
        self._timer_hz = timer_hz
        self._sooner = sooner
        self._apic_id = apic_id
        self._irr = self._isr = self._tmr = 0
        self._level = memoryview(bytearray(4 * SET_WORDS)).cast("I")
        """The trigger mode registers, as `words` gives them."""
        self._task_priority = 0
        self._spurious = 0xFF
        self._logical_destination = 0
        self._destination_format = 0xFFFF_FFFF
        self._lvt = dict.fromkeys(LVT_WRITABLE, LVT_MASKED)
        self._command_low = self._command_high = 0
        self._errors = self._errors_shown = 0
        self._divide = 0
        self._divisor = _divisor(self._divide)
        self._initial_count = 0
        self._expires_ns: int | None = None

    def state(self) -> LocalApicState:
        """What to save so that `restore` goes on from here.

        What the processor has taken has to be acknowledged before.
        """
        expires_ns = self._expires_ns
        return LocalApicState(
            requested=self._irr,
            in_service=self._isr,
            level=self._tmr,
            task_priority=self._task_priority,
            spurious_vector=self._spurious,
            logical_destination=self._logical_destination,
            destination_format=self._destination_format,
            local_vectors=tuple(self._lvt.values()),
            command_low=self._command_low,
            command_high=self._command_high,
            errors=self._errors,
            errors_shown=self._errors_shown,
            divide=self._divide,
            initial_count=self._initial_count,
            expires_in_ns=None if expires_ns is None else expires_ns - self._clock_ns(),
        )

    def restore(self, state: LocalApicState) -> None:
        """Go on from a saved state; its timer has as long to go as when it was saved.

        The timer must count at the frequency at which the saved one did, because the guest has measured it.

        Raises:
            StateError: The timer has longer to go than its count at this frequency. Nothing has changed.
        """
        divisor = _divisor(state.divide)
        expires_in_ns = state.expires_in_ns
        longest_ns = max(PERIOD_NS_MIN, self._counts_to_ns(state.initial_count, divisor))
        by_deadline = state.local_vectors[0] & LVT_DEADLINE
        if expires_in_ns is not None and expires_in_ns > longest_ns and not by_deadline:
            raise StateError(
                f"the saved timer has {expires_in_ns} ns to go, but its whole count takes {longest_ns} ns"
            )
        self._irr = state.requested
        self._isr = state.in_service
        self._set_level(state.level)
        self._task_priority = state.task_priority
        self._spurious = state.spurious_vector
        self._logical_destination = state.logical_destination
        self._destination_format = state.destination_format
        self._lvt = dict(zip(LVT_WRITABLE, state.local_vectors, strict=True))
        self._command_low = state.command_low
        self._command_high = state.command_high
        self._errors = state.errors
        self._errors_shown = state.errors_shown
        self._divide = state.divide
        self._divisor = divisor
        self._initial_count = state.initial_count
        before_ns = self.deadline_ns
        self._expires_ns = None if expires_in_ns is None else self._clock_ns() + expires_in_ns
        self._announce_deadline(before_ns)

    # What the bus calls.

    def words(self) -> Iterator[tuple[int, memoryview]]:
        """Offsets of registers that Linux reads at every interrupt, and their values; see `Vm.share_word`."""
        for index in range(SET_WORDS):
            yield Register.TRIGGER_MODE + 16 * index, self._level[index : index + 1]

    def read(self, offset: int, size: int) -> int:
        """Read the register at ``offset`` of the page. Reserved ones read 0 and are noted in ESR."""
        value = self._read_register(offset & ~0xF) >> 8 * (offset & 0xF) if offset & 0xC == 0 else 0
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; only aligned accesses of four bytes have a meaning."""
        if size != 4:
            return
        value &= 0xFFFF_FFFF
        if offset == END_OF_INTERRUPT:  # first, because this comes at every interrupt
            self._end_interrupt()
            return
        match offset:
            case Register.INITIAL_COUNT:
                self._write_initial_count(value)
            case Register.COMMAND_LOW:
                self._write_command_low(value)
            case Register.TASK_PRIORITY:
                self._task_priority = value & 0xFF
            case Register.LOGICAL_DESTINATION:
                self._logical_destination = value & DESTINATION_WRITABLE
            case Register.DESTINATION_FORMAT:
                self._destination_format = value | DESTINATION_FORMAT_FIXED
            case Register.SPURIOUS_VECTOR:
                self._write_spurious_vector(value)
            case Register.ERROR_STATUS:
                # Writing anything shows what was noted since the last write.
                self._errors_shown, self._errors = self._errors, 0
            case Register.COMMAND_HIGH:
                self._command_high = value & DESTINATION_WRITABLE
            case Register.DIVIDE_CONFIGURATION:
                self._write_divide(value)
            case _ if offset in LVT_WRITABLE:
                self._write_local_vector(offset, value)
            case _ if offset not in READ_ONLY and not Register.IN_SERVICE <= offset < Register.ERROR_STATUS:
                self._note_error(ERROR_ILLEGAL_REGISTER)

    # What the IO-APIC and the processor call.

    def accept(self, vector: int, level: bool) -> bool:  # noqa: FBT001 - the trigger mode
        """Take an interrupt message.

        Args:
            vector: Which interrupt it is.
            level: Whether a level-triggered line sent it.

        Returns:
            Whether it was taken; false while software has disabled the APIC.
        """
        if not self._spurious & SOFTWARE_ENABLED:
            return False
        if vector < VECTOR_MIN:
            self._note_error(ERROR_RECEIVED_ILLEGAL_VECTOR)
            return True
        bit = 1 << vector
        self._irr |= bit
        tmr = self._tmr | bit if level else self._tmr & ~bit
        if tmr != self._tmr:
            self._set_level(tmr)
        return True

    def _set_level(self, tmr: int) -> None:
        self._tmr = tmr
        for index in range(SET_WORDS):
            self._level[index] = tmr >> 32 * index & 0xFFFF_FFFF

    def pending_vector(self) -> int | None:
        """The vector that the processor should take now, or `None`; asking changes nothing."""
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

    # The timer.

    @property
    def deadline_ns(self) -> int | None:
        """When the timer will interrupt, on the given clock, so when to call `tick`; or `None`."""
        return None if self._lvt[LVT_TIMER] & LVT_MASKED else self._expires_ns

    def arm_deadline(self, ticks: int) -> None:
        """Fire in ``ticks`` of the time stamp counter, which counts at the timer's frequency; -1 disarms.

        Without a meaning unless the timer is in TSC-deadline mode.
        """
        if not self._lvt[LVT_TIMER] & LVT_DEADLINE:
            return
        before_ns = self.deadline_ns
        self._expires_ns = None if ticks < 0 else self._clock_ns() + self._counts_to_ns(ticks, 1)
        self._announce_deadline(before_ns)

    def tick(self, now_ns: int) -> None:
        """Let the timer fire if its time has come. Several missed periods make one interrupt."""
        expires_ns = self._expires_ns
        if expires_ns is None or now_ns < expires_ns:
            return
        entry = self._lvt[LVT_TIMER]
        if entry & LVT_PERIODIC:
            period_ns = max(PERIOD_NS_MIN, self._counts_to_ns(self._initial_count, self._divisor))
            self._expires_ns = expires_ns + ((now_ns - expires_ns) // period_ns + 1) * period_ns
        else:
            self._expires_ns = None
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF, level=False)

    def _counts_to_ns(self, counts: int, divisor: int) -> int:
        # Rounded up: the timer must never fire before the guest's own reading of the time.
        return -(-counts * divisor * NS_PER_S // self._timer_hz)

    def _arm(self, counts: int) -> None:
        before_ns = self.deadline_ns
        expires_in_ns = self._counts_to_ns(counts, self._divisor)
        self._expires_ns = self._clock_ns() + expires_in_ns if counts else None
        self._announce_deadline(before_ns)

    def _read_current_count(self) -> int:
        now_ns = self._clock_ns()
        self.tick(now_ns)
        if self._expires_ns is None or self._lvt[LVT_TIMER] & LVT_DEADLINE:
            return 0
        left = -((now_ns - self._expires_ns) * self._timer_hz // (self._divisor * NS_PER_S))
        return min(left, self._initial_count)

    def _write_initial_count(self, value: int) -> None:
        if self._lvt[LVT_TIMER] & LVT_DEADLINE:
            return
        self._initial_count = value
        self._arm(self._initial_count)

    def _write_divide(self, value: int) -> None:
        left = self._read_current_count()
        self._divide = value & DIVIDE_WRITABLE
        self._divisor = _divisor(self._divide)
        self._arm(left)

    # Priorities and ends of interrupts.

    def _processor_priority(self) -> int:
        serving = max(self._isr.bit_length() - 1, 0) & 0xF0
        return self._task_priority if self._task_priority & 0xF0 >= serving else serving

    def _announce_deadline(self, before_ns: int | None) -> None:
        now_ns = self.deadline_ns
        if now_ns is not None and (before_ns is None or now_ns < before_ns):
            self._sooner()

    def _end_interrupt(self) -> None:
        """The guest has served the most urgent of the vectors in service."""
        if not self._isr:
            return
        vector = self._isr.bit_length() - 1
        bit = 1 << vector
        self._isr ^= bit
        if self._tmr & bit:
            self.end_of_level_interrupt(vector)

    # Interrupts between processors: the only one there is may send to itself.

    def _write_command_low(self, value: int) -> None:
        self._command_low = value & COMMAND_WRITABLE
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
        # First, because Linux reads TMR at every level-triggered interrupt, and each case takes its time.
        if SETS_BEGIN <= offset < SETS_END:
            return self._read_vectors(offset)
        match offset:
            case Register.CURRENT_COUNT:
                return self._read_current_count()
            case Register.ID:
                return self._apic_id << 24
            case Register.VERSION:
                return VERSION
            case Register.TASK_PRIORITY:
                return self._task_priority
            case Register.PROCESSOR_PRIORITY:
                return self._processor_priority()
            case Register.LOGICAL_DESTINATION:
                return self._logical_destination
            case Register.DESTINATION_FORMAT:
                return self._destination_format
            case Register.SPURIOUS_VECTOR:
                return self._spurious
            case Register.ERROR_STATUS:
                return self._errors_shown
            case Register.COMMAND_LOW:
                return self._command_low
            case Register.COMMAND_HIGH:
                return self._command_high
            case Register.INITIAL_COUNT:
                return self._initial_count
            case Register.DIVIDE_CONFIGURATION:
                return self._divide
            case Register.ARBITRATION_PRIORITY | Register.END_OF_INTERRUPT | Register.REMOTE_READ:
                return 0
            case _ if offset in LVT_WRITABLE:
                return self._lvt[offset]
        self._note_error(ERROR_ILLEGAL_REGISTER)
        return 0

    def _read_vectors(self, offset: int) -> int:
        """32 of the 256 bits of a set of vectors: each set has eight registers, 16 bytes apart."""
        kind = offset - SETS_BEGIN >> 7
        vectors = self._isr if kind == 0 else self._tmr if kind == 1 else self._irr
        word = offset >> 4 & 7
        return vectors >> 32 * word & 0xFFFF_FFFF

    def _write_local_vector(self, offset: int, value: int) -> None:
        if offset == LVT_TIMER:
            # What the timer should have done until now, it does as it was told before.
            self.tick(self._clock_ns())
            if (value ^ self._lvt[offset]) & LVT_DEADLINE:
                self._expires_ns, self._initial_count = None, 0
        before_ns = self.deadline_ns
        self._lvt[offset] = value & LVT_WRITABLE[offset]
        if not self._spurious & SOFTWARE_ENABLED:
            self._lvt[offset] |= LVT_MASKED
        self._announce_deadline(before_ns)

    def _write_spurious_vector(self, value: int) -> None:
        self._spurious = value & 0x3FF
        if not value & SOFTWARE_ENABLED:
            for offset in self._lvt:
                self._lvt[offset] |= LVT_MASKED

    def _note_error(self, error: int) -> None:
        """Remember for ESR, and interrupt when it is new (section "Error Handling")."""
        if self._errors & error:
            return
        self._errors |= error
        entry = self._lvt[LVT_ERROR]
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF, level=False)
