"""System calls in the name of a guest's first program, which then runs as if nothing had been."""

from collections.abc import Callable

import pytest

from nitro_vmm.accel.unicorn import Unicorn
from nitro_vmm.accel.unicorn.native import LIBRARY
from nitro_vmm.address_map import MIB
from nitro_vmm.boot.loader import load
from nitro_vmm.errors import GuestError, HostError
from nitro_vmm.machine.machine import End, Ending, Machine
from nitro_vmm.machine.memory import Memory
from nitro_vmm.machine.paging import ADDRESS, LARGE, PRESENT, USER
from nitro_vmm.machine.program import MachineOverError, Program
from nitro_vmm.snapshot.renewal import renew
from nitro_vmm.testing import FakeAccelerator
from tiny_system import OLD_RANDOM, RANDOM, RETURN_0, RETURN_ENOSYS, RETURN_THE_ARGUMENT, SPIN, kernel

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="without the native part, programs are not noticed")

NEW_RANDOM = bytes(range(97, 113))
NOW_NS = 1_800_000_000_000_000_123


def run(handler: bytes, at_program: Callable[[Machine, Program], None]) -> tuple[Ending, bytes]:
    """Boot the tiny system; returns its end and what it printed."""
    printed = bytearray()
    memory = Memory(4 * MIB)
    machine = Machine(memory, Unicorn(), console=printed.extend, console_ready=lambda: None)
    entry = load(
        memory.guest,
        4 * MIB,
        kernel_image=kernel(handler),
        image_command_line=b"",
        ramdisks=[],
        rng_seed=bytes(64),
    )
    machine.at_first_program(lambda program: at_program(machine, program))
    return machine.run(entry), bytes(printed)


def test_the_kernel_answers_a_call_of_a_program_that_has_not_run() -> None:
    results: list[int] = []

    def at_program(_machine: Machine, program: Program) -> None:
        results.extend(program.call(number, 1000 + number) for number in range(20))
        program.leave()

    ending, printed = run(RETURN_THE_ARGUMENT, at_program)

    assert results == [1000 + number for number in range(20)]
    assert (ending, printed) == (Ending(End.POWER_OFF), b"k" + OLD_RANDOM)


def test_bytes_are_where_the_kernel_is_told_and_then_gone() -> None:
    seen, text = [], b"/dev/null\0"

    def at_program(_machine: Machine, program: Program) -> None:
        address = program.call(2, text, b"more")
        seen.append(program.read(address, len(text)))
        program.leave()
        seen.append(program.read(address, len(text)))

    run(RETURN_THE_ARGUMENT, at_program)

    assert seen[0] == text
    assert text not in seen[1]


def test_an_error_is_a_negative_number() -> None:
    results = []

    run(RETURN_ENOSYS, lambda _machine, program: results.append(program.call(1)))

    assert results == [-38]


def test_a_renewed_program_has_other_random_bytes() -> None:
    _, printed = run(
        RETURN_0,
        lambda _machine, program: renew(
            program,
            settled=lambda: True,
            entropy=lambda count: NEW_RANDOM[:count] if count == 16 else bytes(count),
            wall_clock_ns=lambda: NOW_NS,
        ),
    )

    assert printed == b"k" + NEW_RANDOM


def test_the_guest_is_given_time_until_it_has_taken_notice() -> None:
    answers = [False, False, True]

    ending, _ = run(
        RETURN_0,
        lambda _machine, program: renew(
            program, settled=lambda: answers.pop(0), entropy=bytes, wall_clock_ns=lambda: NOW_NS
        ),
    )

    assert answers == []
    assert ending == Ending(End.POWER_OFF)


@pytest.mark.parametrize(
    ("handler", "settled", "message"),
    [(RETURN_ENOSYS, True, "error 38"), (RETURN_0, False, "new address")],
)
def test_a_guest_that_cannot_be_renewed_does_not_go_on(
    handler: bytes,
    settled: bool,  # noqa: FBT001
    message: str,
) -> None:
    def at_program(_machine: Machine, program: Program) -> None:
        renew(program, settled=lambda: settled, wall_clock_ns=lambda: NOW_NS)

    with pytest.raises(GuestError, match=message):
        run(handler, at_program)


def test_where_the_random_bytes_are_is_found() -> None:
    found = []

    run(RETURN_0, lambda _machine, program: found.append(program.find_random()))

    assert found == [RANDOM]


@pytest.mark.parametrize("address", [0x1000_0000_0000, 0x0, 0x20_0000_0000, (1 << 64) - 8])
def test_memory_that_the_program_does_not_have_is_no_memory(address: int) -> None:
    def at_program(_machine: Machine, program: Program) -> None:
        with pytest.raises(GuestError, match="no memory"):
            program.read(address, 8)

    ending, _ = run(RETURN_0, at_program)

    assert ending == Ending(End.POWER_OFF)


def test_memory_and_tables_outside_of_ram_are_no_memory() -> None:
    address, outside = (32 << 39) + (33 << 30), 1 << 40

    def at_program(_machine: Machine, program: Program) -> None:
        top = program._start.page_tables & ADDRESS
        # The first table is its own second one, and says that the address is far away.
        program._memory.slice(top + 8 * 32, 8)[:] = (top | PRESENT | USER).to_bytes(8, "little")
        program._memory.slice(top + 8 * 33, 8)[:] = (outside | LARGE | PRESENT | USER).to_bytes(8, "little")
        with pytest.raises(GuestError, match="no memory"):
            program.read(address, 8)
        with pytest.raises(GuestError, match="no memory"):
            program.write(address, b"x")
        program._start = program._start._replace(page_tables=outside)
        with pytest.raises(GuestError, match="no memory"):
            program.read(0x40_0000, 8)

    run(RETURN_0, at_program)


def test_a_machine_can_be_stopped_while_its_kernel_does_not_come_back() -> None:
    raised = []

    def at_program(machine: Machine, program: Program) -> None:
        machine.stop()
        try:
            program.call(1)
        except MachineOverError as error:
            raised.append(error)
            raise

    ending, _ = run(SPIN, at_program)

    assert raised
    assert ending == Ending(End.STOPPED)


def test_a_machine_can_be_saved_before_its_first_program() -> None:
    states = []

    def at_program(machine: Machine, _program: Program) -> None:
        assert machine.pause()
        states.append(machine.state())
        machine.resume()

    ending, printed = run(RETURN_0, at_program)

    assert len(states) == 1
    assert (ending, printed) == (Ending(End.POWER_OFF), b"k" + OLD_RANDOM)


def test_an_accelerator_that_does_not_notice_programs_says_so() -> None:
    machine = Machine(
        Memory(MIB),
        FakeAccelerator(lambda vcpu: vcpu.wait_for_kick()),
        console=lambda _data: None,
        console_ready=lambda: None,
    )

    with pytest.raises(HostError, match="does not notice"):
        machine.at_first_program(lambda _program: None)
