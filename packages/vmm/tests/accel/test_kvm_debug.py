"""Breakpoints, steps and registers of a processor on KVM, wherever ``/dev/kvm`` opens."""

import mmap
import threading
from collections.abc import Iterator

import pytest

from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.accel.kvm import Kvm
from nitro_vmm.accel.kvm.ioctl import Request
from nitro_vmm.accel.kvm.structures import XSAVE_BYTES
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode
from nitro_vmm.errors import HostError
from nitro_vmm.gdb.registers import REGISTERS
from nitro_vmm.machine.bus import AddressSpace
from nitro_vsock import GuestMemory

CODE = 0x20_0000
INC_RAX, INC_RBX, HALT = "48ffc0", "48ffc3", "faf4"
PATIENCE_S = 30
STEP = Exit(ExitReason.DEBUG)


class Bench:
    """A guest whose first processor stands before some code."""

    def __init__(self, processors: int = 1) -> None:
        self.buffer = mmap.mmap(-1, 4 * MIB)
        self.memory = GuestMemory([(0, memoryview(self.buffer))])
        long_mode.write(self.memory)
        self.vm = Kvm().create_vm(
            [(RamRange(0, 4 * MIB), self.buffer)], AddressSpace(), processors=processors
        )
        self.vcpu = self.vm.vcpus[0]
        self.debug = self.vcpu.debug()

    def start(self, code: str) -> None:
        data = bytes.fromhex(code)
        self.memory.slice(CODE, len(data))[:] = data
        self.vcpu.enter(long_mode.entry_state(CODE, rsp=0x20_8000))

    @property
    def place(self) -> int:
        return self.debug.read_register("rip") - CODE

    def run(self) -> Exit:
        timer = threading.Timer(PATIENCE_S, self.vcpu.kick)
        timer.start()
        try:
            return self.vcpu.run()
        finally:
            timer.cancel()

    def step(self) -> int:
        self.debug.step(due=True)
        assert self.run() == STEP
        self.debug.step(due=False)
        return self.place


@pytest.fixture
def bench() -> Iterator[Bench]:
    try:
        bench = Bench()
    except HostError as error:
        pytest.skip(str(error))
    yield bench
    bench.vm.close()


def require_breakpoints(bench: Bench) -> None:
    """Skip where the processor that runs KVM is emulated by QEMU, which does not load a guest's DR7."""
    bench.start(INC_RAX * 2 + "ebfe")
    bench.debug.set_breakpoints(frozenset({CODE + 3}))
    timer = threading.Timer(1, bench.vcpu.kick)
    timer.start()
    stopped = bench.vcpu.run() == STEP
    timer.cancel()
    bench.debug.set_breakpoints(frozenset())
    bench.debug.step(due=False)
    if not stopped:
        pytest.skip("breakpoints of guests do nothing on this processor")


def test_a_breakpoint_stops_before_its_instruction_and_again_until_it_is_gone(bench: Bench) -> None:
    require_breakpoints(bench)
    bench.start(INC_RAX * 3 + HALT)
    bench.debug.write_register("rax", 0)
    bench.debug.set_breakpoints(frozenset({CODE + 3}))

    stops = [bench.run(), bench.run()]
    place, value = bench.place, bench.debug.read_register("rax")
    bench.debug.set_breakpoints(frozenset())
    end = bench.run()

    assert stops == [STEP, STEP]
    assert (place, value) == (3, 1)
    assert end.reason is ExitReason.HALTED
    assert bench.debug.read_register("rax") == 3


def test_a_step_is_one_instruction_also_at_a_breakpoint_and_through_a_jump(bench: Bench) -> None:
    bench.start(INC_RAX + "eb01" + "cc" + INC_RBX + HALT)  # jmp over the INT3
    bench.debug.set_breakpoints(frozenset({CODE, CODE + 3}))

    places = [bench.step() for _ in range(3)]

    assert places == [3, 6, 9]
    assert (bench.debug.read_register("rax"), bench.debug.read_register("rbx")) == (1, 1)


def test_the_guest_runs_as_before_after_a_step(bench: Bench) -> None:
    # mov ecx,1000; l: inc rax; dec ecx; jnz l; cli; hlt
    bench.start("b9e8030000" + INC_RAX + "ffc9" + "75f9" + HALT)
    bench.step()

    end = bench.run()

    assert end.reason is ExitReason.HALTED
    assert bench.debug.read_register("rax") == 1000


def test_there_are_four_breakpoints(bench: Bench) -> None:
    four = frozenset(range(4))

    assert bench.debug.set_breakpoints(four)
    assert not bench.debug.set_breakpoints(four | {4})


@pytest.mark.usefixtures("bench")  # which skips where there is no KVM
def test_another_processor_stands_still_during_a_step_and_can_be_kicked() -> None:
    two = Bench(processors=2)
    other = two.vm.vcpus[1]
    two.debug.step(due=True)
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(other.run()))
    thread.start()

    other.kick()
    thread.join(PATIENCE_S)
    two.vm.close()

    assert exits == [Exit(ExitReason.KICKED)]
    assert not two.vm.exits().total()


def test_every_register_can_be_read_and_general_ones_changed(bench: Bench) -> None:
    bench.start(HALT)
    area = bytearray(bench.vcpu._file.xsave(XSAVE_BYTES))
    area[4], area[32:42], area[512] = 0x80, bytes(7) + b"\x80\xff\x3f", 3  # as after fninit; fld1
    bench.vcpu._file.put(Request.SET_XSAVE, bytes(area))

    values = {register.name: bench.debug.read_register(register.name) for register in REGISTERS}
    for number, name in enumerate(("rax", "r15", "rsp", "fs_base", "gs_base")):
        bench.debug.write_register(name, 0x1234_5678_0000 + number)

    assert values["st0"] == 0x3FFF_8000_0000_0000_0000, "1.0"
    assert values["ftag"] == 0x3FFF
    assert values["cr0"] & 0x8000_0001 == 0x8000_0001
    assert values["efer"] & 0x500 == 0x500
    assert values["cs"] == 0x10
    assert all(0 <= values[register.name] < 1 << register.bits for register in REGISTERS)
    assert bench.debug.read_register("r15") == 0x1234_5678_0001
    assert bench.debug.read_register("fs_base") == 0x1234_5678_0003
