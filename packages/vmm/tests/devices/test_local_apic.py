"""The local APIC, driven by its registers and a clock that stands still until told otherwise."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nitro_vmm.devices.local_apic import LocalApic
from nitro_vmm.devices.local_apic_registers import (
    LVT_ERROR,
    LVT_LINT0,
    LVT_MASKED,
    LVT_PERIODIC,
    LVT_TIMER,
    PERIOD_NS_MIN,
    Register,
)

EOI, ICR_LOW, INITIAL_COUNT = Register.END_OF_INTERRUPT, Register.COMMAND_LOW, Register.INITIAL_COUNT
TPR, PPR, LDR, DFR, SVR, ESR = 0x80, 0xA0, 0xD0, 0xE0, 0xF0, 0x280
ISR, TMR, IRR = 0x100, 0x180, 0x200
ICR_HIGH, CURRENT_COUNT, DIVIDE = 0x310, 0x390, 0x3E0
DIVIDE_BY_1, DIVIDE_BY_16 = 0b1011, 0b0011
ENABLED = 0x1FF
MHZ = 1_000_000


@dataclass
class Bench:
    """An APIC whose timer counts once a microsecond, and what it told the machine."""

    now_ns: int = 1_000
    changes: int = 0
    ended: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.apic = LocalApic(lambda: self.now_ns, MHZ, self._count)
        self.apic.end_of_level_interrupt = self.ended.append
        self.put(SVR, ENABLED)
        self.put(DIVIDE, DIVIDE_BY_1)

    def _count(self) -> None:
        self.changes += 1

    def put(self, offset: int, value: int) -> None:
        self.apic.write(offset, 4, value)

    def get(self, offset: int) -> int:
        return self.apic.read(offset, 4)

    def bits(self, offset: int) -> set[int]:
        for register, word in self.apic.words():
            assert self.get(register) == word[0], "an accelerator may read it there"
        value = sum(self.get(offset + 16 * word) << 32 * word for word in range(8))
        return {bit for bit in range(256) if value >> bit & 1}

    def at(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.apic.tick(now_ns)


def test_it_begins_as_a_processor_that_was_reset() -> None:
    """Intel SDM vol. 3A, "Local APIC State After Power-Up or Reset"."""
    apic = LocalApic(lambda: 0, MHZ, lambda: None, apic_id=3)
    masked = {LVT_TIMER, 0x330, 0x340, LVT_LINT0, 0x360, LVT_ERROR}

    registers = {offset: apic.read(offset, 4) for offset in range(0x20, 0x400, 16)}

    assert {offset: value for offset, value in registers.items() if value} == {
        0x20: 3 << 24,
        0x30: 0x5_0014,
        DFR: 0xFFFF_FFFF,
        SVR: 0xFF,
        **dict.fromkeys(masked, LVT_MASKED),
    }


def test_registers_keep_the_bits_that_they_have() -> None:
    bench = Bench()
    kept = {
        TPR: 0xFF,
        LDR: 0xFF00_0000,
        DFR: 0xFFFF_FFFF,
        SVR: 0x3FF,
        ICR_LOW: 0xC_CFFF,
        ICR_HIGH: 0xFF00_0000,
        DIVIDE: 0b1011,
        0x330: 0x1_07FF,
        0x340: 0x1_07FF,
        LVT_LINT0: 0x1_A7FF,
        0x360: 0x1_A7FF,
        LVT_ERROR: 0x1_00FF,
        LVT_TIMER: 0x7_00FF,
    }

    for offset in kept:
        bench.put(offset, 0xFFFF_FFFF)

    assert {offset: bench.get(offset) for offset in kept} == kept
    bench.put(DFR, 0)
    assert bench.get(DFR) == 0x0FFF_FFFF


@pytest.mark.parametrize(("shorthand", "arrives"), [(0, False), (1, True), (2, True), (3, False)])
def test_shorthands_of_destinations_include_the_sender_or_not(shorthand: int, *, arrives: bool) -> None:
    bench = Bench()
    bench.put(ICR_HIGH, 5 << 24)  # nobody

    bench.put(ICR_LOW, shorthand << 18 | 0x40)

    assert bench.bits(IRR) == ({0x40} if arrives else set())


@pytest.mark.parametrize("offset", [0x00, 0x10, 0x40, 0x70, 0x290, 0x2F0, 0x3A0, 0x3F0])
def test_registers_that_there_are_not_are_errors(offset: int) -> None:
    bench = Bench()

    bench.put(offset, 1)
    bench.put(ESR, 0)
    written = bench.get(ESR)
    bench.put(ESR, 0)
    value = bench.get(offset)
    bench.put(ESR, 0)

    assert (written, value, bench.get(ESR)) == (0x80, 0, 0x80)


@pytest.mark.parametrize("offset", [0x20, 0x30, 0x90, 0xA0, 0xC0, 0x100, 0x170, 0x180, 0x200, 0x270, 0x390])
def test_writing_what_can_only_be_read_is_ignored(offset: int) -> None:
    bench = Bench()
    before = bench.get(offset)

    bench.put(offset, 0xFFFF_FFFF)

    assert bench.get(offset) == before
    bench.put(ESR, 0)
    assert bench.get(ESR) == 0


def test_it_says_that_it_is_an_integrated_apic_with_six_local_vectors() -> None:
    bench = Bench()

    assert bench.get(0x30) == 0x0005_0014
    assert bench.get(0x20) == 0


def test_a_vector_goes_from_irr_to_isr_to_nowhere() -> None:
    bench = Bench()

    bench.apic.accept(0x41, level=False)
    assert (bench.bits(IRR), bench.bits(ISR)) == ({0x41}, set())
    assert bench.apic.pending_vector() == 0x41

    bench.apic.acknowledge(0x41)
    assert (bench.bits(IRR), bench.bits(ISR)) == (set(), {0x41})
    assert bench.apic.pending_vector() is None

    bench.put(EOI, 0)
    assert (bench.bits(IRR), bench.bits(ISR)) == (set(), set())


def test_a_vector_of_the_class_being_served_waits_and_one_of_a_higher_class_does_not() -> None:
    bench = Bench()
    bench.apic.accept(0x41, level=False)
    bench.apic.acknowledge(0x41)

    bench.apic.accept(0x4F, level=False)
    assert bench.apic.pending_vector() is None
    bench.apic.accept(0x51, level=False)
    assert bench.apic.pending_vector() == 0x51

    bench.apic.acknowledge(0x51)
    bench.put(EOI, 0)
    bench.put(EOI, 0)
    assert bench.apic.pending_vector() == 0x4F


def test_a_higher_vector_may_come_between_pending_and_acknowledge() -> None:
    bench = Bench()
    bench.apic.accept(0x41, level=False)
    assert bench.apic.pending_vector() == 0x41

    bench.apic.accept(0x91, level=False)
    bench.apic.acknowledge(0x41)

    assert bench.bits(ISR) == {0x41}
    assert bench.apic.pending_vector() == 0x91


def test_task_priority_holds_back_its_class_and_those_below() -> None:
    bench = Bench()
    bench.put(TPR, 0x4F)
    bench.apic.accept(0x4F, level=False)
    assert bench.apic.pending_vector() is None
    assert bench.get(PPR) == 0x4F

    bench.put(TPR, 0x3F)
    assert bench.apic.pending_vector() == 0x4F


def test_acknowledging_what_is_not_pending_serves_nothing() -> None:
    bench = Bench()

    bench.apic.acknowledge(0xFF)

    assert bench.bits(ISR) == set()


def test_the_end_of_a_level_interrupt_is_told_and_that_of_an_edge_is_not() -> None:
    bench = Bench()
    for vector, level in ((0x41, True), (0x51, False)):
        bench.apic.accept(vector, level)
        bench.apic.acknowledge(vector)
    assert bench.bits(TMR) == {0x41}

    bench.put(EOI, 0)
    assert bench.ended == []
    bench.put(EOI, 0)
    assert bench.ended == [0x41]


def test_end_of_interrupt_with_nothing_in_service_is_ignored() -> None:
    bench = Bench()

    bench.put(EOI, 0)

    assert bench.ended == []


def test_a_software_disabled_apic_refuses_interrupts_and_masks_its_own() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, 0x30)
    bench.put(SVR, 0xFF)
    bench.put(LVT_LINT0, 0x40)

    assert not bench.apic.accept(0x41, level=False)
    assert bench.get(LVT_TIMER) == LVT_MASKED | 0x30
    assert bench.get(LVT_LINT0) == LVT_MASKED | 0x40
    assert bench.apic.pending_vector() is None


def test_a_one_shot_timer_fires_once() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, 0x30)
    bench.put(INITIAL_COUNT, 500)
    assert bench.apic.deadline_ns == 501_000
    assert bench.get(CURRENT_COUNT) == 500

    bench.at(500_999)
    assert bench.apic.pending_vector() is None
    assert bench.get(CURRENT_COUNT) == 1

    bench.at(501_000)
    assert bench.apic.pending_vector() == 0x30
    assert bench.apic.deadline_ns is None
    assert bench.get(CURRENT_COUNT) == 0


def test_a_periodic_timer_keeps_its_phase_and_merges_missed_periods() -> None:
    bench = Bench(now_ns=0)
    bench.put(LVT_TIMER, LVT_PERIODIC | 0x30)
    bench.put(INITIAL_COUNT, 1_000)

    bench.at(3_400_000)

    assert bench.apic.pending_vector() == 0x30
    assert bench.apic.deadline_ns == 4_000_000
    assert bench.get(CURRENT_COUNT) == 600


@pytest.mark.parametrize(
    ("divide", "by"),
    [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
        (0b0100, 2),
    ],
)
def test_the_divider_slows_the_count(divide: int, by: int) -> None:
    """Figure "Divide Configuration Register"; bit 2 is reserved."""
    bench = Bench(now_ns=0)
    bench.put(DIVIDE, divide)
    bench.put(LVT_TIMER, 0x30)
    bench.put(INITIAL_COUNT, 1000)

    assert bench.apic.deadline_ns == 1_000_000 * by
    bench.now_ns = 400_000 * by
    assert bench.get(CURRENT_COUNT) == 600


def test_a_new_divider_goes_on_from_the_current_count() -> None:
    bench = Bench(now_ns=0)
    bench.put(LVT_TIMER, 0x30)
    bench.put(INITIAL_COUNT, 1_000)
    bench.now_ns = 400_000
    bench.put(DIVIDE, DIVIDE_BY_16)

    assert bench.get(CURRENT_COUNT) == 600
    assert bench.apic.deadline_ns == 400_000 + 600 * 16_000


def test_an_absurdly_fast_periodic_timer_is_slowed() -> None:
    bench = Bench(now_ns=0)
    bench.put(LVT_TIMER, LVT_PERIODIC | 0x30)
    bench.put(INITIAL_COUNT, 1)

    bench.at(1_000)

    assert bench.apic.deadline_ns == 1_000 + PERIOD_NS_MIN


def test_a_masked_timer_counts_in_silence() -> None:
    bench = Bench(now_ns=0)
    bench.put(LVT_TIMER, LVT_MASKED | 0x30)
    bench.put(INITIAL_COUNT, 1_000)
    assert bench.apic.deadline_ns is None

    bench.now_ns = 400_000
    bench.put(LVT_TIMER, 0x30)
    assert bench.apic.deadline_ns == 1_000_000


def test_unmasking_a_timer_that_has_run_out_does_not_fire_it() -> None:
    bench = Bench(now_ns=0)
    bench.put(LVT_TIMER, LVT_MASKED | 0x30)
    bench.put(INITIAL_COUNT, 1_000)

    bench.now_ns = 2_000_000
    bench.put(LVT_TIMER, 0x30)
    bench.at(3_000_000)

    assert bench.apic.pending_vector() is None


def test_writing_zero_stops_the_timer() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, 0x30)
    bench.put(INITIAL_COUNT, 500)

    bench.put(INITIAL_COUNT, 0)

    assert bench.apic.deadline_ns is None


DEADLINE_MODE = 1 << 18


def test_a_deadline_of_the_time_stamp_counter() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, DEADLINE_MODE | 0x30)

    bench.apic.arm_deadline(5)

    assert bench.get(LVT_TIMER) == DEADLINE_MODE | 0x30
    assert bench.apic.deadline_ns == bench.now_ns + 5_000
    bench.at(bench.now_ns + 5_000)
    assert bench.apic.pending_vector() == 0x30
    assert bench.apic.deadline_ns is None


def test_a_deadline_can_be_taken_back() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, DEADLINE_MODE | 0x30)
    bench.apic.arm_deadline(5)

    bench.apic.arm_deadline(-1)

    assert bench.apic.deadline_ns is None


def test_deadlines_and_counts_are_for_their_own_modes() -> None:
    bench = Bench()

    bench.put(LVT_TIMER, DEADLINE_MODE | 0x30)
    bench.put(INITIAL_COUNT, 100)
    assert bench.apic.deadline_ns is None
    assert bench.get(CURRENT_COUNT) == 0
    bench.put(LVT_TIMER, 0x30)
    bench.apic.arm_deadline(5)

    assert bench.apic.deadline_ns is None


def test_a_change_of_mode_disarms_the_timer() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, DEADLINE_MODE | 0x30)
    bench.apic.arm_deadline(5)

    bench.put(LVT_TIMER, 0x30)

    assert bench.apic.deadline_ns is None


def test_a_deadline_is_saved_and_restored() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, DEADLINE_MODE | 0x30)
    bench.apic.arm_deadline(5_000_000)

    other = Bench(now_ns=7_000)
    other.apic.restore(bench.apic.state())

    assert other.apic.deadline_ns == 7_000 + 5_000_000_000


def test_only_a_nearer_deadline_wakes_the_machine() -> None:
    bench = Bench()
    bench.put(LVT_TIMER, 0x30)
    bench.changes = 0

    bench.put(INITIAL_COUNT, 500)
    assert bench.changes == 1
    bench.put(INITIAL_COUNT, 900)
    assert bench.changes == 1
    bench.put(INITIAL_COUNT, 100)
    assert bench.changes == 2


def test_interrupts_to_itself_arrive() -> None:
    bench = Bench()
    bench.put(LDR, 0x0100_0000)
    commands = (
        (0, 1 << 18 | 0x41),  # shorthand: self
        (0, 2 << 18 | 0x42),  # shorthand: all
        (0, 0x43),  # its physical number
        (0xFF00_0000, 0x44),  # physical broadcast
        (0x0300_0000, 1 << 11 | 0x45),  # a logical set that it is in
        (0x0100_0000, 1 << 11 | 1 << 8 | 0x46),  # lowest priority
    )
    for high, low in commands:
        bench.put(ICR_HIGH, high)
        bench.put(ICR_LOW, low)

    assert bench.bits(IRR) == {0x41, 0x42, 0x43, 0x44, 0x45, 0x46}
    assert bench.get(ICR_HIGH) == 0x0100_0000


def test_interrupts_to_others_and_of_other_kinds_are_ignored() -> None:
    bench = Bench()
    bench.put(LDR, 0x0100_0000)
    commands = (
        (0, 3 << 18 | 0x41),  # shorthand: all but self
        (0x0100_0000, 0x42),  # another physical number
        (0x0200_0000, 1 << 11 | 0x43),  # a logical set without it
        (0, 1 << 18 | 4 << 8),  # NMI
        (0, 1 << 18 | 5 << 8),  # INIT
        (0, 1 << 18 | 6 << 8 | 0x99),  # start-up
    )
    for high, low in commands:
        bench.put(ICR_HIGH, high)
        bench.put(ICR_LOW, low)

    assert bench.bits(IRR) == set()


def test_cluster_mode_looks_at_cluster_and_member() -> None:
    bench = Bench()
    bench.put(DFR, 0)
    bench.put(LDR, 0x2100_0000)
    for destination, vector in ((0x21, 0x41), (0x31, 0x42), (0x22, 0x43), (0x23, 0x44)):
        bench.put(ICR_HIGH, destination << 24)
        bench.put(ICR_LOW, 1 << 11 | vector)

    assert bench.bits(IRR) == {0x41, 0x44}


def test_errors_show_after_a_write_to_esr_and_interrupt_once() -> None:
    bench = Bench()
    bench.put(LVT_ERROR, 0xFE)
    bench.apic.accept(3, level=False)
    bench.put(ICR_LOW, 1 << 18 | 5)
    bench.get(0x3F0)
    assert bench.get(ESR) == 0

    bench.put(ESR, 0)
    assert bench.get(ESR) == 0xE0
    assert bench.bits(IRR) == {0xFE}
    bench.put(ESR, 0)
    assert bench.get(ESR) == 0


def test_narrow_and_unaligned_writes_are_ignored_and_narrow_reads_shift() -> None:
    bench = Bench()
    bench.apic.write(TPR, 1, 0x20)
    bench.apic.write(TPR + 1, 4, 0x20)
    bench.apic.write(TPR, 8, 0x20)

    assert bench.get(TPR) == 0
    assert bench.apic.read(0x32, 1) == 5


offsets = st.integers(0, 0x41).map(lambda slot: slot << 4) | st.integers(0, 0xFFF)
accesses = st.lists(
    st.tuples(offsets, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1), st.integers(0, 10**9)),
    max_size=60,
)


@given(accesses)
def test_no_sequence_of_accesses_raises(sequence: list[tuple[int, int, int, int]]) -> None:
    bench = Bench()
    for offset, size, value, delay_ns in sequence:
        bench.at(bench.now_ns + delay_ns)
        bench.apic.write(offset, size, value)
        assert 0 <= bench.apic.read(offset, size) < 1 << 8 * size
        vector = bench.apic.pending_vector()
        assert vector is None or 16 <= vector < 256
        deadline_ns = bench.apic.deadline_ns
        assert deadline_ns is None or deadline_ns > bench.now_ns


vectors = st.sampled_from([0x10, 0x1F, 0x30, 0x31, 0x3F, 0x40, 0x7E, 0x7F, 0x80, 0xEF, 0xF0, 0xFF])


class Priorities(RuleBasedStateMachine):
    """The APIC against sets: requested, in service, level; and the rule of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.requested: set[int] = set()
        self.serving: list[int] = []
        self.level: set[int] = set()
        self.priority = 0
        self.ended: list[int] = []

    def expected(self) -> int | None:
        floor = max([vector >> 4 for vector in self.serving] + [self.priority >> 4])
        above = [vector for vector in self.requested if vector >> 4 > floor]
        return max(above, default=None)

    @rule(vector=vectors, level=st.booleans())
    def message(self, *, vector: int, level: bool) -> None:
        assert self.bench.apic.accept(vector, level)
        self.requested.add(vector)
        (self.level.add if level else self.level.discard)(vector)

    @rule(vector=vectors)
    def self_interrupt(self, vector: int) -> None:
        self.bench.put(ICR_LOW, 1 << 18 | vector)
        self.requested.add(vector)
        self.level.discard(vector)

    @rule(priority=st.integers(0, 255))
    def task_priority(self, priority: int) -> None:
        self.bench.put(TPR, priority)
        self.priority = priority

    @precondition(lambda self: self.expected() is not None)
    @rule()
    def take(self) -> None:
        vector = self.bench.apic.pending_vector()
        assert vector is not None
        self.bench.apic.acknowledge(vector)
        self.requested.remove(vector)
        self.serving.append(vector)

    @rule()
    def end(self) -> None:
        self.bench.put(EOI, 0)
        if self.serving:
            vector = max(self.serving)
            self.serving.remove(vector)
            if vector in self.level:
                self.ended.append(vector)

    @invariant()
    def agrees(self) -> None:
        assert self.bench.apic.pending_vector() == self.expected()
        assert self.bench.bits(IRR) == self.requested
        assert self.bench.bits(ISR) == set(self.serving)
        assert self.bench.bits(TMR) == self.level
        assert self.bench.ended == self.ended


TestPriorities = Priorities.TestCase


@pytest.mark.parametrize(
    ("task", "served", "priority"),
    [
        (0x25, 0x31, 0x30),
        (0x35, 0x31, 0x35),
        (0x45, 0x31, 0x45),
        (0x0F, 0x1F, 0x10),
        (0x1F, None, 0x1F),
        (0, 0xFF, 0xF0),
    ],
)
def test_the_processors_priority_is_the_higher_class(task: int, served: int | None, priority: int) -> None:
    """Section "Processor Priority Register (PPR)": the lower four bits are the task's, or zero."""
    bench = Bench()
    if served is not None:
        bench.apic.accept(served, level=False)
        bench.apic.acknowledge(served)
    bench.put(TPR, task)

    assert bench.get(PPR) == priority
