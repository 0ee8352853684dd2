"""The IO-APIC, driven by its two registers and its lines."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nitro_vmm.devices.io_apic import IoApic

# As the Intel 82093AA's data sheet has them; the register for the end of an interrupt is of later ones.
REGISTER_SELECT, WINDOW, END_OF_INTERRUPT = 0, 0x10, 0x40
REDIRECTION_TABLE = 0x10
DELIVERY_MODE, LOWEST_PRIORITY = 7 << 8, 1 << 8
ACTIVE_LOW, REMOTE_IRR, LEVEL, MASKED = 1 << 13, 1 << 14, 1 << 15, 1 << 16

PIN = 5


class Bench:
    """An IO-APIC and the messages that it sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bool]] = []
        self.refuse = False
        self.chip = IoApic(self._deliver, io_apic_id=1)

    def _deliver(self, vector: int, level: bool) -> bool:  # noqa: FBT001 - the device's interface
        if self.refuse:
            return False
        self.sent.append((vector, level))
        return True

    def put(self, register: int, value: int) -> None:
        self.chip.write(REGISTER_SELECT, 4, register)
        self.chip.write(WINDOW, 4, value)

    def get(self, register: int) -> int:
        self.chip.write(REGISTER_SELECT, 4, register)
        return self.chip.read(WINDOW, 4)

    def route(self, pin: int, low: int) -> None:
        self.put(REDIRECTION_TABLE + 2 * pin, low)

    def entry(self, pin: int) -> int:
        return self.get(REDIRECTION_TABLE + 2 * pin)


def test_it_has_24_masked_pins_and_an_eoi_register() -> None:
    bench = Bench()

    assert bench.get(0) == 1 << 24
    assert bench.get(1) == 23 << 16 | 0x20
    assert [bench.entry(pin) for pin in range(24)] == [MASKED] * 24
    assert bench.get(REDIRECTION_TABLE + 48) == 0


def test_there_is_nothing_between_its_registers() -> None:
    bench = Bench()
    bench.put(REDIRECTION_TABLE, 0x1_0031)

    values = {offset: bench.chip.read(offset, 4) for offset in range(0, 0x100, 4)}

    assert {offset: value for offset, value in values.items() if value} == {
        REGISTER_SELECT: REDIRECTION_TABLE,
        WINDOW: 0x1_0031,
    }


def test_the_number_and_the_destination_can_be_set() -> None:
    bench = Bench()
    bench.put(0, 0x0200_0000)
    bench.put(REDIRECTION_TABLE + 2 * PIN + 1, 0xFFFF_FFFF)

    assert bench.get(0) == 2 << 24
    assert bench.get(REDIRECTION_TABLE + 2 * PIN + 1) == 0xFF00_0000
    assert bench.entry(PIN) == MASKED


def test_an_edge_pin_sends_once_a_rise() -> None:
    bench = Bench()
    bench.route(PIN, 0x41)

    for level in (True, True, False, True):
        bench.chip.set_line(PIN, level)

    assert bench.sent == [(0x41, False), (0x41, False)]


def test_an_edge_under_the_mask_is_lost() -> None:
    bench = Bench()
    bench.chip.line(PIN)(True)

    bench.route(PIN, 0x41)

    assert bench.sent == []


def test_a_level_pin_sends_again_after_the_end_while_its_line_is_up() -> None:
    bench = Bench()
    bench.route(PIN, LEVEL | ACTIVE_LOW | 0x41)
    bench.chip.set_line(PIN, True)
    bench.chip.set_line(PIN, False)
    bench.chip.set_line(PIN, True)
    assert bench.sent == [(0x41, True)]
    assert bench.entry(PIN) & REMOTE_IRR

    bench.chip.end_of_interrupt(0x41)
    assert bench.sent == [(0x41, True)] * 2
    bench.chip.set_line(PIN, False)
    bench.chip.end_of_interrupt(0x41)
    assert bench.sent == [(0x41, True)] * 2
    assert not bench.entry(PIN) & REMOTE_IRR


def test_the_end_of_another_vector_changes_nothing() -> None:
    bench = Bench()
    bench.route(PIN, LEVEL | 0x41)
    bench.chip.set_line(PIN, True)

    bench.chip.write(END_OF_INTERRUPT, 4, 0x42)

    assert bench.sent == [(0x41, True)]
    assert bench.entry(PIN) & REMOTE_IRR


