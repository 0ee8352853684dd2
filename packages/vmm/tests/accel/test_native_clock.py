"""kvm-clock, the time stamp counter's deadline, and the registers around them."""

import struct
import time
from collections.abc import Iterator

import pytest

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.tsc import measure_tsc_hz, read_tsc
from tiny_guest import HLT, RESULT, STORE_RAX, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

SYSTEM_TIME = 0x4B56_4D01
WALL_CLOCK = 0x4B56_4D00
TSC_ADJUST = 0x3B
TSC_DEADLINE = 0x6E0
TSC = 0x10
RDTSC = "0f31 48c1e220 4809d0"  # into rax
RDMSR = "0f32 48c1e220 4809d0"
PAGE = RESULT + 0x100
NS_PER_S = 1_000_000_000


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.cpu.stop()


def ecx(number: int) -> str:
    return "b9" + number.to_bytes(4, "little").hex()


def wrmsr(number: int, value: int) -> str:
    low, high = (value >> shift & 0xFFFF_FFFF for shift in (0, 32))
    return f"{ecx(number)} b8{low.to_bytes(4, 'little').hex()} ba{high.to_bytes(4, 'little').hex()} 0f30 "


def test_the_system_time_goes_on_at_the_counter_s_rate(guest: Guest) -> None:
    assert guest.run(f"{wrmsr(SYSTEM_TIME, PAGE | 1)} {RDTSC} {STORE_RAX} {HLT}") is Stopped.HALTED

    version, _, tsc, ns, multiplier, shift, flags = struct.unpack("<IIQQIbB2x", guest.ram.slice(PAGE, 32))
    assert version > 0
    assert version % 2 == 0
    assert flags == 1
    assert tsc < guest.result
    assert ns < 10 * NS_PER_S
    second = 2_500_000_000
    ticks = second << shift if shift >= 0 else second >> -shift
    assert abs((ticks * multiplier >> 32) - NS_PER_S) < 100


def test_the_time_of_day_is_the_host_s(guest: Guest) -> None:
    before_ns = time.time_ns()

    code = f"{wrmsr(SYSTEM_TIME, PAGE | 1)} {wrmsr(WALL_CLOCK, PAGE + 0x40)}"
    assert guest.run(f"{code} {HLT}") is Stopped.HALTED

    (system_ns,) = struct.unpack("<Q", guest.ram.slice(PAGE + 16, 8))
    version, seconds, nanoseconds = struct.unpack("<III", guest.ram.slice(PAGE + 0x40, 12))
    assert version % 2 == 0
    told_ns = seconds * NS_PER_S + nanoseconds + system_ns
    assert before_ns - 1_000_000 <= told_ns <= time.time_ns()


# rdtsc; mov rbx,rax; add rbx,0x10000000; again: rdtsc; cmp rax,rbx; jb again
WAIT = f"{RDTSC} 4889c3 4881c300000010 {RDTSC} 4839d8 72f2"
WAIT_TICKS = 0x1000_0000


def arm(ticks: int) -> str:
    """Look at the time, look at the counter, add, arm the timer: as Linux does."""
    add = "4805" + ticks.to_bytes(4, "little").hex()
    return f"{RDTSC} {RDTSC} {add} 4889c2 48c1ea20 {ecx(TSC_DEADLINE)} 0f30 "


def told_ns(guest: Guest) -> int:
    """The time of day that the guest was told last."""
    (system_ns,) = struct.unpack("<Q", guest.ram.slice(PAGE + 16, 8))
    _, seconds, nanoseconds = struct.unpack("<III", guest.ram.slice(PAGE + 0x40, 12))
    return int(seconds * NS_PER_S + nanoseconds + system_ns)


@pytest.fixture
def tsc_hz() -> int:
    return measure_tsc_hz(read_tsc())


@pytest.fixture
def true_guest(tsc_hz: int) -> Iterator[Guest]:
    """A guest whose counter counts as fast as it is told."""
    guest = Guest(tsc_hz=tsc_hz)
    yield guest
    guest.cpu.stop()


