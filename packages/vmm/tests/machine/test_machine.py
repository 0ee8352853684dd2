"""The machine runs, pauses and ends its processors, and its threads do not stop each other."""

import threading
from collections.abc import Callable

import pytest

from nitro_nsm import Nsm, NsmConfig
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.accel.unicorn import Unicorn
from nitro_vmm.address_map import (
    ACPI_RESET,
    ACPI_RESET_VALUE,
    MIB,
    virtio_slot,
)
from nitro_vmm.boot import long_mode
from nitro_vmm.devices.nsm import NsmDevice
from nitro_vmm.devices.vsock import VsockDevice
from nitro_vmm.errors import StateError
from nitro_vmm.machine.machine import End, Ending, Machine, MachineState
from nitro_vmm.machine.memory import Memory
from nitro_vmm.testing import FakeAccelerator, FakeState, FakeVcpu
from nitro_vsock import GuestMemory, VsockConfig, VsockEngine

CODE = 0x20_0000
# mov dx,0x3f8; mov al,'x'; print: out dx,al; jmp print
PRINT_FOR_EVER = bytes.fromhex("66baf803 b078 ee ebfd")
# count: inc rax; jmp count
COUNT_FOR_EVER = bytes.fromhex("48ffc0 ebfb")
# mov dx,0x3f8; count: out dx,al; inc rax; jmp count
COUNT_ALOUD = bytes.fromhex("66baf803 ee 48ffc0 ebfa")
# sti; hlt; cli; hlt: the second HLT ends the machine, if it is ever reached
ENABLE_AND_HALT = bytes.fromhex("fb f4 fa f4")
PATIENCE_S = 10
ENTRY = long_mode.entry_state(CODE, rsp=0)


def machine_with(
    *programs: Callable[[FakeVcpu], Exit], console: Callable[[bytes], None] = lambda _data: None
) -> Machine:
    return Machine(Memory(MIB), FakeAccelerator(*programs), console=console, console_ready=lambda: None)


def wait_for_kick(vcpu: FakeVcpu) -> Exit:
    return vcpu.wait_for_kick()


def start(machine: Machine) -> tuple[threading.Thread, list[Ending]]:
    endings: list[Ending] = []
    thread = threading.Thread(target=lambda: endings.append(machine.run(ENTRY)))
    thread.start()
    return thread, endings


@pytest.mark.parametrize(
    ("exit_", "ending"),
    [
        (Exit(ExitReason.HALTED), Ending(End.HALTED)),
        (Exit(ExitReason.TRIPLE_FAULT), Ending(End.TRIPLE_FAULT)),
        (Exit(ExitReason.CRASHED, "at 0x1"), Ending(End.CRASHED, "at 0x1")),
    ],
)
def test_the_processor_ends_the_machine(exit_: Exit, ending: Ending) -> None:
    machine = machine_with(lambda _vcpu: exit_)

    assert machine.run(ENTRY) == ending


def test_devices_have_their_ports_and_no_others() -> None:
    answers: dict[int, int] = {}

    def look(vcpu: FakeVcpu) -> Exit:
        vcpu.bus.write_port(0x3FF, 1, 0x5A)  # the serial port's scratch register, which is its last
        vcpu.bus.write_port(0x400, 1, 0x5A)
        for port in (0x5F, 0x61, 0x63, 0x65, 0x6F, 0x72, 0x3F7, 0x3FF, 0x400, 0x5FF, 0x603):
            answers[port] = vcpu.bus.read_port(port, 1)
        return Exit(ExitReason.HALTED)

    machine_with(look).run(ENTRY)

    assert answers.pop(0x3FF) == 0x5A
    assert set(answers.values()) == {0xFF}, "as from a bus where nobody answers"


def test_the_guest_resets_the_machine() -> None:
    def reset(vcpu: FakeVcpu) -> Exit:
        vcpu.bus.write_port(ACPI_RESET, 1, ACPI_RESET_VALUE)
        return vcpu.wait_for_kick()

    assert machine_with(reset).run(ENTRY) == Ending(End.REBOOT)


def test_the_end_of_one_processor_is_the_end_of_all() -> None:
    machine = machine_with(wait_for_kick, lambda _vcpu: Exit(ExitReason.TRIPLE_FAULT), wait_for_kick)

    assert machine.run(ENTRY) == Ending(End.TRIPLE_FAULT)


def test_a_processor_whose_thread_fails_ends_the_machine() -> None:
    def fail(_vcpu: FakeVcpu) -> Exit:
        raise ZeroDivisionError

    machine = machine_with(fail, wait_for_kick)

    with pytest.raises(ZeroDivisionError):
        machine.run(ENTRY)


def test_a_machine_stopped_before_it_runs_never_runs() -> None:
    started = threading.Event()

    def note(vcpu: FakeVcpu) -> Exit:
        started.set()
        return vcpu.wait_for_kick()

    machine = machine_with(note)

    machine.stop()

    assert machine.run(ENTRY) == Ending(End.STOPPED)
    assert not started.is_set()


def test_a_paused_machine_stands_still_until_it_is_resumed() -> None:
    steps: list[int] = []
    stepped = threading.Event()

    def step(vcpu: FakeVcpu) -> Exit:
        steps.append(vcpu.runs)
        stepped.set()
        return vcpu.wait_for_kick()

    machine = machine_with(step)
    thread, endings = start(machine)
    assert stepped.wait(PATIENCE_S)

    paused = machine.pause()
    before = list(steps)
    stepped.clear()
    machine.resume()
    resumed = stepped.wait(PATIENCE_S)
    machine.stop()
    thread.join(PATIENCE_S)

    assert paused
    assert before == [1]
    assert resumed
    assert endings == [Ending(End.STOPPED)]


