"""How the processor's thread waits in HLT, and what it serves meanwhile."""

import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import pytest

from nitro_vmm.accel.unicorn import interrupts
from nitro_vmm.accel.unicorn.interrupts import Interrupts
from nitro_vmm.devices.io_apic_registers import REDIRECTION_TABLE, REGISTER_SELECT, WINDOW
from nitro_vmm.devices.local_apic_registers import LVT_TIMER, SOFTWARE_ENABLED, Register

if TYPE_CHECKING:
    from nitro_vmm.accel.unicorn.cpu import Cpu

PIN = 6
VECTOR, TIMER_VECTOR = 0x40, 0x50
PATIENCE_S = 60
JUMP_NS = 10_000_000


class FakeCpu:
    """A processor that takes an interrupt when a test says so."""

    def __init__(self) -> None:
        self.offered: list[int] = []
        self.offers: queue.SimpleQueue[str] = queue.SimpleQueue()
        """The threads that have offered."""
        self.taken = False

    def offer(self, vector: int) -> None:
        self.offered.append(vector)
        self.offers.put(threading.current_thread().name)

    def withdraw(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def forget_stop(self) -> None:
        pass


class Device:
    """A device with work whenever somebody writes to its descriptor."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.calls: list[str] = []
        self.holds = False
        self._interrupts = interrupts
        self.on_assist: Callable[[], None] = self.interrupt
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def interrupt(self) -> None:
        self._interrupts.locked(lambda: self._interrupts.io_apic.set_line(PIN, True))

    def work_fileno(self) -> int:
        return self._fd

    def work(self) -> None:
        os.eventfd_write(self._fd, 1)

    def claim(self, *, mine: bool) -> None:
        self.calls.append("claim" if mine else "leave")

    def assist(self) -> None:
        os.eventfd_read(self._fd)
        self.calls.append("assist")
        self.on_assist()

    def release(self) -> None:
        self.calls.append("release")
        self.holds = False
        self.interrupt()

    def close(self) -> None:
        os.close(self._fd)


class Bench:
    """Interrupt controllers with one pin that interrupts, and a device on it.

    Their clock jumps each time that somebody looks at it, so that every wait is a long one.
    """

    def __init__(self) -> None:
        jumps = itertools.count(0, JUMP_NS)
        self.interrupts = Interrupts(timer_hz=1_000_000, clock_ns=lambda: next(jumps))
        self.cpu = FakeCpu()
        self.interrupts.attach(cast("Cpu", self.cpu))
        self.interrupts.local_apic.write(Register.SPURIOUS_VECTOR, 4, SOFTWARE_ENABLED | 0xFF)
        self.interrupts.io_apic.write(REGISTER_SELECT, 4, REDIRECTION_TABLE + 2 * PIN)
        self.interrupts.io_apic.write(WINDOW, 4, VECTOR)
        self.device = Device(self.interrupts)

    def attend(self) -> None:
        self.interrupts.attend(self.device)

    def arm_timer(self) -> None:
        def arm() -> None:
            self.interrupts.local_apic.write(LVT_TIMER, 4, TIMER_VECTOR)
            self.interrupts.local_apic.write(Register.INITIAL_COUNT, 4, 1)

        self.interrupts.locked(arm)

    def serve(self) -> None:
        """The processor takes what is offered, and the guest serves it."""
        self.cpu.taken = True
        self.interrupts.locked(lambda: None)
        self.cpu.taken = False
        self.interrupts.locked(lambda: self.interrupts.local_apic.write(Register.END_OF_INTERRUPT, 4, 0))

    def close(self) -> None:
        self.interrupts.close()
        self.device.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    if not interrupts.__file__.endswith(".py"):
        pytest.skip("compiled code takes no stand-ins")
    bench = Bench()
    yield bench
    bench.close()


def test_a_processor_that_waits_serves_its_device_and_hears_of_its_interrupt(bench: Bench) -> None:
    bench.attend()
    bench.device.work()

    assert bench.interrupts.wait()

    assert bench.cpu.offered == [VECTOR]
    assert bench.device.calls == ["claim", "assist", "leave"]


def test_work_that_interrupts_nobody_lets_it_wait_on(bench: Bench) -> None:
    bench.attend()
    bench.device.on_assist = lambda: None
    bench.device.work()
    waiting = threading.Thread(target=bench.interrupts.wait)
    waiting.start()

    bench.device.interrupt()
    waiting.join(PATIENCE_S)

    assert not waiting.is_alive()
    assert bench.cpu.offered == [VECTOR]


def test_an_interrupt_that_is_held_back_comes_when_nothing_else_does(bench: Bench) -> None:
    bench.attend()
    bench.device.holds = True

    assert bench.interrupts.wait()

    assert bench.device.calls == ["claim", "release", "leave"]


def test_it_comes_too_when_the_guest_takes_another_one(bench: Bench) -> None:
    bench.attend()
    bench.device.interrupt()
    bench.interrupts.locked(lambda: bench.interrupts.io_apic.set_line(PIN, False))
    bench.device.holds = True

    bench.cpu.taken = True
    bench.interrupts.locked(lambda: None)

    assert bench.device.calls == ["release"]


def wait_until_kicked(bench: Bench) -> list[bool]:
    """Kick a processor that is about to wait; returns what the wait said."""
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(bench.interrupts.wait()))
    waiting.start()
    bench.interrupts.kick()
    waiting.join(PATIENCE_S)
    return woken


@pytest.mark.parametrize("attended", [False, True])
def test_a_kick_ends_the_wait_without_an_interrupt(bench: Bench, *, attended: bool) -> None:
    if attended:
        bench.attend()

    assert wait_until_kicked(bench) == [False]

    assert bench.interrupts.take_kick()


def test_a_device_that_comes_while_the_processor_waits_is_served_from_the_next_wait_on(bench: Bench) -> None:
    waiting = threading.Thread(target=bench.interrupts.wait)
    waiting.start()
    bench.attend()
    bench.device.work()
    bench.interrupts.kick()
    waiting.join(PATIENCE_S)
    bench.interrupts.take_kick()

    assert bench.interrupts.wait()

    assert bench.device.calls[-3:] == ["claim", "assist", "leave"]


def test_a_device_may_come_after_the_end(bench: Bench) -> None:
    bench.interrupts.close()

    bench.attend()

    assert bench.device.calls == []


def test_a_device_may_come_while_the_guest_waits_for_it_within_an_access(bench: Bench) -> None:
    attending = threading.Thread(target=bench.attend)

    bench.interrupts.enter()
    attending.start()
    attending.join(PATIENCE_S)
    bench.interrupts.leave()

    assert not attending.is_alive()


def test_who_waits_long_waits_for_the_timer_too(bench: Bench) -> None:
    bench.attend()
    bench.device.on_assist = bench.arm_timer  # when the wait has begun
    waits = []
    for _ in range(3):
        bench.device.work()
        waits.append(bench.interrupts.wait())
        bench.serve()

    assert waits == [True, True, True]
    assert bench.cpu.offered == [TIMER_VECTOR] * 3
    own = threading.current_thread().name
    assert [bench.cpu.offers.get() for _ in range(3)] == ["local APIC timer", own, own]


def test_the_timer_interrupts_a_guest_that_runs_after_a_long_wait(bench: Bench) -> None:
    for _ in range(2):
        bench.arm_timer()
        bench.interrupts.wait()
        bench.cpu.offers.get()
        bench.serve()

    bench.arm_timer()

    assert bench.cpu.offers.get(timeout=PATIENCE_S) == "local APIC timer"


def test_a_kick_ends_a_wait_for_the_timer(bench: Bench) -> None:
    bench.arm_timer()
    bench.interrupts.wait()
    bench.serve()

    assert wait_until_kicked(bench) == [False]

    assert bench.interrupts.take_kick()


def test_a_device_interrupts_a_wait_for_the_timer(bench: Bench) -> None:
    bench.attend()
    bench.arm_timer()
    bench.interrupts.wait()
    bench.serve()
    bench.device.work()

    assert bench.interrupts.wait()

    assert bench.cpu.offered == [TIMER_VECTOR, VECTOR]
