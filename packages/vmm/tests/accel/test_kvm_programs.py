"""Where a guest on KVM is stopped, and the instructions that are carried out for it; no KVM is needed."""

import ctypes
import mmap
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_registers import RegistersFile
from nitro_vmm.accel import Exit, ExitReason
from nitro_vmm.accel.kvm import ioctl, programs, structures
from nitro_vmm.accel.kvm.debug import KvmDebug
from nitro_vmm.accel.kvm.ioctl import Request, VmFile
from nitro_vmm.accel.kvm.stops import PORT, Return, Stops, find_returns
from nitro_vmm.accel.kvm.structures import Registers, Segment, SystemRegisters, Table
from nitro_vmm.accel.kvm.vcpu import KvmVcpu
from nitro_vmm.accel.kvm.vm import KvmVm
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.machine.bus import AddressSpace
from nitro_vsock import GuestMemory

ENTRY, STACK, GDT = 0x8000, 0x6000, 0x4000
# Intel SDM vol. 4, "Architectural MSRs".
MSR_STAR, MSR_LSTAR, MSR_FMASK, MSR_KERNEL_GS_BASE = 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0102
OUT = bytes((0xE6, PORT))  # out PORT,al (Intel SDM vol. 2, "OUT")
KERNEL_CODE, KERNEL_STACK, USER_STACK, USER_CODE = 0x10, 0x18, 0x2B, 0x33
SYSRET, SWAPGS, IRET = bytes.fromhex("480f07"), bytes.fromhex("0f01f8"), bytes.fromhex("48cf")
# As Linux has them: swapgs, seven bytes that do nothing or clear buffers, testb $3,8(%rsp), jne to iretq.
LINUX = (
    bytes(0x180)
    + SWAPGS
    + bytes(7)
    + SYSRET
    + bytes(0x1000)
    + SWAPGS
    + bytes(7)
    + bytes.fromhex("f644240803 0f8510000000")
    + bytes(16)
    + IRET
)
SYSRET_AT, SWAPGS_AT = 0x18A, 0x118D
TIMER_OFF, TIMER_ON = 1 << 16 | 0xEC, 0xEC


