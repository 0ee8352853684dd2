"""Jumps of a kernel from one page straight into another, and what becomes of them when the pages move."""

import struct
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from page_tables import (
    ACCESSED,
    GLOBAL,
    GLOBAL_PAGES_OFF,
    GLOBAL_PAGES_ON,
    LARGE,
    LAST_TABLE,
    MAPPED,
    PAGE_FAULT,
    PRESENT,
    SWITCH,
    TABLES,
    UPPER,
    USER,
    WRITABLE,
    map_upper_half,
    set_entry,
    write_page_tables,
)
from programs import USER_CODE, make_programs_possible
from tiny_guest import HLT, RESULT, STORE_RAX, TRAP_GATE_FOR_USERS, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

PAGE = 0x1000
MAIN = 0x21_0000
SITES, SITE_BYTES = 0x21_8000, 16
"""One piece of code for each page that calls it, so that the same block does so each time."""
FUNCTIONS = 0x31_0000
"""A page for each; function N makes ``3 * RBX + N`` of RBX."""
PAGES, FUNCTION_COUNT = 4, 8

USED = PRESENT | ACCESSED
"""Only pages that were used before are linked."""
STORE_RBX = "48891c25" + struct.pack("<I", RESULT).hex()
RET = "c3"


def function(number: int) -> str:
    return f"488d5c5b{number:02x} {RET}"


def after(numbers: Sequence[int]) -> int:
    """RBX after these functions."""
    rbx = 0
    for number in numbers:
        rbx = 3 * rbx + number & (1 << 64) - 1
    return rbx


def code_page(number: int, flags: int = GLOBAL) -> int:
    """An entry that maps a function."""
    return FUNCTIONS + PAGE * number | USED | flags


def page(index: int) -> int:
    return MAPPED + PAGE * index


def length(code: str) -> int:
    return len(bytes.fromhex(code))


def relative(opcode: str, at: int, address: int) -> str:
    """A jump or call from one address to another."""
    return opcode + struct.pack("<i", address - at - length(opcode) - 4).hex()


def to_upper(address: int) -> str:
    return f"48b8 {struct.pack('<Q', UPPER + address).hex()} ffe0"  # mov rax,address; jmp rax


def invlpg(address: int) -> str:
    return f"48b8 {struct.pack('<Q', UPPER + address).hex()} 0f0138"


def make_guest() -> Guest:
    guest = Guest()
    write_page_tables(guest)
    for table, index in ((TABLES, 0), (TABLES + 0x1000, 0), (TABLES + 0x2000, 2)):
        guest.ram.slice(table + 8 * index, 1)[0] |= ACCESSED
    map_upper_half(guest)
    for number in range(FUNCTION_COUNT):
        guest.put(FUNCTIONS + PAGE * number, function(number))
    for index in range(PAGES):
        at = SITES + SITE_BYTES * index
        guest.put(at, relative("e8", at, page(index)) + RET)
    return guest


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = make_guest()
    yield guest
    guest.cpu.stop()


def run(guest: Guest, pieces: Sequence[str | int]) -> Stopped:
    """Run code in the upper half; a number stands for a call of what calls that page."""
    code = "31db"
    for piece in pieces:
        if isinstance(piece, int):
            code += relative("e8", MAIN + length(code), SITES + SITE_BYTES * piece)
        else:
            code += piece
    guest.put(MAIN, code + STORE_RBX + HLT)
    return guest.run(GLOBAL_PAGES_ON + SWITCH + to_upper(MAIN))


def result(guest: Guest, pieces: Sequence[str | int]) -> int:
    assert run(guest, pieces) is Stopped.HALTED
    return guest.result


steps = st.one_of(
    st.tuples(st.just("call"), st.integers(0, PAGES - 1)),
    st.sampled_from([("on",), ("off",)]),
    st.tuples(
        st.sampled_from(["INVLPG", "CR4", "CR3"]),
        st.integers(0, PAGES - 1),
        st.integers(0, FUNCTION_COUNT - 1),
        st.sampled_from([GLOBAL, 0]),
    ),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(steps, max_size=30))
