"""What a guest finds of its processor before it has changed anything, with the native part and without."""

import ctypes
import mmap
import struct
from collections.abc import Iterator

import pytest

from nitro_vmm.accel.unicorn import identity, native, private, public
from nitro_vmm.accel.unicorn.cpu import Cpu
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.private import PrivateState
from nitro_vmm.accel.unicorn.public import Register, Uc
from nitro_vmm.address_map import MIB, RamRange
from nitro_vmm.boot import long_mode
from nitro_vmm.errors import HostError
from programs import KERNEL_ENTRY, USER_CODE, make_programs_possible
from tiny_guest import CODE, HLT, LIDT, RESULT, STACK, STORE_RAX, TSC_HZ, Guest, RememberingBus

GENERAL = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]


@pytest.fixture(params=["native", "Python"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Python":
        monkeypatch.setattr(native, "LIBRARY", None)
    elif native.LIBRARY is None:
        pytest.skip(f"no native part: {native.MISSING}")
    return str(request.param)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.cpu.stop()


@pytest.mark.parametrize(
    ("code", "value"),
    [
        pytest.param("b9800000c0 0f32", 0x500, id="EFER: long mode is on and active, and nothing else"),
        pytest.param("0f20c0", 0x8000_0011, id="CR0: paging, protection, and a bit that is always set"),
        pytest.param("0f20e0", 0x20, id="CR4: PAE"),
        pytest.param("9c58", 2, id="RFLAGS: interrupts are off"),
        pytest.param("31c0 8cc8", 0x10, id="CS"),
        pytest.param("31c0 8cd8", 0x18, id="DS"),
        pytest.param("31c0 8cc0", 0x18, id="ES"),
        pytest.param("31c0 8ce0", 0x18, id="FS"),
        pytest.param("31c0 8ce8", 0x18, id="GS"),
        pytest.param("31c0 8cd0", 0x18, id="SS"),
        pytest.param("31c0 0f00c8", 0, id="the task register"),
        pytest.param("0f20d8", 0x9000, id="CR3"),
    ],
)
def test_the_64_bit_boot_protocols_registers(guest: Guest, code: str, value: int) -> None:
    guest.put(RESULT, "ff" * 8)
    if code == "0f20d8":
        value = long_mode.entry_state(0, rsp=0).cr3

    assert guest.run(code + STORE_RAX + HLT) is Stopped.HALTED
    assert guest.result == value


def test_the_table_of_segments(guest: Guest) -> None:
    guest.run("0f010425 00302000" + HLT)  # sgdt [RESULT]

    entry = long_mode.entry_state(0, rsp=0)
    assert struct.unpack("<HQ", guest.ram.slice(RESULT, 10)) == (entry.gdt_limit, entry.gdt_address)


@pytest.mark.parametrize("leaf", [1, 7, 0x4000_0001, 0x8000_0007])
def test_the_processor_says_what_the_native_part_adds(guest: Guest, engine: str, leaf: int) -> None:
    code = f"b8{struct.pack('<I', leaf).hex()} 31c9 0fa2"  # mov eax,leaf; xor ecx,ecx; cpuid
    # mov [RESULT],eax; mov [RESULT+4],ebx; mov [RESULT+8],ecx; mov [RESULT+12],edx
    store = "890425 00302000 891c25 04302000 890c25 08302000 891425 0c302000"

    guest.run(code + store + HLT)

    found = struct.unpack("<4I", guest.ram.slice(RESULT, 16))
    assert found == identity.leaves(TSC_HZ, native=engine == "native")[leaf]
    assert found != identity.leaves(TSC_HZ, native=engine != "native")[leaf]


def test_tables_at_address_0_are_found(guest: Guest) -> None:
    """A guest's IDT may be anywhere, and so the divide error's gate at 0."""
    guest.put(0x20_4000, struct.pack("<HQ", 0xFF, 0).hex())
    handler = 0x20_1000
    guest.ram.slice(0, 16)[:] = struct.pack("<HHHHII", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16, 0, 0)
    guest.put(handler, "b877000000" + STORE_RAX + HLT)  # mov eax,0x77

    stopped = guest.run(LIDT + "31c9 f7f1")  # xor ecx,ecx; div ecx

    assert stopped is Stopped.HALTED
    assert guest.result == 0x77


def test_what_is_between_pieces_of_memory_is_the_buss() -> None:
    low, high = mmap.mmap(-1, 4 * MIB), mmap.mmap(-1, MIB)
    bus = RememberingBus()
    ram = [(RamRange(0, 4 * MIB), low), (RamRange(6 * MIB, MIB), high)]
    cpu = Cpu(ram, bus, tsc_hz=TSC_HZ)
    view = memoryview(low)

    class Low:
        def slice(self, address: int, length: int) -> memoryview:
            return view[address : address + length]

    long_mode.write(Low())
    places = [4 * MIB, 6 * MIB - 4, 6 * MIB, 7 * MIB - 4, 7 * MIB]
    code = "b877000000" + "".join(f"890425{struct.pack('<I', place).hex()}" for place in places) + HLT
    low[CODE : CODE + len(bytes.fromhex(code))] = bytes.fromhex(code)
    cpu.enter(long_mode.entry_state(CODE, rsp=STACK))

    stopped = cpu.run()

    assert stopped is Stopped.HALTED
    assert [each[1] for each in bus.asked if each[0] == "store"] == [4 * MIB, 6 * MIB - 4, 7 * MIB]
    assert (high[:4], high[-4:]) == (b"\x77\0\0\0",) * 2


def test_a_run_goes_on_until_its_end() -> None:
    """It has neither a limit of time nor of instructions."""
    uc = Uc()
    uc.ctl_exits_enabled(True)
    memory = mmap.mmap(-1, 4 * MIB)

    uc.mem_map_ptr(0, len(memory), public.PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    # mov ecx,3000000; again: dec ecx; jnz again; hlt
    code = bytes.fromhex("b9c0c62d00 ffc9 75fc f4")
    memory[0x1000 : 0x1000 + len(code)] = code

    uc.emu_start(0x1000, 0)

    assert uc.reg_read(Register.RCX) == 0


def test_general_registers_are_in_the_order_of_the_instruction_set() -> None:
    uc = Uc()
    uc.ctl_exits_enabled(True)
    state = PrivateState(uc)
    for number, name in enumerate(GENERAL):
        register = getattr(Register, name.upper(), 0) or Register.R8 + int(name[1:]) - 8
        uc.reg_write(register, 0x1000 + number)

    assert list(state.registers) == [0x1000 + number for number in range(16)]


def test_segments_are_in_the_order_of_the_instruction_set(guest: Guest) -> None:
    guest.run(HLT)
    state = guest.cpu._private

    assert [state._segments[index].selector for index in range(6)] == [0x18, 0x10, 0x18, 0x18, 0x18, 0x18]
    assert len(state.control) == 5
    assert state.control[3] == long_mode.entry_state(0, rsp=0).cr3


@pytest.mark.parametrize("ahead", [0x4010_0000_0000_0000, -(1 << 62)])
def test_a_loaded_processors_time_stamp_counter_is_ahead_of_the_hosts(guest: Guest, ahead: int) -> None:
    guest.put(CODE, "0f31 48c1e220 4809d0" + STORE_RAX + HLT)  # rdtsc; shl rdx,32; or rax,rdx
    guest.cpu.enter(long_mode.entry_state(CODE, rsp=STACK))
    guest.cpu.load(guest.cpu.save(), tsc_offset=ahead)
    kept = guest.cpu.tsc_offset

    guest.cpu.run()

    assert kept == ahead
    assert (guest.result - ahead) % (1 << 64) < 1 << 60, "a host's counter takes years to get there"


def test_syscall_loads_the_kernels_segments(guest: Guest) -> None:
    """Intel SDM vol. 2, "SYSCALL": CS is bits 47:32 of STAR, and SS the one behind."""
    # mov eax,cs; mov ebx,ss; shl ebx,16; or eax,ebx
    guest.put(0x20_1000, "31c0 31db 8cc8 8cd3 c1e310 09d8" + STORE_RAX + HLT)
    efer, star, lstar, code = "b9800000c0", "b9810000c0", "b9820000c0", "0f30"
    program = (
        efer
        + "0f32 83c801"
        + code  # SCE
        + star
        + "31c0 ba4b005300"
        + code  # the low bits of 0x4b are no part of it
        + lstar
        + "b800102000 31d2"
        + code
        + "0f05"
    )

    assert guest.run(program) is Stopped.HALTED
    assert guest.result == 0x50 << 16 | 0x48


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("UC_NO_EXIT_REQUEST", "UC_INIT_DONE"),
        ("UC_TARGET_PAGE_SIZE", "UC_CPU"),
        ("UC_INIT_DONE", "UC_NO_EXIT_REQUEST"),
    ],
)
def test_each_neighbour_of_the_exit_request_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    monkeypatch.setattr(private, name, getattr(private, other))

    with pytest.raises(HostError, match="other neighbours"):
        Guest()


def test_only_unicorns_code_is_called() -> None:
    mapped = private._Mapped()
    libc = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    unicorn = ctypes.cast(public.library().uc_version, ctypes.c_void_p).value
    assert libc is not None
    assert unicorn is not None

    assert mapped.is_unicorn_code(unicorn)
    assert not mapped.is_unicorn_code(libc)


def test_what_is_not_mapped_is_not_followed() -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mapped = private._Mapped()
    ctypes.c_uint64.from_buffer(memory).value = start + 16

    mapped.require(start, 3 * page, "it")
    assert mapped.follow(start, 8, "it") == start + 16
    ctypes.c_uint64.from_buffer(memory).value = 8
    with pytest.raises(HostError, match="laid out differently: it points nowhere"):
        mapped.follow(start, 8, "it")


def test_a_program_comes_to_the_kernel_by_syscall(guest: Guest) -> None:
    """Intel SDM vol. 2, "SYSCALL": RCX gets the next address, R11 the flags; then HLT is allowed."""
    go = make_programs_possible(guest)
    guest.put(USER_CODE, "f9 0f05")  # stc; syscall
    guest.put(KERNEL_ENTRY, "4889c8" + STORE_RAX + "4c891c25 08302000" + HLT)  # RCX and R11

    stopped = guest.run(go)

    assert stopped is Stopped.HALTED
    assert struct.unpack("<2Q", guest.ram.slice(RESULT, 16)) == (USER_CODE + 3, 3)


@pytest.mark.parametrize(
    ("code", "kind", "vector", "error"),
    [
        pytest.param("cd21", 0x8E00, 13, 0x21 * 8 + 2, id="INT of the kernel's gate"),
        pytest.param("cc", 0x8E00, 13, 3 * 8 + 2, id="INT3 of the kernel's gate"),
        pytest.param("f4", 0x8E00, 13, 0, id="HLT"),
    ],
)
def test_a_program_may_not_do_what_is_the_kernels(
    guest: Guest, code: str, kind: int, vector: int, error: int
) -> None:
    go = make_programs_possible(guest)
    guest.put(USER_CODE, code + "ebfe")
    for number in (0x21, 3):
        guest.gate(number, HLT, kind=kind)
    guest.gate(vector, "58" + STORE_RAX + "58 48890425 08302000" + HLT)  # the error code, and RIP

    stopped = guest.run(go)

    assert stopped is Stopped.HALTED
    assert struct.unpack("<2Q", guest.ram.slice(RESULT, 16)) == (error, USER_CODE)


def test_a_program_may_use_a_gate_for_programs(guest: Guest) -> None:
    go = make_programs_possible(guest)
    guest.put(USER_CODE, "cd21")
    guest.gate(0x21, "58" + STORE_RAX + "58 48890425 08302000" + HLT, kind=0xEE00)  # RIP and CS

    stopped = guest.run(go)

    assert stopped is Stopped.HALTED
    assert struct.unpack("<2Q", guest.ram.slice(RESULT, 16)) == (USER_CODE + 2, 0x33)
