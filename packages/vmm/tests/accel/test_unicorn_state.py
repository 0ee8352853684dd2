"""What a machine saved on Unicorn goes on with, above all its time stamp counter."""

import mmap
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn import Unicorn, vm
from nitro_vmm.accel.unicorn.interrupts import Interrupts
from nitro_vmm.accel.unicorn.locked_bus import LockedBus
from nitro_vmm.accel.unicorn.tsc import TscSample
from nitro_vmm.accel.unicorn.vm import UnicornState, UnicornVm, _signed
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.errors import StateError
from nitro_vmm.machine.bus import AddressSpace
from saved_states import changed

HZ = 2_500_000_000


@pytest.fixture(scope="module")
def machine() -> Iterator[UnicornVm]:
    made = Unicorn().create_vm([(RamRange(0, MIB), mmap.mmap(-1, MIB))], AddressSpace())
    made.tsc_hz = HZ
    yield made
    made.close()


def saved(machine: UnicornVm) -> UnicornState:
    state = machine.state()
    assert isinstance(state, UnicornState)
    return state


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 62))
@example(5, 1000, 100)
@example((1 << 64) - 5, 1000, 4)
@example((1 << 64) - 5, 1000, 5)
@example(1 << 63, 0, 0)
@example((1 << 63) - 1, 0, 0)
def test_the_counter_goes_on_wherever_the_hosts_is(
    machine: UnicornVm, tsc: int, host: int, later: int
) -> None:
    ticks = host
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vm, "read_tsc", lambda: TscSample(0, ticks))
        machine.restore(changed(saved(machine), tsc=tsc))
        ticks += later

        after = saved(machine).tsc

    assert after == (tsc + later) % (1 << 64)


@given(st.integers())
def test_numbers_of_64_bits_are_signed(number: int) -> None:
    assert -(1 << 63) <= _signed(number) < 1 << 63
    assert (_signed(number) - number) % (1 << 64) == 0


ALLOWED = HZ // 1000


@pytest.mark.parametrize("difference", [0, ALLOWED, -ALLOWED])
def test_a_frequency_may_differ_by_a_thousandth(machine: UnicornVm, difference: int) -> None:
    machine.restore(changed(saved(machine), tsc_hz=HZ + difference))


@pytest.mark.parametrize("difference", [ALLOWED + 1, -ALLOWED - 1])
def test_another_frequency_is_another_host(machine: UnicornVm, difference: int) -> None:
    with pytest.raises(StateError, match=rf"runs at {HZ + difference} Hz, here at {HZ}"):
        machine.restore(changed(saved(machine), tsc_hz=HZ + difference))


@pytest.mark.parametrize(("field", "greatest"), [("tsc", (1 << 64) - 1), ("tsc_hz", (1 << 32) - 1)])
def test_counters_have_a_width(machine: UnicornVm, field: str, greatest: int) -> None:
    state = saved(machine)
    good: dict[str, Any] = {field: greatest}

    assert getattr(changed(state, **good), field) == greatest
    for value in (greatest + 1, -1):
        bad: dict[str, Any] = {field: value}
        with pytest.raises(StateError, match=field):
            changed(state, **bad)


def test_registers_are_of_this_build(machine: UnicornVm) -> None:
    state = saved(machine)

    for registers in (state.registers[:-1], state.registers + b"\0"):
        with pytest.raises(StateError, match="registers"):
            changed(state, registers=registers)
    with pytest.raises(StateError, match="not saved by Unicorn"):
        machine.restore(changed(state, unicorn_version="2.0.0"))


class Port:
    """A device that remembers what is written to it."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - devices have it
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_bytes_of_one_instruction_are_written_one_by_one() -> None:
    port, bus, interrupts = Port(), AddressSpace(), Interrupts(timer_hz=HZ, clock_ns=lambda: 0)
    bus.add_ports(0x3F8, 8, port)

    LockedBus(bus, interrupts).write_bytes(0x3FA, b"ab")

    assert port.written == [(2, 1, ord("a")), (2, 1, ord("b"))]
    interrupts.close()


def test_each_interrupt_controller_has_a_page_and_the_rest_is_the_buss() -> None:
    """Where a PC has them; the versions tell that it is they who answer."""
    interrupts = Interrupts(timer_hz=HZ, clock_ns=lambda: 0)
    bus = LockedBus(AddressSpace(), interrupts)
    io_apic, local_apic = 0xFEC0_0000, 0xFEE0_0000

    bus.write_memory(io_apic, 4, 1)
    bus.write_memory(local_apic + 0x80, 4, 0x20)

    assert bus.read_memory(io_apic + 0x10, 4) == (24 - 1) << 16 | 0x20
    assert bus.read_memory(local_apic + 0x30, 4) == 0x5_0014
    assert bus.read_memory(local_apic + 0x80, 4) == 0x20
    beside = [page + step for page in (io_apic, local_apic) for step in (-0x1000, 0x1000)]
    nothing = [bus.read_memory(page + 0x30, 4) for page in beside]
    assert nothing == [0xFFFF_FFFF] * 4
    interrupts.close()
