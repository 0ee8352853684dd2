"""What a debugger sees of a processor on KVM, and what the kernel is told; no KVM is needed."""

import ctypes
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_registers import RegistersFile
from nitro_vmm.accel.kvm.debug import KvmDebug
from nitro_vmm.accel.kvm.structures import Registers, Segment, SystemRegisters, Table
from nitro_vmm.gdb.registers import REGISTERS

GENERAL = Registers(*range(0x100, 0x100 + len(Registers._fields)))
SEGMENTS = tuple(Segment(base=0x5000 + number, selector=8 * number) for number in range(1, 9))
SYSTEM = SystemRegisters(
    SEGMENTS,
    gdt=Table(),
    idt=Table(),
    cr0=0x10,
    cr2=0x12,
    cr3=0x13,
    cr4=0x14,
    cr8=0x18,
    efer=0xEFE,
    apic_base=0,
    pending=bytes(32),
)
KERNEL_GS_BASE = 0xC000_0102
OFF = (0, (0,) * 8)


class Fxsave(ctypes.LittleEndianStructure):
    """The legacy region of XSAVE (Intel SDM vol. 1, "Legacy Region of an XSAVE Area")."""

    _fields_ = (
        ("fcw", ctypes.c_uint16),
        ("fsw", ctypes.c_uint16),
        ("ftw", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("fop", ctypes.c_uint16),
        ("fip", ctypes.c_uint64),
        ("fdp", ctypes.c_uint64),
        ("mxcsr", ctypes.c_uint32),
        ("mxcsr_mask", ctypes.c_uint32),
        ("st", ctypes.c_uint8 * 16 * 8),
        ("xmm", ctypes.c_uint8 * 16 * 16),
    )
    fcw: int
    fsw: int
    ftw: int
    mxcsr: int
    st: Sequence[Sequence[int]]
    xmm: Sequence[Sequence[int]]


class File(RegistersFile):
    """The kernel's side of a processor."""

    def __init__(self, area: bytes = bytes(4096)) -> None:
        super().__init__(GENERAL, SYSTEM)
        self.area = area
        self.told: list[tuple[int, tuple[int, ...]]] = []

    def msrs(self, numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
        return tuple((number, 0x1234) for number in numbers if number == KERNEL_GS_BASE)

    def xsave(self, size: int) -> bytes:
        return self.area[:size]

    def set_guest_debug(self, control: int, registers: Sequence[int]) -> None:
        self.told.append((control, tuple(registers)))


@given(st.binary(min_size=ctypes.sizeof(Fxsave), max_size=ctypes.sizeof(Fxsave)))
def test_floating_registers_are_found_where_the_processor_saves_them(area: bytes) -> None:
    fxsave = Fxsave.from_buffer_copy(area)
    debug = KvmDebug(File(area + bytes(4096 - len(area))), 0)

    values = {register.name: debug.read_register(register.name) for register in REGISTERS}

    assert (values["fctrl"], values["fstat"], values["mxcsr"]) == (fxsave.fcw, fxsave.fsw, fxsave.mxcsr)
    for number in range(8):
        assert values[f"st{number}"] == int.from_bytes(bytes(fxsave.st[number])[:10], "little")
    for number in range(16):
        assert values[f"xmm{number}"] == int.from_bytes(bytes(fxsave.xmm[number]), "little")
    # GDB's tag word says 3 for each register that is empty; XSAVE's has a bit for each that is not.
    tags = [values["ftag"] >> 2 * number & 3 for number in range(8)]
    assert tags == [0 if fxsave.ftw >> number & 1 else 3 for number in range(8)]
    assert values["ftag"] < 1 << 16


def test_other_registers_are_read_by_their_names() -> None:
    debug = KvmDebug(File(), 0)

    values = {register.name: debug.read_register(register.name) for register in REGISTERS}

    assert {name: values[name] for name in Registers._fields if name != "rflags"} == {
        name: value for name, value in GENERAL._asdict().items() if name != "rflags"
    }
    assert values["eflags"] == GENERAL.rflags
    assert [values[name] for name in ("cs", "ds", "es", "fs", "gs", "ss")] == [8, 16, 24, 32, 40, 48]
    assert (values["fs_base"], values["gs_base"]) == (0x5004, 0x5005)
    assert [values[name] for name in ("cr0", "cr2", "cr3", "cr4", "efer")] == [0x10, 0x12, 0x13, 0x14, 0xEFE]
    assert debug.read_register("kernel_gs_base") == 0x1234


def test_a_register_that_there_is_not_is_0() -> None:
    assert KvmDebug(File(), 0).read_register("k7") == 0


@pytest.mark.parametrize(("name", "field"), [("rax", "rax"), ("r15", "r15"), ("eflags", "rflags")])
def test_general_registers_are_written(name: str, field: str) -> None:
    file = File()

    KvmDebug(file, 0).write_register(name, 0x77)

    assert file.general == GENERAL._replace(**{field: 0x77})
    assert file.system == SYSTEM


@pytest.mark.parametrize(("name", "index"), [("fs_base", 3), ("gs_base", 4)])
def test_a_segments_base_is_written_and_nothing_else(name: str, index: int) -> None:
    file = File()

    KvmDebug(file, 0).write_register(name, 0x77)

    assert file.system.segments[index] == SEGMENTS[index]._replace(base=0x77)
    assert [each for at, each in enumerate(file.system.segments) if at != index] == [
        each for at, each in enumerate(SEGMENTS) if at != index
    ]
    assert file.general == GENERAL


def test_what_cannot_be_written_stays() -> None:
    file = File()

    KvmDebug(file, 0).write_register("cr3", 0x77)

    assert (file.general, file.system) == (GENERAL, SYSTEM)


def test_breakpoints_are_in_the_debug_registers() -> None:
    """Intel SDM vol. 3B, "Debug Registers": bit 2n+1 of DR7 switches on breakpoint n for all programs."""
    file = File()
    debug = KvmDebug(file, 0)

    debug.set_breakpoints(frozenset({0x4000, 0x1000, 0x3000, 0x2000}))
    debug.apply(file)
    debug.apply(file)
    debug.set_breakpoints(frozenset({0x2000}))
    debug.apply(file)
    debug.set_breakpoints(frozenset())
    debug.apply(file)

    use = 1 | 0x2_0000
    assert file.told == [
        (use, (0x1000, 0x2000, 0x3000, 0x4000, 0, 0, 0, 0x4AA)),
        (use, (0x2000, 0, 0, 0, 0, 0, 0, 0x402)),
        OFF,
    ]


@pytest.mark.parametrize(("known", "control"), [(0, 3), (1, 3), (0x12_0003, 0x10_0003)])
def test_a_step_holds_interrupts_back_where_the_kernel_can(known: int, control: int) -> None:
    file = File()
    debug = KvmDebug(file, known)
    debug.set_breakpoints(frozenset({0x1000}))

    debug.step(due=True)
    debug.apply(file)
    debug.step(due=False)
    debug.set_breakpoints(frozenset())
    debug.apply(file)

    assert file.told == [(control, (0,) * 8), OFF]


def test_a_processor_that_is_not_debugged_is_left_alone() -> None:
    file = File()

    KvmDebug(file, 0).apply(file)

    assert file.told == []


def test_the_others_stand_still_during_the_step_of_the_one_that_has_stopped() -> None:
    first, second, third = File(), File(), File()
    debug = KvmDebug(first, 0)
    before = [debug.holds(file) for file in (first, second, third)]
    debug.stopped(second)
    debug.stopped(third)  # stops after the first that did, and does not count
    debug.step(due=True)
    during = [debug.holds(file) for file in (first, second, third)]
    debug.stopped(third)
    debug.step(due=True)
    later = [debug.holds(file) for file in (first, second, third)]

    assert before == [False, False, False]
    assert during == [True, False, True]
    assert later == [True, True, False]