def test_a_machine_can_be_stopped_while_it_is_paused() -> None:
    machine = machine_with(wait_for_kick, wait_for_kick)
    thread, endings = start(machine)

    machine.pause()
    machine.stop()
    thread.join(PATIENCE_S)

    assert endings == [Ending(End.STOPPED)]
    assert not machine.pause()


def unicorn_memory(code: bytes) -> Memory:
    memory = Memory(4 * MIB)
    long_mode.write(memory.guest)
    memory.guest.slice(CODE, len(code))[:] = code
    return memory


def unicorn_machine(code: bytes, console: Callable[[bytes], None] = lambda _data: None) -> Machine:
    return Machine(unicorn_memory(code), Unicorn(), console=console, console_ready=lambda: None)


def test_a_busy_guest_is_paused_resumed_and_stopped_again_and_again() -> None:
    machine = unicorn_machine(COUNT_FOR_EVER)
    thread, endings = start(machine)

    paused = []
    for _ in range(100):
        paused.append(machine.pause())
        machine.resume()
    machine.stop()
    thread.join(PATIENCE_S)

    assert paused == [True] * 100
    assert endings == [Ending(End.STOPPED)]


def test_a_console_that_waits_holds_up_nobody_but_the_guest() -> None:
    waiting, let_go, entered = threading.Event(), threading.Event(), threading.Event()

    def console(_data: bytes) -> None:
        waiting.set()
        let_go.wait()

    machine = unicorn_machine(PRINT_FOR_EVER, console)
    processor, endings = start(machine)
    assert waiting.wait(PATIENCE_S)

    other = threading.Thread(target=machine.locked, args=(entered.set,))
    other.start()
    free = entered.wait(PATIENCE_S)
    let_go.set()
    machine.stop()
    processor.join(PATIENCE_S)
    other.join()

    assert free
    assert endings == [Ending(End.STOPPED)]


def test_kicks_of_a_queue_that_another_thread_serves_are_left_to_the_accelerator() -> None:
    machine = machine_with(wait_for_kick)
    asked: list[tuple[int, int, int]] = []
    machine.board._signal_on_write = lambda *what: asked.append(what)
    engine = VsockEngine(VsockConfig(guest_cid=16))
    vsock = VsockDevice(engine, GuestMemory([]), locked=machine.locked)

    machine.add_virtio("nsm", NsmDevice(Nsm(NsmConfig()), GuestMemory([])))
    machine.add_virtio("vsock", vsock)

    slot = virtio_slot(1)
    kicks = [vsock.kick_descriptor(index) for index in range(3)]
    assert asked == [(slot.address + 0x50, index, kick) for index, kick in enumerate(kicks)]
    vsock.close()
    machine.close()


# Saved machines.


class Counter:
    """A guest that prints 0, 1, 2 ... for ever, until it has printed enough."""

    def __init__(self, memory: Memory, enough: int) -> None:
        self.printed = bytearray()
        self.reached = threading.Event()
        self._enough = enough
        self.memory = memory
        self.machine = Machine(memory, Unicorn(), console=self._print, console_ready=lambda: None)

    def _print(self, data: bytes) -> None:
        self.printed += data
        if len(self.printed) >= self._enough:
            self.reached.set()


def test_a_saved_machine_goes_on_in_another_where_it_was() -> None:
    first = Counter(unicorn_memory(COUNT_ALOUD), 100)
    processor, _ = start(first.machine)
    assert first.reached.wait(PATIENCE_S)
    first.machine.pause()
    state = first.machine.state()
    memory = Memory(4 * MIB)
    memory.guest.slice(0, 4 * MIB)[:] = first.memory.guest.slice(0, 4 * MIB)

    second = Counter(memory, 100)
    second.machine.restore(state)
    other = threading.Thread(target=second.machine.run, args=(None,))
    other.start()
    assert second.reached.wait(PATIENCE_S)
    second.machine.stop()
    first.machine.stop()
    processor.join(PATIENCE_S)
    other.join(PATIENCE_S)

    both = first.printed + second.printed
    assert both == bytes(index & 0xFF for index in range(len(both)))


def test_a_machine_saved_in_hlt_waits_on() -> None:
    machine = unicorn_machine(ENABLE_AND_HALT)
    thread, _ = start(machine)
    states: list[MachineState] = []
    while not states or not states[-1].vm.halted:  # type: ignore[attr-defined]
        assert machine.pause()
        states.append(machine.state())
        machine.resume()
        thread.join(0.01)  # lets the guest come to its HLT
    machine.stop()
    thread.join(PATIENCE_S)
    memory = unicorn_memory(ENABLE_AND_HALT)

    second = Machine(memory, Unicorn(), console=lambda _data: None, console_ready=lambda: None)
    second.restore(states[-1])
    endings: list[Ending] = []
    thread = threading.Thread(target=lambda: endings.append(second.run(None)))
    thread.start()
    still_waits = second.pause()
    second.stop()
    thread.join(PATIENCE_S)

    assert still_waits
    assert endings == [Ending(End.STOPPED)]


def test_a_state_of_another_accelerator_is_refused() -> None:
    machine = unicorn_machine(COUNT_FOR_EVER)
    saved = MachineState(FakeState(), machine.board.state())

    with pytest.raises(StateError, match="not saved by Unicorn") as caught:
        machine.restore(saved)

    assert caught.value.hint
    machine.close()


def test_a_state_of_a_machine_with_other_devices_is_refused() -> None:
    one, other = unicorn_machine(COUNT_FOR_EVER), unicorn_machine(COUNT_FOR_EVER)
    other.add_virtio("nsm", NsmDevice(Nsm(NsmConfig()), GuestMemory([])))

    with pytest.raises(StateError, match="nsm"):
        one.restore(other.state())

    one.close()
    other.close()