class Vcpu(RegistersFile):
    """The kernel's side of a processor: registers, and an identity map of 1 MiB."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MIB)
        self.guest = GuestMemory([(0, memoryview(self.memory))])
        self.lapic = bytearray(Request.GET_LAPIC.size)
        self.timer(TIMER_OFF)
        self.msr = {
            MSR_STAR: 0x23_0010 << 32,
            MSR_LSTAR: ENTRY,
            MSR_FMASK: 1 << 9 | 1 << 10,
            MSR_KERNEL_GS_BASE: 0x7777_0000,
        }
        nothing = Segment(unusable=1)
        code = Segment(0, 0xFFFF_FFFF, KERNEL_CODE, 0xB, present=1, s=1, l=1, g=1)
        gs = nothing._replace(base=0xFFFF_8880_0000_0000)
        system = SystemRegisters(
            (code, nothing, nothing, nothing, gs, nothing, nothing, nothing),
            gdt=Table(GDT, 0x7F),
            idt=Table(),
            cr0=0x8000_0011,
            cr2=0,
            cr3=0xA000,
            cr4=0x20,
            cr8=0,
            efer=0xD01,
            apic_base=0xFEE0_0900,
            pending=bytes(32),
        )
        super().__init__(Registers(rip=ENTRY, rsp=STACK, rflags=2), system)
        # Linux's table: code and data of the kernel, 32-bit code, data and code of programs.
        for selector, descriptor in (
            (KERNEL_CODE, 0x00AF_9B00_0000_FFFF),
            (KERNEL_STACK, 0x00CF_9300_0000_FFFF),
            (0x23, 0x00CF_FB00_0000_FFFF),
            (USER_STACK, 0x00CF_F300_0000_FFFF),
            (USER_CODE, 0x00AF_FB00_0000_FFFF),
        ):
            struct.pack_into("<Q", self.memory, GDT + (selector & ~7), descriptor)

    def timer(self, entry: int) -> None:
        struct.pack_into("<I", self.lapic, 0x320, entry)

    def frame(self, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.memory, self.general.rsp, *words)

    def get(self, request: Request) -> bytes:
        assert request is Request.GET_LAPIC
        return bytes(self.lapic)

    def translate(self, address: int) -> int | None:
        return address if address < MIB else None

    def msrs(self, numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
        return tuple((number, self.msr[number]) for number in numbers)

    def set_msrs(self, msrs: Sequence[tuple[int, int]]) -> int:
        self.msr.update(msrs)
        return len(msrs)


class Vm(VmFile):
    """The kernel's side of a machine, which remembers its memory, and refuses what KVM does.

    Linux, virt/kvm/kvm_main.c, "kvm_set_memory_region".
    """

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, int]] = {}

    def set_memory(
        self, slot: int, address: int, memory: mmap.mmap, *, start: int = 0, length: int | None = None
    ) -> None:
        assert length is not None
        assert start + length <= len(memory)
        assert not (address | start | length) % mmap.PAGESIZE
        assert (slot in self.slots) == (not length), (
            "a piece is there before it goes, and goes before it comes"
        )
        if length:
            self.slots[slot] = address, start, length
        else:
            del self.slots[slot]


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu()


@pytest.fixture
def vm() -> Vm:
    return Vm()


def stops_of(vm: Vm, vcpu: Vcpu) -> Stops:
    vm.set_memory(0, 0, vcpu.memory, length=MIB)
    return Stops(vm, [(RamRange(0, MIB), vcpu.memory)])


def put(vcpu: Vcpu, code: bytes) -> None:
    vcpu.memory[ENTRY : ENTRY + len(code)] = code


def test_sysret_goes_to_the_program_as_it_was(vcpu: Vcpu) -> None:
    vcpu.general = Registers(rcx=0x40_1000, r11=0x246 | 1 << 16, rsp=0x7FFF_0000, rip=ENTRY, rax=5)

    programs.system_return(vcpu)

    assert vcpu.general._replace(r11=0) == Registers(
        rax=5, rcx=0x40_1000, rsp=0x7FFF_0000, rip=0x40_1000, rflags=0x246
    )
    code, stack = vcpu.system.segments[0], vcpu.system.segments[5]
    assert (code.selector, code.dpl, code.l) == (USER_CODE, 3, 1)
    assert (stack.selector, stack.dpl) == (USER_STACK, 3)
    assert programs.program_of(vcpu) is not None


def test_swapgs_and_iret_go_to_the_program(vcpu: Vcpu) -> None:
    vcpu.frame(0x40_1234, USER_CODE, 0x1_0202, 0x7FFF_1000, USER_STACK)

    programs.interrupt_return(vcpu, vcpu.guest)

    assert vcpu.general == Registers(rip=0x40_1234, rsp=0x7FFF_1000, rflags=0x1_0202)
    code, stack = vcpu.system.segments[0], vcpu.system.segments[5]
    assert code == Segment(0, 0xFFFF_FFFF, USER_CODE, 0xB, present=1, dpl=3, s=1, l=1, g=1)
    assert stack == Segment(0, 0xFFFF_FFFF, USER_STACK, 3, present=1, dpl=3, db=1, s=1, g=1)
    assert vcpu.system.segments[4].base == 0x7777_0000
    assert vcpu.msr[MSR_KERNEL_GS_BASE] == 0xFFFF_8880_0000_0000


@pytest.mark.parametrize("way", ["sysret", "iret", "syscall"])
def test_only_code_and_stack_are_loaded(vcpu: Vcpu, way: str) -> None:
    """In the order CS DS ES FS GS SS TR LDT; SWAPGS changes the base of GS, too."""
    others = tuple(Segment(base=0x1000 * number, selector=8 * number) for number in range(8))
    vcpu.system = replace(vcpu.system, segments=(vcpu.system.segments[0], *others[1:]))
    if way == "syscall":
        programs.system_return(vcpu)
        programs.enter_system_call(vcpu)
    elif way == "sysret":
        programs.system_return(vcpu)
    else:
        vcpu.frame(0x40_1234, USER_CODE, 0x202, 0x7FFF_1000, USER_STACK)
        programs.interrupt_return(vcpu, vcpu.guest)

    code, data, extra, fs, gs, stack, task, local = vcpu.system.segments
    assert (data, extra, fs, task, local) == (*others[1:4], *others[6:])
    assert gs == (others[4]._replace(base=0x7777_0000) if way == "iret" else others[4])
    selectors = (KERNEL_CODE, KERNEL_STACK) if way == "syscall" else (USER_CODE, USER_STACK)
    privilege = 0 if way == "syscall" else 3
    # Intel SDM vol. 2, "SYSCALL" and "SYSRET": flat; code that was executed, and data that was written.
    assert code == Segment(0, 0xFFFF_FFFF, selectors[0], 11, present=1, dpl=privilege, s=1, l=1, g=1)
    assert stack == Segment(0, 0xFFFF_FFFF, selectors[1], 3, present=1, dpl=privilege, db=1, s=1, g=1)


@pytest.mark.parametrize(
    ("efer", "there"),
    [(0xD01, True), (0x401, True), (0x901, False), (0xB01, False), (0, False)],
)
def test_a_program_of_64_bits_runs_in_long_mode_only(vcpu: Vcpu, efer: int, there: bool) -> None:  # noqa: FBT001
    """Intel SDM vol. 3A, "Extended Feature Enable Register": LMA is bit 10; 8, 9 and 11 are others."""
    programs.system_return(vcpu)

    vcpu.system = replace(vcpu.system, efer=efer)

    assert (programs.program_of(vcpu) is not None) == there


@pytest.mark.parametrize(("efer", "taken"), [(0xD01, True), (0x401, True), (0xD00, False), (0xD02, False)])
def test_a_system_call_must_be_allowed(vcpu: Vcpu, efer: int, taken: bool) -> None:  # noqa: FBT001
    """SCE is bit 0."""
    programs.system_return(vcpu)

    vcpu.system = replace(vcpu.system, efer=efer)

    assert programs.enter_system_call(vcpu) == taken


class Descriptor(ctypes.LittleEndianStructure):
    """Intel SDM vol. 3A, figure "Segment Descriptor"."""

    _fields_ = (
        ("limit_low", ctypes.c_uint64, 16),
        ("base_low", ctypes.c_uint64, 24),
        ("type", ctypes.c_uint64, 4),
        ("s", ctypes.c_uint64, 1),
        ("dpl", ctypes.c_uint64, 2),
        ("present", ctypes.c_uint64, 1),
        ("limit_high", ctypes.c_uint64, 4),
        ("avl", ctypes.c_uint64, 1),
        ("l", ctypes.c_uint64, 1),
        ("db", ctypes.c_uint64, 1),
        ("g", ctypes.c_uint64, 1),
        ("base_high", ctypes.c_uint64, 8),
    )
    limit_low: int
    base_low: int
    limit_high: int
    base_high: int
    g: int
    type: int


@given(st.integers(0, (1 << 64) - 1))
def test_a_segment_is_loaded_with_all_that_its_descriptor_says(descriptor: int) -> None:
    """Loading marks it as accessed, the lowest bit of its type."""
    vcpu = Vcpu()
    vcpu.frame(0x40_1234, USER_CODE, 0x202, 0x7FFF_1000, USER_STACK)
    struct.pack_into("<Q", vcpu.memory, GDT + (USER_STACK & ~7), descriptor)
    it = Descriptor.from_buffer_copy(descriptor.to_bytes(8, "little"))

    programs.interrupt_return(vcpu, vcpu.guest)

    segment = vcpu.system.segments[5]
    limit = it.limit_high << 16 | it.limit_low
    assert segment.base == it.base_high << 24 | it.base_low
    assert segment.limit == (limit * 4096 + 4095 if it.g else limit)
    assert segment.type == it.type | 1
    assert (segment.selector, segment.unusable) == (USER_STACK, 0)
    for name in ("s", "dpl", "present", "avl", "l", "db", "g"):
        assert getattr(segment, name) == getattr(it, name)


def test_a_program_with_32_bits_is_none_to_look_at(vcpu: Vcpu) -> None:
    vcpu.frame(0x40_1234, 0x23, 0x202, 0x7FFF_1000, USER_STACK)

    programs.interrupt_return(vcpu, vcpu.guest)

    assert vcpu.general.rip == 0x40_1234
    assert programs.program_of(vcpu) is None


@pytest.mark.parametrize(
    ("rsp", "code"), [(MIB, USER_CODE), (MIB - 16, USER_CODE), (STACK, 0), (STACK, 0x37), (STACK, 0xFFFB)]
)
def test_a_return_to_nowhere_is_an_error(vcpu: Vcpu, rsp: int, code: int) -> None:
    vcpu.frame(0x40_1234, code, 0x202, 0x7FFF_1000, USER_STACK)
    vcpu.general = vcpu.general._replace(rsp=rsp)
    vcpu.system = replace(vcpu.system, gdt=Table(MIB - 0x80, 0x7F))

    with pytest.raises(LookupError, match=r"no memory|segment"):
        programs.interrupt_return(vcpu, vcpu.guest)


general = st.lists(st.integers(0, (1 << 64) - 1), min_size=16, max_size=16)


@given(general, st.integers(0, (1 << 47) - 1))
def test_a_system_call_and_its_return_change_nothing_but_rcx_and_r11(values: list[int], rip: int) -> None:
    vcpu = Vcpu()
    vcpu.general = Registers(rip=rip, rcx=rip, r11=0x202)
    programs.system_return(vcpu)
    programs.set_general(vcpu, values)
    before = programs.program_of(vcpu)

    entered = programs.enter_system_call(vcpu)
    in_kernel = vcpu.general
    nobody = programs.program_of(vcpu)
    programs.system_return(vcpu)

    after = programs.program_of(vcpu)
    assert entered
    assert nobody is None
    assert (in_kernel.rip, in_kernel.rcx, in_kernel.rflags) == (ENTRY, rip, 2)
    assert before is not None
    assert after == before._replace(general=(values[0], rip, *values[2:11], 0x202, *values[12:]))


def test_there_are_no_system_calls_of_the_kernel_or_without_their_being_on(vcpu: Vcpu) -> None:
    of_the_kernel = programs.enter_system_call(vcpu)
    programs.system_return(vcpu)
    vcpu.system = replace(vcpu.system, efer=0xD00)

    assert not of_the_kernel
    assert not programs.enter_system_call(vcpu)


def test_linuxs_ways_back_are_found() -> None:
    assert find_returns(LINUX) == {Return.SYSTEM_CALL: SYSRET_AT, Return.INTERRUPT: SWAPGS_AT}


@pytest.mark.parametrize("jump", ["e9 04000000", "eb 04", "75 04"])
def test_older_kernels_jump_otherwise(jump: str) -> None:
    code = SYSRET + SWAPGS + bytes.fromhex(jump) + bytes(4) + bytes.fromhex("f644242004 7507") + IRET

    assert find_returns(code) == {Return.SYSTEM_CALL: 0, Return.INTERRUPT: 3}


@pytest.mark.parametrize(
    "code", [b"", SYSRET, LINUX[:-1], LINUX[0x200:], SYSRET + SWAPGS + b"\xe9\xff\xff\xff\x7f", SWAPGS + IRET]
)
def test_other_code_has_no_ways_back(code: bytes) -> None:
    assert find_returns(code) == {}


@given(st.binary(max_size=64), st.lists(st.sampled_from([SYSRET, SWAPGS, IRET, b"\xeb", b"\xe9"])))
def test_any_code_can_be_looked_at(code: bytes, pieces: list[bytes]) -> None:
    for kind, offset in find_returns(code.join(pieces)).items():
        assert code.join(pieces)[offset:].startswith(kind.value)


def test_the_kernel_is_changed_when_its_timer_runs_and_put_back(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    put(vcpu, LINUX)
    watched.want_programs(wanted=True)

    early = watched.prepare(vcpu), bytes(vcpu.memory[ENTRY : ENTRY + len(LINUX)])
    vcpu.timer(TIMER_ON)
    prepared = watched.prepare(vcpu)
    places = [vcpu.memory[ENTRY + at : ENTRY + at + 3] for at in (SYSRET_AT, SWAPGS_AT)]
    watched.remove()
    removed = bytes(vcpu.memory[ENTRY : ENTRY + len(LINUX)])
    again = watched.prepare(vcpu), vcpu.memory[ENTRY + SYSRET_AT : ENTRY + SYSRET_AT + 2]
    watched.want_programs(wanted=False)

    assert early == (True, LINUX)
    assert prepared
    assert places == [OUT + SYSRET[2:], OUT + SWAPGS[2:]]
    assert removed == LINUX
    assert again == (True, OUT)
    assert vcpu.memory[ENTRY : ENTRY + len(LINUX)] == LINUX
    assert watched.return_at(ENTRY + SYSRET_AT) is Return.SYSTEM_CALL
    assert watched.return_at(ENTRY + SWAPGS_AT + len(OUT)) is Return.INTERRUPT
    assert watched.return_at(ENTRY) is None


class Running(Vcpu):
    """A processor that leaves the guest at the kernel's way back to a program, and then crashes."""

    def __init__(self) -> None:
        super().__init__()
        io = structures.RUN_IO.pack(ioctl.IO_OUT, 1, PORT, 1, 0)
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.shared[structures.RUN_EXIT : structures.RUN_EXIT + len(io)] = io
        self._reasons = iter([ioctl.EXIT_IO, None, ioctl.EXIT_SHUTDOWN])

    def set_signals(self, blocked: Iterable[int]) -> None: ...

    def mp_state(self) -> int:
        return 0

    def run(self) -> int:
        reason = next(self._reasons)
        if reason is None:
            raise InterruptedError
        return reason