READ_THE_DAY = f"{wrmsr(SYSTEM_TIME, PAGE | 1)} {RDTSC} {wrmsr(WALL_CLOCK, PAGE + 0x40)} {RDTSC} {RDTSC}"


def test_a_guest_that_counted_ticks_is_given_the_time_that_it_lost(true_guest: Guest, tsc_hz: int) -> None:
    tick = tsc_hz // 250
    lost_ns_min = (WAIT_TICKS - 2 * tick) * NS_PER_S // tsc_hz
    before_ns = time.time_ns()

    code = f"{READ_THE_DAY} {arm(tick)} {WAIT} {arm(tick)} {arm(tick // 3)}"
    assert true_guest.run(f"{code} {HLT}") is Stopped.HALTED

    passed_ns = time.time_ns() - before_ns
    assert 2 * lost_ns_min < told_ns(true_guest) - before_ns < 2 * passed_ns


def test_a_guest_that_counted_no_ticks_is_given_nothing(true_guest: Guest, tsc_hz: int) -> None:
    code = f"{READ_THE_DAY} {WAIT} {arm(tsc_hz // 750)} {wrmsr(SYSTEM_TIME, PAGE | 1)}"
    assert true_guest.run(f"{code} {HLT}") is Stopped.HALTED

    assert told_ns(true_guest) <= time.time_ns()


@pytest.mark.parametrize("address", [0xFFFF_FFFF_FFFF_F000, 4 << 20, (4 << 20) - 16])
def test_a_clock_outside_of_ram_is_ignored(guest: Guest, address: int) -> None:
    code = f"{wrmsr(SYSTEM_TIME, address | 1)} {wrmsr(WALL_CLOCK, address | 12)}"

    assert guest.run(f"{code} {HLT}") is Stopped.HALTED


def test_a_deadline_goes_to_the_timer(guest: Guest) -> None:
    code = f"{RDTSC} 4805 00e1f505 4889c2 48c1ea20 {ecx(TSC_DEADLINE)} 0f30"  # in 100,000,000 ticks

    assert guest.run(f"{code} {RDMSR} {STORE_RAX} {HLT}") is Stopped.HALTED

    ((what, ticks),) = guest.bus.asked
    assert what == "timer"
    assert isinstance(ticks, int)
    assert 0 < ticks <= 100_000_000
    assert guest.result > 0


def test_a_deadline_that_has_passed_fires_at_once_and_reads_0(guest: Guest) -> None:
    code = f"{wrmsr(TSC_DEADLINE, 1)} {RDMSR} {STORE_RAX} {HLT}"

    assert guest.run(code) is Stopped.HALTED

    assert guest.bus.asked == [("timer", 0)]
    assert guest.result == 0


def test_no_deadline(guest: Guest) -> None:
    assert guest.run(f"{wrmsr(TSC_DEADLINE, 0)} {HLT}") is Stopped.HALTED

    assert guest.bus.asked == [("timer", -1)]


def test_the_counter_can_be_set(guest: Guest) -> None:
    assert guest.run(f"{wrmsr(TSC, 1 << 60)} {RDTSC} {STORE_RAX} {HLT}") is Stopped.HALTED

    assert 1 << 60 <= guest.result < (1 << 60) + 10_000_000_000


def test_the_adjustment_moves_the_counter(guest: Guest) -> None:
    code = f"{wrmsr(TSC, 0)} {wrmsr(TSC_ADJUST, 0)} {ecx(TSC_ADJUST)} {RDMSR} {STORE_RAX} {HLT}"

    assert guest.run(code) is Stopped.HALTED

    assert guest.result == 0


def test_the_local_apic_is_where_it_should_be(guest: Guest) -> None:
    assert guest.run(f"{ecx(0x1B)} {RDMSR} {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == 0xFEE0_0900