def test_a_level_under_the_mask_is_sent_when_the_mask_goes() -> None:
    bench = Bench()
    bench.route(PIN, MASKED | LEVEL | 0x41)
    bench.chip.set_line(PIN, True)
    assert bench.sent == []

    bench.route(PIN, LEVEL | 0x41)

    assert bench.sent == [(0x41, True)]


def test_switching_to_edge_and_back_clears_remote_irr() -> None:
    bench = Bench()
    bench.route(PIN, LEVEL | 0x41)
    bench.chip.set_line(PIN, True)

    bench.route(PIN, MASKED | 0x41)
    bench.route(PIN, LEVEL | 0x41)

    assert bench.sent == [(0x41, True)] * 2


def test_a_refused_level_interrupt_is_not_in_service() -> None:
    bench = Bench()
    bench.refuse = True
    bench.route(PIN, LEVEL | 0x41)
    bench.chip.set_line(PIN, True)
    assert not bench.entry(PIN) & REMOTE_IRR

    bench.refuse = False
    bench.route(PIN, LEVEL | 0x41)
    assert bench.sent == [(0x41, True)]


def test_only_fixed_and_lowest_priority_delivery_is_done() -> None:
    bench = Bench()
    for mode in range(8):
        bench.route(mode, mode << 8 & DELIVERY_MODE | 0x40 + mode)
        bench.chip.set_line(mode, True)

    assert LOWEST_PRIORITY == 1 << 8
    assert bench.sent == [(0x40, False), (0x41, False)]


def test_a_narrow_write_to_the_window_is_ignored() -> None:
    bench = Bench()
    bench.chip.write(REGISTER_SELECT, 1, REDIRECTION_TABLE)
    bench.chip.write(WINDOW, 1, 0x41)

    assert bench.entry(0) == MASKED


operations = st.lists(
    st.tuples(
        st.booleans(), st.sampled_from([0, 0x10, 0x40]) | st.integers(0, 0xFFF), st.integers(0, 2**64 - 1)
    )
    | st.tuples(st.booleans(), st.integers(-24, -1), st.integers(0, 1)),
    max_size=60,
)


@given(operations, st.sampled_from([1, 2, 4, 8]))
def test_no_sequence_of_accesses_raises(sequence: list[tuple[bool, int, int]], size: int) -> None:
    bench = Bench()
    for refuse, offset, value in sequence:
        bench.refuse = refuse
        if offset < 0:
            bench.chip.set_line(-1 - offset, bool(value))
        else:
            bench.chip.write(offset, size, value)
            assert 0 <= bench.chip.read(offset, size) < 1 << 8 * size


pins = st.integers(0, 3)
modes = st.sampled_from([0, LEVEL])


class Lines(RuleBasedStateMachine):
    """A few pins against what each should have sent; pin and vector are one to one."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.lines = [False] * 4
        self.masked = [True] * 4
        self.level = [False] * 4
        self.in_service = [False] * 4
        self.expected: list[tuple[int, bool]] = []

    def send_level(self, pin: int) -> None:
        if self.lines[pin] and self.level[pin] and not self.masked[pin] and not self.in_service[pin]:
            self.expected.append((0x40 + pin, True))
            self.in_service[pin] = True

    @rule(pin=pins, mode=modes, mask=st.sampled_from([0, MASKED]))
    def route(self, pin: int, mode: int, mask: int) -> None:
        self.bench.route(pin, 0x40 + pin | mode | mask)
        self.masked[pin], self.level[pin] = bool(mask), bool(mode)
        if not mode:
            self.in_service[pin] = False
        self.send_level(pin)

    @rule(pin=pins, up=st.booleans())
    def drive(self, *, pin: int, up: bool) -> None:
        rises = up and not self.lines[pin]
        self.bench.chip.set_line(pin, up)
        self.lines[pin] = up
        if rises and not self.level[pin] and not self.masked[pin]:
            self.expected.append((0x40 + pin, False))
        self.send_level(pin)

    @precondition(lambda self: any(self.in_service))
    @rule(pin=pins)
    def end(self, pin: int) -> None:
        self.bench.chip.end_of_interrupt(0x40 + pin)
        self.in_service[pin] = False
        self.send_level(pin)

    @invariant()
    def agrees(self) -> None:
        assert self.bench.sent == self.expected
        assert [bool(self.bench.entry(pin) & REMOTE_IRR) for pin in range(4)] == self.in_service


TestLines = Lines.TestCase