def test_a_page_that_moved_is_called_where_it_is(steps: list[tuple[str, *tuple[int, ...]]]) -> None:
    """Whatever the pages are mapped to, global or not, and however the processor is told of it."""
    guest = make_guest()
    pieces: list[str | int] = [set_entry(code_page(index), index=index) for index in range(PAGES)]
    pieces.append(SWITCH)
    mapped = list(range(PAGES))
    called = []
    has_global_pages = True
    for kind, *numbers in steps:
        if kind in {"on", "off"}:
            has_global_pages = kind == "on"
            pieces.append(GLOBAL_PAGES_ON if has_global_pages else GLOBAL_PAGES_OFF)
            continue
        index = numbers[0]
        pieces.append(index)
        called.append(mapped[index])
        if kind == "call":
            continue
        _, mapped[index], flags = numbers
        pieces.append(set_entry(code_page(mapped[index], flags), index=index))
        if kind == "CR4":
            pieces.append(GLOBAL_PAGES_OFF + (GLOBAL_PAGES_ON if has_global_pages else ""))
            pieces.append("" if has_global_pages else GLOBAL_PAGES_ON + GLOBAL_PAGES_OFF)
        elif kind == "CR3" and not has_global_pages:
            pieces.append(SWITCH)
        else:
            pieces.append(invlpg(page(index)))
        pieces.append(index)
        called.append(mapped[index])

    assert result(guest, pieces) == after(called)
    guest.cpu.stop()


def test_a_page_that_is_not_global_any_more_goes_with_a_write_to_cr3(guest: Guest) -> None:
    first, same, other = (set_entry(entry) for entry in (code_page(1), code_page(1, 0), code_page(2)))

    got = result(guest, [first, SWITCH, 0, 0, same, invlpg(page(0)), 0, other, SWITCH, 0])

    assert got == after([1, 1, 1, 2])


def test_invlpg_forgets_all_of_a_large_page(guest: Guest) -> None:
    guest.put(PAGE, function(5))
    guest.put(0x20_0000 + PAGE, function(7))
    first, other = (
        set_entry(address | USED | WRITABLE | LARGE | GLOBAL, table=TABLES + 0x2000, index=2)
        for address in (0, 0x20_0000)
    )

    assert result(guest, [first, SWITCH, 1, 1, other, invlpg(page(300)), 1]) == after([5, 5, 7])


@pytest.mark.parametrize("back", [False, True])
def test_a_page_may_have_moved_before_the_processor_is_told(guest: Guest, *, back: bool) -> None:
    """The processor may use either place until then, but only the right one afterwards."""
    many, elsewhere = 0x10_0000, 0x21_9000
    guest.put(elsewhere, relative("e8", elsewhere, page(0)) + RET)
    for table in range(8):  # which map other pages, so many that the processor keeps none of before
        guest.ram.slice(many + PAGE * table, PAGE)[:] = struct.pack("<512Q", *[code_page(0)] * 512)
        entry = struct.pack("<Q", many + PAGE * table | USED | WRITABLE)
        guest.ram.slice(TABLES + 0x2000 + 8 * (3 + table), 8)[:] = entry
    # mov ecx,4096; mov rdx,the first of them; again: mov al,[rdx]; add rdx,0x1000; dec ecx; jnz again
    first_page = struct.pack("<Q", UPPER + page(512)).hex()
    evict = f"b900100000 48ba {first_page} 8a02 4881c200100000 ffc9 75f3"
    first, other = (set_entry(code_page(number)) for number in (1, 2))
    begin: list[str | int] = [first, SWITCH, 0, 0, other, evict]
    call = f"48b8 {struct.pack('<Q', UPPER + elsewhere).hex()} ffd0"  # what was never run before

    got = result(guest, [*begin, call, first if back else "", invlpg(page(0)), "31db", 0, call])

    assert got == after([1, 1] if back else [2, 2])