@pytest.mark.parametrize(
    ("code", "exit_"),
    [
        pytest.param(USER_CODE, Exit(ExitReason.PROGRAM), id="a program of 64 bits"),
        pytest.param(0x23, Exit(ExitReason.TRIPLE_FAULT), id="one of 32 bits, which is let go"),
    ],
)
def test_a_run_ends_at_a_program(vm: Vm, code: int, exit_: Exit) -> None:
    file = Running()
    put(file, LINUX)
    file.timer(TIMER_ON)
    file.frame(0x40_1234, code, 0x202, 0x7FFF_1000, USER_STACK)
    file.general = file.general._replace(rip=ENTRY + SWAPGS_AT)
    debug = KvmDebug(file, 0)
    vcpu = KvmVcpu(
        file, AddressSpace(), threading.RLock(), stops=stops_of(vm, file), debug=debug, halted=lambda: False
    )
    vcpu.watch_programs(wanted=True)

    assert vcpu.run() == exit_
    assert file.general.rip == 0x40_1234


def test_a_saved_kernel_need_not_switch_its_timer_on_again(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    put(vcpu, LINUX)
    watched.kernel_is_up = True
    watched.want_programs(wanted=True)
    vcpu.msr[MSR_LSTAR] = 0

    waits = watched.prepare(vcpu), watched.return_at(ENTRY + SYSRET_AT)
    vcpu.msr[MSR_LSTAR] = ENTRY
    watched.prepare(vcpu)

    assert waits == (True, None)
    assert watched.return_at(ENTRY + SYSRET_AT) is Return.SYSTEM_CALL


def test_a_kernel_that_is_not_known_cannot_be_watched(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    vcpu.timer(TIMER_ON)
    unwatched = watched.prepare(vcpu)
    watched.want_programs(wanted=True)

    assert unwatched
    assert not watched.prepare(vcpu)
    assert not watched.finds_returns(vcpu)


def test_an_instruction_at_the_end_of_a_page_is_not_replaced(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    vcpu.msr[MSR_LSTAR] = mmap.PAGESIZE - SYSRET_AT - 1
    start = vcpu.msr[MSR_LSTAR]
    vcpu.memory[start : start + len(LINUX)] = LINUX

    assert not watched.finds_returns(vcpu)


def test_code_beyond_memory_is_no_code(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    vcpu.msr[MSR_LSTAR] = MIB - 0x200

    assert not watched.finds_returns(vcpu)


def test_a_page_is_missing_until_it_is_touched_after_the_timer_runs(vcpu: Vcpu, vm: Vm) -> None:
    watched = stops_of(vm, vcpu)
    vcpu.memory[0x5000:0x5004] = b"page"

    found = watched.watch_page(0x5000)
    hole = dict(vm.slots)
    early = watched.touched(vcpu)
    vcpu.timer(TIMER_ON)
    later = watched.touched(vcpu), watched.touched(vcpu)

    assert found
    assert hole == {0: (0, 0, 0x5000), 1: (0x6000, 0x6000, MIB - 0x6000)}
    assert not early
    assert later == (True, False)
    assert vm.slots[2] == (0x5000, 0x5000, 0x1000)
    piece = watched.page_at(0x5000, 4)
    assert piece is not None
    assert bytes(piece) == b"page"
    assert bytes(watched.page_at(0x5FFE, 8) or b"") == bytes(2)
    assert watched.page_at(0x6000, 1) is None


@pytest.mark.parametrize("address", [MIB, 0x5001, MIB - 0x800])
def test_what_is_no_page_of_memory_cannot_be_watched(vcpu: Vcpu, vm: Vm, address: int) -> None:
    watched = stops_of(vm, vcpu)

    assert not watched.watch_page(address)
    assert vm.slots == {0: (0, 0, MIB)}


@pytest.mark.parametrize(
    ("address", "pieces"),
    [(0, {2: (0x1000, 0x1000, MIB - 0x1000)}), (MIB - 0x1000, {0: (0, 0, MIB - 0x1000)})],
    ids=["first", "last"],
)
def test_a_page_at_an_end_of_memory_can_be_watched(
    vcpu: Vcpu, vm: Vm, address: int, pieces: dict[int, tuple[int, int, int]]
) -> None:
    watched = two_pieces(vm, vcpu)
    vcpu.timer(TIMER_ON)
    high = vm.slots[1]

    found = watched.watch_page(address)
    hole = dict(vm.slots)
    touched = watched.touched(vcpu)

    assert found
    assert hole == {1: high, **pieces}
    assert touched
    assert vm.slots[3] == (address, address, 0x1000)


def test_a_page_of_the_second_piece_of_memory_can_be_watched(vcpu: Vcpu, vm: Vm) -> None:
    watched = two_pieces(vm, vcpu)
    vcpu.timer(TIMER_ON)

    found = watched.watch_page(2 * MIB + 0x3000), watched.watch_page(MIB)
    watched.touched(vcpu)

    assert found == (True, False)
    assert vm.slots == {
        0: (0, 0, MIB),
        1: (2 * MIB, 0, 0x3000),
        2: (2 * MIB + 0x4000, 0x4000, MIB - 0x4000),
        3: (2 * MIB + 0x3000, 0x3000, 0x1000),
    }


def two_pieces(vm: Vm, vcpu: Vcpu) -> Stops:
    vm.set_memory(0, 0, vcpu.memory, length=MIB)
    high = mmap.mmap(-1, MIB)
    vm.set_memory(1, 2 * MIB, high, length=MIB)
    return Stops(vm, [(RamRange(0, MIB), vcpu.memory), (RamRange(2 * MIB, MIB), high)])


class Scattered(Vcpu):
    """Its kernel's code is virtually in one piece, and physically page by page from the top."""

    def translate(self, address: int) -> int | None:
        page, offset = divmod(address - KERNEL, mmap.PAGESIZE)
        return MIB - mmap.PAGESIZE * (page + 1) + offset if 0 <= page < 16 else None


KERNEL = 0xFFFF_FFFF_8100_0000


@pytest.mark.parametrize("shift", [0, 0x123, 0xE80])
def test_code_is_followed_from_page_to_page(vm: Vm, shift: int) -> None:
    vcpu = Scattered()
    vcpu.msr[MSR_LSTAR] = KERNEL + shift
    for at, byte in enumerate(LINUX):
        vcpu.memory[vcpu.translate(KERNEL + shift + at) or 0] = byte
    vcpu.timer(TIMER_ON)
    watched = stops_of(vm, vcpu)
    watched.want_programs(wanted=True)

    prepared = watched.prepare(vcpu)

    assert prepared
    for at, code in ((SYSRET_AT, SYSRET), (SWAPGS_AT, SWAPGS)):
        place = vcpu.translate(KERNEL + shift + at) or 0
        assert vcpu.memory[place : place + 3] == OUT + code[2:]


@pytest.mark.parametrize(
    ("looks", "asleep"),
    [
        ([0], False),
        ([1], True),
        ([1, 1], False),
        ([2, 1], False),
        ([1, 2], False),
        ([2, 2], True),
        ([9, 2, 0], False),
    ],
    ids=str,
)
def test_processors_sleep_for_good_when_all_were_seen_asleep(looks: list[int], asleep: bool) -> None:  # noqa: FBT001
    """Several twice, because one that was seen asleep may be woken by one that is looked at later."""
    vm: KvmVm = object.__new__(KvmVm)
    vcpus = [object.__new__(KvmVcpu) for _ in looks]
    for vcpu, count in zip(vcpus, looks, strict=True):
        vcpu.looks_asleep = count
    vm.vcpus = vcpus

    assert vm._all_sleep() == asleep
