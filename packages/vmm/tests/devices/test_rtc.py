"""The clock shows the given time in each encoding, can be set, and holds still while it is read."""

import calendar
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.devices.rtc import Rtc

# As the Motorola MC146818's data sheet has them, and the century where a PC's firmware puts it.
INDEX, DATA = 0, 1
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 0xA, 0xB, 0xC, 0xD
B_SET, B_BINARY, B_24_HOURS = 1 << 7, 1 << 2, 1 << 1
HELD_NS = 10_000_000
"""A guest reads all registers well within ten milliseconds."""

S = 1_000_000_000
MORNING = calendar.timegm((2026, 11, 23, 9, 8, 7)) * S  # a Monday
EVENING = calendar.timegm((1999, 12, 31, 23, 59, 59)) * S


@dataclass
class Bench:
    now_ns: int = MORNING
    rtc: Rtc = field(init=False)

    def __post_init__(self) -> None:
        self.rtc = Rtc(lambda: self.now_ns)

    def get(self, register: int) -> int:
        self.rtc.write(INDEX, 1, register)
        return self.rtc.read(DATA, 1)

    def put(self, register: int, value: int) -> None:
        self.rtc.write(INDEX, 1, register)
        self.rtc.write(DATA, 1, value)

    def time(self) -> list[int]:
        return [self.get(register) for register in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


def test_the_time_is_utc_in_bcd_with_24_hours() -> None:
    bench = Bench()

    assert bench.time() == [0x20, 0x26, 0x11, 0x23, 0x09, 0x08, 0x07]
    assert bench.get(WEEKDAY) == 2


def test_binary_and_twelve_hours_on_request() -> None:
    bench = Bench(EVENING)

    bench.put(REGISTER_B, B_BINARY | B_24_HOURS)
    assert bench.time() == [19, 99, 12, 31, 23, 59, 59]
    bench.put(REGISTER_B, 0)
    assert bench.get(HOURS) == 0x80 | 0x11


@pytest.mark.parametrize(("hour", "shown"), [(0, 12), (1, 1), (11, 11), (12, 0x8C), (13, 0x81), (23, 0x8B)])
def test_twelve_hours_have_no_zero(hour: int, shown: int) -> None:
    bench = Bench(calendar.timegm((2026, 1, 1, hour, 0, 0)) * S)
    bench.put(REGISTER_B, B_BINARY)
    assert bench.get(HOURS) == shown

    bench.put(HOURS, shown)
    bench.put(REGISTER_B, B_BINARY | B_24_HOURS)
    assert bench.get(HOURS) == hour


def test_it_is_valid_never_updating_and_has_no_interrupts() -> None:
    bench = Bench()
    bench.put(REGISTER_C, 0xFF)
    bench.put(REGISTER_D, 0)
    bench.put(REGISTER_A, 0xFF)

    assert bench.get(REGISTER_A) == 0x7F
    assert bench.get(REGISTER_C) == 0
    assert bench.get(REGISTER_D) == 0x80, "the battery has power"


def test_no_second_passes_while_the_guest_reads() -> None:
    bench = Bench(EVENING + S - 1)
    bench.get(REGISTER_A)

    bench.now_ns += HELD_NS - 1
    assert bench.get(SECONDS) == 0x59
    assert bench.get(YEAR) == 0x99
    bench.now_ns += 1
    assert bench.get(SECONDS) == 0
    assert bench.get(YEAR) == 0


def test_the_guest_sets_its_own_time() -> None:
    bench = Bench()
    bench.put(REGISTER_B, B_SET | B_24_HOURS)
    for register, value in ((CENTURY, 0x20), (YEAR, 0x30), (MONTH, 2), (DAY, 0x28), (HOURS, 0x23)):
        bench.put(register, value)
    bench.now_ns += 5 * S
    assert bench.get(SECONDS) == 0x07

    bench.put(REGISTER_B, B_24_HOURS)
    assert bench.time() == [0x20, 0x30, 0x02, 0x28, 0x23, 0x08, 0x07]
    bench.now_ns += 3600 * S
    assert bench.time() == [0x20, 0x30, 0x03, 0x01, 0x00, 0x08, 0x07]


def test_a_date_that_does_not_exist_is_ignored() -> None:
    bench = Bench()
    for register, value in ((MONTH, 0x13), (DAY, 0x31), (HOURS, 0x24), (SECONDS, 0xFF), (CENTURY, 0x19)):
        bench.put(REGISTER_B, B_SET | B_24_HOURS)
        bench.put(register, value)
        bench.put(REGISTER_B, B_24_HOURS)

    assert bench.time() == [0x20, 0x26, 0x11, 0x23, 0x09, 0x08, 0x07]


def bcd(number: int) -> int:
    return number // 10 << 4 | number % 10


@pytest.mark.parametrize(
    ("date", "exists"),
    [
        ((1970, 1, 1, 0, 0, 0), True),
        ((1969, 12, 31, 23, 59, 59), False),
        ((9999, 12, 31, 23, 59, 59), True),
        ((2024, 2, 29, 12, 0, 0), True),
        ((2023, 2, 29, 12, 0, 0), False),
        ((2024, 4, 30, 0, 0, 0), True),
        ((2024, 4, 31, 0, 0, 0), False),
        ((2024, 4, 0, 0, 0, 0), False),
        ((2024, 0, 1, 0, 0, 0), False),
        ((2024, 13, 1, 0, 0, 0), False),
        ((2024, 1, 1, 24, 0, 0), False),
        ((2024, 1, 1, 0, 60, 0), False),
        ((2024, 1, 1, 0, 0, 60), False),
    ],
)
def test_a_date_is_taken_if_it_exists(date: tuple[int, ...], exists: bool) -> None:  # noqa: FBT001
    bench = Bench()
    before = bench.time()
    year, *rest = date
    registers = [bcd(value) for value in (year // 100, year % 100, *rest)]

    bench.put(REGISTER_B, B_SET | B_24_HOURS)
    for register, value in zip((CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS), registers, strict=True):
        bench.put(register, value)
    bench.put(REGISTER_B, B_24_HOURS)

    assert bench.time() == (registers if exists else before)


def test_the_weekday_goes_with_the_date() -> None:
    """Sunday is 1."""
    assert [Bench(MORNING + day * 86_400 * S).get(WEEKDAY) for day in range(8)] == [2, 3, 4, 5, 6, 7, 1, 2]


def test_the_rest_is_memory() -> None:
    bench = Bench()
    bench.put(0x7F, 0xA5)

    assert bench.get(0x7F) == 0xA5
    assert bench.get(0xFF) == 0xA5
    assert bench.rtc.read(INDEX, 1) == 0xFF


@given(
    st.integers(0, 253402300799),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 255), st.integers(0, 10 * S)), max_size=60),
)
def test_no_sequence_of_accesses_raises(start_s: int, sequence: list[tuple[int, int, int]]) -> None:
    bench = Bench(start_s * S)
    for offset, value, delay_ns in sequence:
        bench.now_ns += delay_ns
        bench.rtc.write(offset, 1, value)
        assert 0 <= bench.rtc.read(offset, 1) <= 0xFF
