"""What stands in the way of an exception, for IDTs, stacks and page tables of all kinds."""

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn.exceptions import Fault, State, Table, combined, obstacle

# The vectors and bits as the Intel SDM vol. 3A has them, so that the module's own are held against them.
DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 8, 10, 11, 12, 13, 14
PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 0x1, 0x2, 0x4, 0x80, 0x8000_0000_0000_0000
CR0_WRITE_PROTECT, CR4_SMAP, EFER_NXE = 0x1_0000, 0x20_0000, 0x800

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
    assert obstacle(STATE._replace(idt=Table(IDT, VECTOR * 16 + 15)), VECTOR, memory.read) is None


def test_a_gate_ends_where_its_second_half_does(memory: Memory) -> None:
    memory.page(GDT, 0)  # behind the IDT; the GDT is in the TSS's page here
    memory.put(TSS + 0x800 + KERNEL_CODE, CODE64)
    gate = memory.data[IDT + 16 * VECTOR : IDT + 16 * VECTOR + 16]
    state = STATE._replace(gdt=Table(TSS + 0x800, 0xFFF))
    faults = []
    for at in (GDT - 16, GDT - 8):
        memory.data[at : at + 16] = gate
        faults.append(obstacle(state._replace(idt=Table(at - 16 * VECTOR, 0xFFF)), VECTOR, memory.read))

    assert faults == [None, Fault(PAGE_FAULT, 0, GDT)]


def test_a_gate_may_lie_at_any_address(memory: Memory) -> None:
    gate = memory.data[IDT + 16 * VECTOR : IDT + 16 * VECTOR + 16]
    for shift in range(1, 16):
        base = IDT + 0x800 + shift
        memory.data[base : base + 16 * VECTOR] = bytes(16 * VECTOR)
        memory.data[base + 16 * VECTOR : base + 16 * VECTOR + 24] = gate + bytes(8)
        state = STATE._replace(idt=Table(base, 0x7FF))

        assert obstacle(state, VECTOR, memory.read) is None
        assert obstacle(state, VECTOR - 1, memory.read) == Fault(GENERAL_PROTECTION, ERROR - 8)


def test_addresses_go_round_at_the_end(memory: Memory) -> None:
    """A table near the end of all addresses: its entries are looked for at the other end."""
    gate = memory.data[IDT + 16 * VECTOR : IDT + 16 * VECTOR + 16]
    for table, below in ((PML4, PDPT), (PDPT, PD), (PD, PT), (PT, IST_PAGE)):
        memory.put(table + 8 * 511, below | PRESENT | WRITABLE)
    for at in (0, -4):
        memory.data[IST_PAGE + 0xFF0 : IST_PAGE + 0x1000] = memory.data[:16] = bytes(16)
        pieces = gate[:-at], gate[-at:]
        memory.data[IST_PAGE + 0x1000 + at : IST_PAGE + 0x1000] = pieces[0]
        memory.data[: len(pieces[1])] = pieces[1]
        state = STATE._replace(idt=Table((1 << 64) - 16 * VECTOR + at, 0xFFF))

        assert obstacle(state, VECTOR, memory.read) is None


def test_the_idt_has_no_page(memory: Memory) -> None:
    memory.page(IDT, 0)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(PAGE_FAULT, 0, IDT + 16 * VECTOR)