def test_a_program_does_not_get_into_a_page_that_it_was_denied(guest: Guest) -> None:
    enter = make_programs_possible(guest)
    for table, index in ((TABLES, 0), (TABLES, 256), (TABLES + 0x1000, 0), (TABLES + 0x2000, 0)):
        guest.ram.slice(table + 8 * index, 1)[0] |= USER
    guest.ram.slice(TABLES + 0x2000 + 8, 1)[0] |= USER
    guest.put(USER_CODE, to_upper(MAIN))
    call = relative("e8", SITES, page(0))
    guest.put(SITES, call + RET)
    calls = [relative("e8", MAIN + offset, SITES) for offset in (0, 5, 12)]
    guest.put(MAIN, calls[0] + calls[1] + "cd80" + calls[2] + "cd81")
    guest.gate(0x80, set_entry(code_page(1)) + invlpg(page(0)) + "48cf", kind=TRAP_GATE_FOR_USERS)
    guest.gate(0x81, HLT, kind=TRAP_GATE_FOR_USERS)
    guest.gate(PAGE_FAULT, "58" + STORE_RAX + HLT)
    allowed = set_entry(code_page(1, GLOBAL | USER))

    stopped = guest.run(GLOBAL_PAGES_ON + allowed + SWITCH + enter)

    assert (stopped, guest.result) == (Stopped.HALTED, 5)  # a program, and the page is there


def test_code_that_is_written_anew_is_called(guest: Guest) -> None:
    number = FUNCTIONS + PAGE + 4
    write = f"c60425 {struct.pack('<I', number).hex()} 06"  # mov byte [number],6

    assert result(guest, [set_entry(code_page(1)), SWITCH, 0, 0, write, 0]) == after([1, 1, 6])


@pytest.mark.parametrize("distance", [6, 0x100], ids=["both to other pages", "one to the same page"])
@pytest.mark.parametrize("count", [6, 7])
def test_each_way_out_of_a_conditional_jump(guest: Guest, distance: int, count: int) -> None:
    """In turns, from a place so far before the end of a page."""
    at, test, end = MAIN + PAGE - distance, MAIN + 0x100, MAIN + 0x2000
    guest.put(test, "f6c101" + relative("e9", test + 3, at))  # test cl,1
    guest.put(at, relative("0f84", at, page(1)))
    guest.put(at + 6, "488d5c5b02" + to_upper(end))
    guest.put(FUNCTIONS + PAGE, "488d5c5b01" + to_upper(end))
    guest.put(end, "ffc9 7405" + relative("e9", end + 4, test) + STORE_RBX + HLT)
    begin = "31db" + set_entry(code_page(1), index=1) + SWITCH + f"b9{count:02x}000000"
    guest.put(MAIN, begin + relative("e9", MAIN + length(begin), test))

    assert guest.run(GLOBAL_PAGES_ON + SWITCH + to_upper(MAIN)) is Stopped.HALTED

    assert guest.result == after([1 + (number & 1) for number in range(count, 0, -1)])


def test_a_page_that_is_not_used_is_not_marked(guest: Guest) -> None:
    """Though a block is run that may jump there."""
    entry = FUNCTIONS + PAGE | PRESENT | GLOBAL
    begin = set_entry(entry) + SWITCH + "31c0"

    run(guest, [begin, relative("0f85", MAIN + 2 + length(begin), page(0))])  # jnz, which does not

    assert guest.ram.slice(LAST_TABLE, 8) == struct.pack("<Q", entry)


def test_a_loop_over_two_pages_can_be_stopped(guest: Guest) -> None:
    begin = set_entry(code_page(1)) + SWITCH
    at = MAIN + 2 + length(begin)
    guest.put(FUNCTIONS + PAGE, relative("e9", page(0), at))
    stopper = threading.Timer(0.05, guest.cpu.stop)
    stopper.start()

    stopped = run(guest, [begin, relative("e9", at, page(0))])

    stopper.join()
    assert stopped is Stopped.ASKED


def test_there_may_be_more_pages_than_are_linked(guest: Guest) -> None:
    """Ten tables map the same page everywhere; each of its addresses is called twice."""
    tables, count, calls = 0x10_0000, 10, 0x3_0000
    for table in range(count):
        guest.ram.slice(tables + PAGE * table, PAGE)[:] = struct.pack("<512Q", *[code_page(1)] * 512)
        entry = struct.pack("<Q", tables + PAGE * table | USED | WRITABLE)
        guest.ram.slice(TABLES + 0x2000 + 8 * (2 + table), 8)[:] = entry
    numbers = range(512 * count)
    guest.put(calls, "".join(relative("e8", calls + 5 * number, page(number)) for number in numbers) + RET)
    call = f"48b8 {struct.pack('<Q', UPPER + calls).hex()} ffd0"

    assert result(guest, [call, call]) == after([1] * 2 * len(numbers))
