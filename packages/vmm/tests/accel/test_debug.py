"""Breakpoints, steps and registers of a processor on Unicorn, as a debugger uses them."""

import pytest

from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.gdb.registers import REGISTERS
from tiny_guest import CODE, HLT, Guest

INC_RAX, INC_RBX, SPIN = "48ffc0", "48ffc3", "ebfe"


class Bench:
    """A guest that has run to its HLT, and its debugger."""

    def __init__(self) -> None:
        self.guest = Guest()
        self.masked: list[bool] = []
        self.debug = self.guest.cpu.debug(self.masked.append)

    def start(self, code: str) -> None:
        """Let the processor stand at the first instruction of this code."""
        assert self.guest.run(HLT) is Stopped.HALTED
        self.guest.put(CODE, code)
        self.debug.write_register("rip", CODE)
        self.debug.forget_code()

    @property
    def place(self) -> int:
        return self.debug.read_register("rip") - CODE

    def step(self) -> int:
        self.debug.step(due=True)
        assert self.debug.run() is None
        return self.place


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_breakpoint_stops_before_its_instruction_and_again_until_it_is_gone(bench: Bench) -> None:
    bench.start(INC_RAX * 3 + HLT)
    bench.debug.set_breakpoints(frozenset({CODE + 3}))

    assert bench.debug.run() is None
    assert (bench.place, bench.debug.read_register("rax")) == (3, 1)
    assert bench.debug.run() is None
    assert bench.place == 3
    bench.debug.set_breakpoints(frozenset())
    assert bench.debug.run() is Stopped.HALTED
    assert bench.debug.read_register("rax") == 3


def test_a_breakpoint_in_code_that_has_run_already(bench: Bench) -> None:
    bench.start(INC_RAX * 3 + HLT)
    assert bench.debug.run() is Stopped.HALTED
    bench.debug.write_register("rip", CODE)

    bench.debug.set_breakpoints(frozenset({CODE + 6}))

    assert bench.debug.run() is None
    assert (bench.place, bench.debug.read_register("rax")) == (6, 5)


def test_a_step_is_one_instruction_also_at_a_breakpoint_and_through_a_jump(bench: Bench) -> None:
    bench.start(INC_RAX + "eb01" + "cc" + INC_RBX + HLT)  # jmp over the INT3
    bench.debug.set_breakpoints(frozenset({CODE, CODE + 3}))

    assert [bench.step() for _ in range(3)] == [3, 6, 9]
    assert (bench.debug.read_register("rax"), bench.debug.read_register("rbx")) == (1, 1)
    assert bench.masked == [True, False] * 3, "interrupts wait meanwhile"


def test_a_step_of_a_repeated_instruction_is_one_round(bench: Bench) -> None:
    bench.start("b903000000 bf00303000" + "f3aa" + HLT)  # mov ecx,3; mov edi,0x303000; rep stosb

    places = [bench.step() for _ in range(4)]

    assert places == [5, 10, 10, 10]
    assert bench.debug.read_register("rcx") == 1


@pytest.mark.parametrize(
    "instruction", ["0fb10f", "0fae1f", "0fefc0", "0f0b"], ids=["CMPXCHG", "STMXCSR", "PXOR of MMX", "UD2"]
)
def test_a_breakpoint_stops_before_what_is_translated_otherwise(bench: Bench, instruction: str) -> None:
    bench.start("48c7c700303000" + instruction + HLT)  # mov rdi,0x303000
    bench.debug.set_breakpoints(frozenset({CODE + 7}))

    assert bench.debug.run() is None

    assert bench.place == 7


def test_a_breakpoint_stops_before_a_repeated_instruction(bench: Bench) -> None:
    bench.start("b903000000 bf00303000 8807" + "f3aa" + HLT)  # mov [rdi],al: the page is at hand
    bench.debug.set_breakpoints(frozenset({CODE + 12}))

    assert bench.debug.run() is None

    assert (bench.place, bench.debug.read_register("rcx")) == (12, 3)


def test_the_guest_runs_as_before_after_a_step(bench: Bench) -> None:
    # 1000 rounds of a loop, which cross blocks: mov ecx,1000; l: inc rax; dec ecx; jnz l; hlt
    bench.start("b9e8030000" + INC_RAX + "ffc9" + "75f9" + HLT)
    bench.step()

    assert bench.debug.run() is Stopped.HALTED

    assert bench.debug.read_register("rax") == 1000


def test_changed_code_is_what_runs(bench: Bench) -> None:
    bench.start(INC_RAX + HLT)
    bench.debug.run()
    bench.guest.put(CODE, INC_RBX)
    bench.debug.write_register("rip", CODE)

    bench.debug.forget_code()
    bench.debug.run()

    assert (bench.debug.read_register("rax"), bench.debug.read_register("rbx")) == (1, 1)


def test_every_register_can_be_read_and_general_ones_changed(bench: Bench) -> None:
    bench.start("dbe3d9e8" + HLT)  # fninit; fld1
    bench.debug.run()

    values = {register.name: bench.debug.read_register(register.name) for register in REGISTERS}
    for number, name in enumerate(("rax", "r15", "rsp", "fs_base", "gs_base")):
        bench.debug.write_register(name, 0x1234_5678_0000 + number)

    assert values["st0"] == 0x3FFF_8000_0000_0000_0000, "1.0"
    assert values["cr0"] & 0x8000_0001 == 0x8000_0001
    assert values["efer"] & 0x500 == 0x500
    assert values["cs"] == 0x10
    assert all(0 <= values[register.name] < 1 << register.bits for register in REGISTERS)
    assert bench.debug.read_register("fs_base") == 0x1234_5678_0003
    assert bench.debug.read_register("r15") == 0x1234_5678_0001