def test_the_idt_is_no_ram(memory: Memory) -> None:
    memory.put(PT + IDT // 0x1000 * 8, 0xFEE0_0000 | PRESENT)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(PAGE_FAULT, 0b1001, IDT + 16 * VECTOR)


@pytest.mark.parametrize("table", [PML4, PDPT, PD])
def test_a_table_is_no_ram(memory: Memory, table: int) -> None:
    memory.put(table, 0xFEE0_0000 | PRESENT | WRITABLE)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(PAGE_FAULT, 0b1001, IDT + 16 * VECTOR)


def test_the_stack_is_no_ram(memory: Memory) -> None:
    memory.put(PT + STACK_PAGE // 0x1000 * 8, 0xFEE0_0000 | PRESENT | WRITABLE)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(PAGE_FAULT, 0b1011, STACK_PAGE)


def test_a_stack_at_address_0_goes_on_at_the_end(memory: Memory) -> None:
    assert obstacle(STATE._replace(rsp=0), VECTOR, memory.read) == Fault(PAGE_FAULT, 2, (1 << 64) - 0x1000)


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
        (0x2000, 1, None),
        (0x2000, 2, Fault(GENERAL_PROTECTION, ERROR)),
        (0x4000, 3, Fault(GENERAL_PROTECTION, ERROR)),
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
        (KERNEL_CODE, CODE64 & ~(1 << 44), Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 & ~(1 << 47), Fault(NOT_PRESENT, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 & ~(1 << 53), Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 | 1 << 54, Fault(GENERAL_PROTECTION, KERNEL_CODE)),
        (KERNEL_CODE, CODE64 | RING3, Fault(GENERAL_PROTECTION, KERNEL_CODE)),
    ],
    ids=[
        "null",
        "LDT",
        "limit",
        "empty",
        "data",
        "gate",
        "absent",
        "32-bit",
        "both sizes",
        "less privileged",
    ],
)
def test_code_segments(memory: Memory, selector: int, descriptor: int, fault: Fault) -> None:
    memory.gate(VECTOR, selector=selector)
    memory.put(GDT + KERNEL_CODE, descriptor)

    assert obstacle(STATE, VECTOR, memory.read) == fault


@pytest.mark.parametrize("requested", range(4))
def test_the_privilege_in_a_gates_selector_does_not_matter(memory: Memory, requested: int) -> None:
    memory.gate(VECTOR, selector=KERNEL_CODE | requested)

    assert obstacle(STATE, VECTOR, memory.read) is None


def test_the_null_selector_is_no_code_segment(memory: Memory) -> None:
    memory.gate(VECTOR, selector=3)  # its low bits are no part of the index
    memory.put(GDT, CODE64)

    assert obstacle(STATE, VECTOR, memory.read) == Fault(GENERAL_PROTECTION, 0)


def test_the_ldt_has_no_code_segment(memory: Memory) -> None:
    memory.gate(VECTOR, selector=KERNEL_CODE | 4)
    memory.data[GDT + KERNEL_CODE + 4 : GDT + KERNEL_CODE + 12] = CODE64.to_bytes(8, "little")

    assert obstacle(STATE, VECTOR, memory.read) == Fault(GENERAL_PROTECTION, KERNEL_CODE | 4)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_code_segment_ends_within_the_gdt(memory: Memory, beyond: int) -> None:
    state = STATE._replace(gdt=Table(GDT, KERNEL_CODE + 7 - beyond))
    fault = Fault(GENERAL_PROTECTION, KERNEL_CODE) if beyond else None

    assert obstacle(state, VECTOR, memory.read) == fault


@pytest.mark.parametrize("privilege", [0, 1, 2])
def test_a_handler_has_the_stack_of_its_privilege(memory: Memory, privilege: int) -> None:
    memory.put(GDT + KERNEL_CODE, CODE64 | privilege << 45)
    memory.data[TSS + 4 : TSS + 28] = bytes(24)
    memory.page(0, 0)  # where the other stacks end
    state = STATE._replace(privilege=3)
    without = obstacle(state, VECTOR, memory.read)

    memory.put(TSS + 4 + 8 * privilege, STACK)

    assert without == Fault(STACK_FAULT, 0) or (without is not None and without.vector == PAGE_FAULT)
    assert obstacle(state, VECTOR, memory.read) is None


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


def test_the_frame_ends_below_the_stack_pointer(memory: Memory) -> None:
    memory.page(IST_PAGE, 0)

    assert obstacle(STATE._replace(rsp=IST_PAGE + 8), VECTOR, memory.read) is None
    assert obstacle(STATE._replace(rsp=IST_PAGE + 16), VECTOR, memory.read) == Fault(PAGE_FAULT, 2, IST_PAGE)


@pytest.mark.parametrize("rsp", [1 << 63, 1 << 47, 0xFFFF << 48])
def test_the_stack_is_not_canonical(memory: Memory, rsp: int) -> None:
    assert obstacle(STATE._replace(rsp=rsp + 0x800), VECTOR, memory.read) == Fault(STACK_FAULT, 0)


@pytest.mark.parametrize("base", [1 << 47, 0xFFFF << 48])
def test_a_table_is_not_canonical(memory: Memory, base: int) -> None:
    state = STATE._replace(idt=Table(base, 0xFFF))

    assert obstacle(state, VECTOR, memory.read) == Fault(GENERAL_PROTECTION, 0)


@pytest.mark.parametrize("base", [(1 << 47) - 0x1000, 0xFFFF_8000_0000_0000])
def test_the_canonical_addresses_next_to_the_hole(memory: Memory, base: int) -> None:
    """They are looked up, in a table whose other entries are empty."""
    memory.put(PML4, 0)
    state = STATE._replace(idt=Table(base, 0xFFF))

    assert obstacle(state, VECTOR, memory.read) == Fault(PAGE_FAULT, 0, base + 16 * VECTOR)


@pytest.mark.parametrize("ist", range(1, 8))
def test_there_are_seven_interrupt_stacks(memory: Memory, ist: int) -> None:
    """SDM vol. 3A, "64-Bit TSS": IST1 is at byte 36."""
    memory.gate(VECTOR, ist=ist)
    for number in range(1, 8):
        memory.put(TSS + 36 + 8 * (number - 1), IST_STACK if number == ist else 1 << 63)

    assert obstacle(STATE, VECTOR, memory.read) is None


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

    assert obstacle(state, VECTOR, memory.read) == Fault(INVALID_TSS, 0)
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


@pytest.mark.parametrize("table", [PML4, PDPT, PD, PT])
def test_each_level_can_forbid_writing(memory: Memory, table: int) -> None:
    at = table + (STACK_PAGE // 0x1000 * 8 if table == PT else 0)
    memory.put(at, (memory.read(at) or 0) & ~WRITABLE)

    fault = obstacle(STATE, VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 3)


@pytest.mark.parametrize("table", [PML4, PDPT, PD, PT])
def test_a_page_is_the_users_when_all_levels_say_so(memory: Memory, table: int) -> None:
    for each in (PML4, PDPT, PD):
        memory.put(each, (memory.read(each) or 0) | USER)
    for page in range(0, MEMORY_BYTES, 0x1000):
        memory.page(page, PRESENT | WRITABLE | USER)
    state = STATE._replace(cr4=CR4_SMAP)
    users = obstacle(state, VECTOR, memory.read)
    entries = range(512) if table == PT else [0]

    for index in entries:
        memory.put(table + 8 * index, (memory.read(table + 8 * index) or 0) & ~USER)

    assert users == Fault(PAGE_FAULT, 1, IDT + 16 * VECTOR)
    assert obstacle(state, VECTOR, memory.read) is None


@pytest.mark.parametrize("table", [PML4, PDPT, PD, PT])
@pytest.mark.parametrize("shift", range(9))
def test_every_bit_of_an_address_is_used(memory: Memory, table: int, shift: int) -> None:
    """What lies elsewhere is reached by another entry of each table."""
    level = {PML4: 39, PDPT: 30, PD: 21, PT: 12}[table]
    if table == PT:
        memory.data[PT:IDT] = bytes(IDT - PT)
        pages = range(0, MEMORY_BYTES, 0x1000)
        for page in pages:
            memory.put(PT + (page // 0x1000 ^ 1 << shift) * 8, page | PRESENT | WRITABLE)
    far = [address ^ 1 << shift + level for address in (IDT, GDT, TSS, STACK)]
    if table != PT:
        memory.put(table + 8 * (1 << shift), memory.read(table) or 0)
        memory.put(table, 0)
    far = [address | 0xFFFF << 48 if address >> 47 else address for address in far]
    idt, gdt, tss, stack = far

    state = STATE._replace(idt=Table(idt, 0xFFF), gdt=Table(gdt, 0xFFF), tss=Table(tss, 0x67), rsp=stack)

    assert obstacle(state, VECTOR, memory.read) is None


def test_the_tables_flags_and_ignored_bits_are_no_part_of_addresses(memory: Memory) -> None:
    for table in (PML4, PDPT, PD):
        memory.put(table, (memory.read(table) or 0) | 0x7FF0_0000_0000_0F60)

    assert obstacle(STATE._replace(cr3=PML4 | 0xFFF), VECTOR, memory.read) is None


def test_large_pages(memory: Memory) -> None:
    memory.put(PD, PRESENT | WRITABLE | LARGE)
    assert obstacle(STATE, VECTOR, memory.read) is None

    memory.put(PD + 8, 0x20_0000 | PRESENT | WRITABLE | LARGE)
    beyond = STATE._replace(idt=Table(0x20_0000, 0xFFF))
    assert obstacle(beyond, VECTOR, memory.read) == Fault(PAGE_FAULT, 0b1001, 0x20_0000 + 16 * VECTOR)

    memory.put(PD, PRESENT | WRITABLE | LARGE | 0x2000)
    fault = obstacle(STATE, VECTOR, memory.read)

    assert fault is not None
    assert (fault.vector, fault.error_code) == (PAGE_FAULT, 0b1001)


@pytest.mark.parametrize(("table", "bit"), [(PT, 0x80), (PD, 0x1000 | LARGE)])
def test_the_memory_type_is_no_part_of_a_pages_address(memory: Memory, table: int, bit: int) -> None:
    """SDM vol. 3A, "4-Level Paging": PAT is bit 7 of a page's entry, and bit 12 of a large page's."""
    if table == PD:
        memory.put(PD, bit | PRESENT | WRITABLE)
    else:
        for page in range(0, MEMORY_BYTES, 0x1000):
            memory.page(page, bit | PRESENT | WRITABLE)

    assert obstacle(STATE, VECTOR, memory.read) is None


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
    assert fault is None or fault.error_code == (0 if becomes == DOUBLE_FAULT else 5)


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
