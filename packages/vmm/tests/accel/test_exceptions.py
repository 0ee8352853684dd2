"""What stands in the way of an exception, for IDTs, stacks and page tables of all kinds."""

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn.exceptions import (
    CR0_WRITE_PROTECT,
    CR4_SMAP,
    DOUBLE_FAULT,
    EFER_NXE,
    GENERAL_PROTECTION,
    INVALID_TSS,
    LARGE,
    NO_EXECUTE,
    NOT_PRESENT,
    PAGE_FAULT,
    PRESENT,
    STACK_FAULT,
    USER,
    WRITABLE,
    Fault,
    State,
    Table,
    combined,
    obstacle,
)

PML4, PDPT, PD, PT, IDT, GDT, TSS, STACK_PAGE, IST_PAGE = range(0x1000, 0xA000, 0x1000)
MEMORY_BYTES = 0x10000
STACK = STACK_PAGE + 0x800
IST_STACK = IST_PAGE + 0x800
KERNEL_CODE = 0x10
VECTOR = 6
ERROR = VECTOR * 8 + 2
GATE_PRESENT, INTERRUPT, FOR_USERS = 0x8000, 0x0E00, 0x6000
CODE64 = 0x00AF_9B00_0000_FFFF
RING3 = 3 << 45


@dataclass
class Memory:
    """Page tables that map 64 KiB one to one, an IDT, a GDT and a TSS."""

    data: bytearray = field(default_factory=lambda: bytearray(MEMORY_BYTES))

    def __post_init__(self) -> None:
        for table, below in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
            self.put(table, below | PRESENT | WRITABLE)
        for page in range(0, MEMORY_BYTES, 0x1000):
            self.put(PT + page // 0x1000 * 8, page | PRESENT | WRITABLE)
        for vector in range(32):
            self.gate(vector)
        self.put(GDT + KERNEL_CODE, CODE64)
        self.put(TSS + 4, STACK)
        self.put(TSS + 8 * 4 + 4, IST_STACK)

    def put(self, address: int, value: int) -> None:
        struct.pack_into("<Q", self.data, address, value)

    def gate(
        self, vector: int, *, kind: int = GATE_PRESENT | INTERRUPT, ist: int = 0, selector: int = KERNEL_CODE
    ) -> None:
        struct.pack_into("<HHHHQ", self.data, IDT + 16 * vector, 0, selector, kind | ist, 0, 0)

    def page(self, address: int, flags: int) -> None:
        self.put(PT + address // 0x1000 * 8, address & ~0xFFF | flags)

    def read(self, address: int) -> int | None:
        if not 0 <= address <= MEMORY_BYTES - 8:
            return None
        return int.from_bytes(self.data[address : address + 8], "little")


STATE = State(
    privilege=0,
    rsp=STACK,
    cr0=CR0_WRITE_PROTECT,
    cr3=PML4,
    cr4=0,
    efer=0,
    idt=Table(IDT, 0xFFF),
    gdt=Table(GDT, 0xFFF),
    tss=Table(TSS, 0x67),
)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.mark.parametrize("privilege", [0, 3])
def test_nothing_is_in_the_way(memory: Memory, privilege: int) -> None:
    assert obstacle(STATE._replace(privilege=privilege), VECTOR, memory.read) is None


def test_a_vector_beyond_the_idt(memory: Memory) -> None:
    state = STATE._replace(idt=Table(IDT, VECTOR * 16 + 14))

    assert obstacle(state, VECTOR, memory.read) == Fault(GENERAL_PROTECTION, ERROR)
    assert obstacle(state, VECTOR - 1, memory.read) is None


def test_the_idt_has_no_page(memory: Memory) -> None:
    memory.page(IDT, 0)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(PAGE_FAULT, 0, IDT + 16 * VECTOR)


def test_the_idt_is_no_ram(memory: Memory) -> None:
    memory.put(PT + IDT // 0x1000 * 8, 0xFEE0_0000 | PRESENT)

    fault = obstacle(STATE, VECTOR, memory.read)

    assert fault is not None
    assert fault.vector == PAGE_FAULT


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (INTERRUPT, Fault(NOT_PRESENT, ERROR)),
        (GATE_PRESENT | 0x0F00, None),
        (GATE_PRESENT | 0x0500, Fault(GENERAL_PROTECTION, ERROR)),
        (0, Fault(GENERAL_PROTECTION, ERROR)),
    ],
)
def test_kinds_of_gates(memory: Memory, kind: int, fault: Fault | None) -> None:
    memory.gate(VECTOR, kind=kind)

    assert obstacle(STATE, VECTOR, memory.read) == fault


@pytest.mark.parametrize(
    ("kind", "privilege", "fault"),
    [
        (0, 0, None),
        (0, 3, Fault(GENERAL_PROTECTION, ERROR)),
        (FOR_USERS, 3, None),
    ],
)
def test_the_privilege_of_a_gate_counts_for_software_only(
    memory: Memory, kind: int, privilege: int, fault: Fault | None
) -> None:
    memory.gate(VECTOR, kind=GATE_PRESENT | INTERRUPT | kind)
    state = STATE._replace(privilege=privilege)

    assert obstacle(state, VECTOR, memory.read, software=True) == fault
    assert obstacle(state, VECTOR, memory.read) is None


@pytest.mark.parametrize(
    ("selector", "descriptor", "fault"),
    [
        (0, CODE64, Fault(GENERAL_PROTECTION, 0)),
        (KERNEL_CODE | 4, CODE64, Fault(GENERAL_PROTECTION, KERNEL_CODE | 4)),
        (0x1000, CODE64, Fault(GENERAL_PROTECTION, 0x1000)),
        (KERNEL_CODE, 0, Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 & ~(1 << 43), Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 & ~(1 << 47), Fault(NOT_PRESENT, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 & ~(1 << 53), Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 | 1 << 54, Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 | RING3, Fault(GENERAL_PROTECTION, KERNEL_CODE)),
    ],
    ids=["null", "LDT", "limit", "empty", "data", "absent", "32-bit", "both sizes", "less privileged"],
)
def test_code_segments(memory: Memory, selector: int, descriptor: int, fault: Fault) -> None:
    memory.gate(VECTOR, selector=selector)
    memory.put(GDT + KERNEL_CODE, descriptor)

    assert obstacle(STATE, VECTOR, memory.read) == fault


def test_a_conforming_handler_stays_on_the_stack(memory: Memory) -> None:
    memory.put(GDT + KERNEL_CODE, CODE64 | 1 << 42)
    memory.put(TSS + 4, 0xDEAD_0000)

    assert obstacle(STATE._replace(privilege=3), VECTOR, memory.read) is None


@pytest.mark.parametrize(("flags", "error"), [(0, 2), (PRESENT, 3)], ids=["not present", "read-only"])
@pytest.mark.parametrize("privilege", [0, 3])
def test_the_stack_cannot_be_written(memory: Memory, flags: int, error: int, privilege: int) -> None:
    memory.page(STACK_PAGE, flags)

    fault = obstacle(STATE._replace(privilege=privilege), VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, error)
    assert fault.address is not None
    assert fault.address & ~0xFFF == STACK_PAGE


def test_a_read_only_stack_is_written_without_write_protection(memory: Memory) -> None:
    memory.page(STACK_PAGE, PRESENT)

    assert obstacle(STATE._replace(cr0=0), VECTOR, memory.read) is None


def test_the_frame_reaches_into_the_page_below(memory: Memory) -> None:
    memory.page(TSS, 0)
    state = STATE._replace(rsp=STACK_PAGE + 16)

    fault = obstacle(state, VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 2)
    assert obstacle(state._replace(rsp=STACK_PAGE + 48), VECTOR, memory.read) is None


def test_the_stack_is_not_canonical(memory: Memory) -> None:
    assert obstacle(STATE._replace(rsp=1 << 63), VECTOR, memory.read) == Fault(STACK_FAULT)


def test_an_interrupt_stack(memory: Memory) -> None:
    memory.gate(VECTOR, ist=1)
    state = STATE._replace(rsp=1 << 63)
    assert obstacle(state, VECTOR, memory.read) is None

    memory.page(IST_PAGE, 0)
    fault = obstacle(state, VECTOR, memory.read)

    assert fault is not None
    assert fault.vector == PAGE_FAULT


@pytest.mark.parametrize(("ist", "limit"), [(0, 10), (1, 42)])
def test_a_short_tss(memory: Memory, ist: int, limit: int) -> None:
    memory.gate(VECTOR, ist=ist)
    state = STATE._replace(privilege=3, tss=Table(TSS, limit))

    assert obstacle(state, VECTOR, memory.read) == Fault(INVALID_TSS)
    assert obstacle(state._replace(tss=Table(TSS, limit + 1)), VECTOR, memory.read) is None


def test_a_user_page_is_no_stack_under_smap(memory: Memory) -> None:
    for table in (PML4, PDPT, PD):
        memory.put(table, (memory.read(table) or 0) | USER)
    memory.page(STACK_PAGE, PRESENT | WRITABLE | USER)
    assert obstacle(STATE, VECTOR, memory.read) is None

    fault = obstacle(STATE._replace(cr4=CR4_SMAP), VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 3)


def test_no_execute_is_a_reserved_bit_unless_enabled(memory: Memory) -> None:
    memory.page(STACK_PAGE, PRESENT | WRITABLE | NO_EXECUTE)
    assert obstacle(STATE._replace(efer=EFER_NXE), VECTOR, memory.read) is None

    fault = obstacle(STATE, VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 0b1011)


def test_large_pages(memory: Memory) -> None:
    memory.put(PD, PRESENT | WRITABLE | LARGE)
    assert obstacle(STATE, VECTOR, memory.read) is None

    memory.put(PD, PRESENT | WRITABLE | LARGE | 0x2000)
    fault = obstacle(STATE, VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 0b1001)


@pytest.mark.parametrize(
    ("first", "second", "becomes"),
    [
        (6, 13, 13),
        (0, 13, DOUBLE_FAULT),
        (13, 11, DOUBLE_FAULT),
        (13, 14, 14),
        (14, 14, DOUBLE_FAULT),
        (14, 13, DOUBLE_FAULT),
        (14, 6, 6),
        (3, 14, 14),
        (DOUBLE_FAULT, 14, None),
        (DOUBLE_FAULT, 13, None),
    ],
)
def test_a_fault_on_the_way(first: int, second: int, becomes: int | None) -> None:
    """SDM vol. 3A, "Conditions for Generating a Double Fault"."""
    fault = combined(first, Fault(second, 5, 0x1000))

    assert (fault and fault.vector) == becomes


QUADWORD = st.integers(0, (1 << 64) - 1)
NEAR = st.integers(0, MEMORY_BYTES * 2) | QUADWORD
TABLE = st.builds(Table, NEAR, st.integers(0, 0xFFFF))
STATES = st.builds(
    State,
    st.integers(0, 3),
    NEAR,
    QUADWORD,
    NEAR,
    QUADWORD,
    QUADWORD,
    TABLE,
    TABLE,
    TABLE,
)


@given(
    state=STATES,
    vector=st.integers(0, 255),
    changes=st.dictionaries(st.integers(0, MEMORY_BYTES // 8 - 1), NEAR, max_size=20),
    software=st.booleans(),
)
@example(state=STATE, vector=255, changes={}, software=False)
def test_any_state_and_memory_end_in_a_few_faults(
    state: State, vector: int, changes: dict[int, int], *, software: bool
) -> None:
    memory = Memory()
    for index, value in changes.items():
        memory.put(index * 8, value)
    for tried in (state, STATE._replace(privilege=state.privilege, rsp=state.rsp)):
        pending: Fault | None = Fault(vector)
        for _ in range(4):
            assert pending is not None
            assert 0 <= pending.vector < 256
            assert 0 <= pending.error_code < 1 << 32
            assert pending.address is None or 0 <= pending.address < 1 << 64
            second = obstacle(tried, pending.vector, memory.read, software=software)
            if second is None:
                break
            pending = combined(pending.vector, second)
            if pending is None:
                break
        else:
            pytest.fail("no end of faults")
