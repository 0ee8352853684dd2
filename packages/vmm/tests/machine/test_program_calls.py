"""System calls in a program's name, against a kernel that only remembers them."""

import mmap
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitro_vmm.accel.state import ProgramState
from nitro_vmm.address_map import MIB
from nitro_vmm.errors import GuestError
from nitro_vmm.machine.program import Program
from nitro_vsock import GuestMemory

CR3, STACK, RIP = 0x1000, 0x9_0100, 0x40_0000
PRESENT_WRITABLE_USER = 7
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10 = range(11)
GENERAL = (*range(0x100, 0x104), STACK, *range(0x105, 0x110))


class Kernel:
    """A processor at a program, and what is done to it. Memory is mapped one to one for programs."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, MIB)
        self.memory = GuestMemory([(0, memoryview(self.buffer))])
        for table, below in ((CR3, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
            struct.pack_into("<Q", self.buffer, table, below | PRESENT_WRITABLE_USER)
        for page in range(256):
            struct.pack_into("<Q", self.buffer, 0x4000 + 8 * page, page << 12 | PRESENT_WRITABLE_USER)
        self.program: ProgramState | None = ProgramState(GENERAL, RIP, CR3)
        self.calls: list[tuple[int, ...]] = []
        self.takes_calls = True
        self.result = 0
        self.returns: list[ProgramState | None] = []
        """To whom the kernel returns before it returns to the program."""

    def set_general(self, values: list[int]) -> None:
        assert self.program is not None
        self.program = self.program._replace(general=tuple(values))

    def enter_system_call(self) -> bool:
        assert self.program is not None
        self.calls.append(self.program.general)
        return self.takes_calls

    def go_on(self) -> "Kernel":
        if self.returns:
            self.program = self.returns.pop(0)
        else:
            rest = self.calls[-1][1:]
            self.program = ProgramState((self.result & (1 << 64) - 1, *rest), RIP, CR3)
        return self

    def start(self) -> Program:
        return Program(self, self.memory, self.go_on)  # type: ignore[arg-type]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_arguments_are_in_the_registers_of_the_abi(kernel: Kernel) -> None:
    """System V ABI, AMD64 supplement, A.2.1: RDI, RSI, RDX, R10, R8, R9; the number in RAX."""
    kernel.start().call(77, 1, 2, 3, 4, 5, 6)

    (general,) = kernel.calls
    assert general[RAX] == 77
    assert [general[register] for register in (RDI, RSI, RDX, R10, R8, R9)] == [1, 2, 3, 4, 5, 6]
    others = set(range(16)) - {RAX, RDI, RSI, RDX, R10, R8, R9}
    assert {register: general[register] for register in others} == {
        register: GENERAL[register] for register in others
    }


def test_arguments_of_an_earlier_call_are_gone(kernel: Kernel) -> None:
    program = kernel.start()
    program.call(1, 11, 12, 13)

    program.call(2, 21)

    assert [kernel.calls[1][register] for register in (RDI, RSI, RDX)] == [21, GENERAL[RSI], GENERAL[RDX]]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6))
def test_bytes_are_where_their_addresses_say_and_are_aligned(arguments: list[bytes]) -> None:
    kernel = Kernel()
    kernel.start().call(1, *arguments)

    addresses = [kernel.calls[0][register] for register in (RDI, RSI, RDX, R10, R8, R9)]
    for address, data in zip(addresses, arguments, strict=False):
        assert address % 8 == 0
        assert kernel.buffer[address : address + len(data)] == data
    assert addresses[0] == STACK & ~0xFFF


@pytest.mark.parametrize("result", [0, 5, -1, -4095, (1 << 63) - 1, -(1 << 63)])
def test_a_result_is_signed(kernel: Kernel, result: int) -> None:
    kernel.result = result

    assert kernel.start().call(1) == result


def test_memory_and_registers_are_as_before_after_it_was_left(kernel: Kernel) -> None:
    kernel.buffer[0x9_0000:0x9_0200] = bytes(range(256)) * 2
    program = kernel.start()

    program.call(1, b"x" * 500)
    during = kernel.buffer[0x9_0000:0x9_01F4]
    program.leave()

    assert during == b"x" * 500
    assert kernel.buffer[0x9_0000:0x9_0200] == bytes(range(256)) * 2
    assert kernel.program is not None
    assert kernel.program.general == GENERAL


OTHER = ProgramState((99, *GENERAL[1:]), RIP, CR3)


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([OTHER._replace(rip=RIP + 2)], id="another place in the program"),
        pytest.param([OTHER._replace(page_tables=0x5000)], id="another program"),
        pytest.param([None], id="the kernel"),
        pytest.param([OTHER._replace(page_tables=0x5000)] * 9999, id="many programs"),
    ],
)
def test_only_a_return_to_the_program_ends_a_call(kernel: Kernel, others: list[ProgramState | None]) -> None:
    kernel.returns, kernel.result = others, 7

    assert kernel.start().call(1) == 7


def test_the_number_of_an_address_space_does_not_matter(kernel: Kernel) -> None:
    """Intel SDM vol. 3A, "Process-Context Identifiers": the low twelve bits of CR3."""
    kernel.returns = [OTHER._replace(page_tables=CR3 | 0xFFF)]

    assert kernel.start().call(1) == 99


def test_a_kernel_that_never_comes_back_is_given_up(kernel: Kernel) -> None:
    kernel.returns = [None] * 10_000

    with pytest.raises(GuestError, match="did not come back from system call 35"):
        kernel.start().call(35)


def test_a_kernel_without_system_calls_is_an_error(kernel: Kernel) -> None:
    kernel.takes_calls = False

    with pytest.raises(GuestError, match="takes no system calls of 64-bit programs"):
        kernel.start().call(1)


def stack(kernel: Kernel, *words: int) -> None:
    struct.pack_into(f"<{len(words)}Q", kernel.buffer, STACK, *words)


@pytest.mark.parametrize(
    ("words", "random"),
    [
        pytest.param((2, 1, 1, 0, 1, 1, 1, 0, 6, 4096, 25, 0x1234, 0, 0), 0x1234, id="behind all"),
        pytest.param((0, 0, 0, 25, 0x1234, 0, 0), 0x1234, id="without arguments and environment"),
        pytest.param((1, 25, 0, 25, 0, 25, 0x77, 0, 0), 0x77, id="an argument looks like it"),
        pytest.param((1, 1, 0, 0, 6, 25, 0, 0, 25, 0x1234), None, id="behind the end"),
        pytest.param((1, 1, 0, 0, 0, 0), None, id="none"),
    ],
)
def test_the_random_bytes_are_in_the_auxiliary_vector(
    kernel: Kernel, words: tuple[int, ...], random: int | None
) -> None:
    """System V ABI, AMD64 supplement, "Initial Stack and Register State": AT_NULL is 0, AT_RANDOM 25."""
    stack(kernel, *words)

    assert kernel.start().find_random() == random


@pytest.mark.parametrize(("count", "ends"), [(65_536, True), (65_537, False)])
def test_a_stack_has_an_end(kernel: Kernel, count: int, ends: bool) -> None:  # noqa: FBT001
    """Its words: how many arguments, they, a zero, one for the environment, and the vector's two."""
    kernel.program = ProgramState((*GENERAL[:RSP], 0x8000, *GENERAL[RSP + 1 :]), RIP, CR3)
    struct.pack_into("<Q", kernel.buffer, 0x8000, count - 5)
    find = kernel.start().find_random

    if ends:
        assert find() is None
    else:
        with pytest.raises(GuestError, match="stack has no end"):
            find()


@given(st.integers(0, 0x4000), st.binary(min_size=1, max_size=0x3000))
def test_memory_is_read_and_written_page_by_page(offset: int, data: bytes) -> None:
    """Each page of the program is where its table says, here in the other order."""
    kernel = Kernel()
    for page in range(16):
        struct.pack_into(
            "<Q", kernel.buffer, 0x4000 + 8 * (0x40 + page), (0x7F - page) << 12 | PRESENT_WRITABLE_USER
        )
    program = kernel.start()

    program.write(0x4_0000 + offset, data)

    assert program.read(0x4_0000 + offset, len(data)) == data
    for at in (0, len(data) - 1):
        page, place = divmod(offset + at, 0x1000)
        assert kernel.buffer[(0x7F - page) * 0x1000 + place] == data[at]


def test_memory_that_is_the_kernels_is_not_the_programs(kernel: Kernel) -> None:
    struct.pack_into("<Q", kernel.buffer, 0x4000 + 8 * 0x50, 0x5_0000 | 3)

    with pytest.raises(GuestError, match="no memory at 0x50000"):
        kernel.start().read(0x4_FFFC, 8)
