"""Repeated MOVS and STOS, of which the native part does many rounds at once."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.boot import long_mode
from page_tables import LAST_TABLE, MAPPED, PAGE_FAULT, PRESENT, SWITCH, WRITABLE, write_page_tables
from tiny_guest import CODE, HLT, LIDT, RESULT, STACK, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

DEBUG = 1
OPERANDS = 0x20_5000
"""RCX, RSI, RDI and RAX, as the code loads them."""
LOAD_OPERANDS = "48bb 0050200000000000 488b0b 488b7308 488b7b10 488b4318"
STORE_OPERANDS = "48890b 48897308 48897b10"
ARENA, ARENA_BYTES = 0x31_0000, 0x6000
PAGE = 0x31_0000
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Form:
    """One instruction."""

    code: str
    size: int
    stores: bool

    @property
    def place(self) -> int:
        """Where it is, with what comes before and after; no other form is there."""
        return CODE + 0x8_0000 + 0x80 * FORMS.index(self)


FORMS = [
    Form(prefix + rex + opcode, size, stores)
    for prefix in ("f3", "f2")
    for rex, size, opcodes in (
        ("", 1, ("a4", "aa")),
        ("66", 2, ("a5", "ab")),
        ("", 4, ("a5", "ab")),
        ("48", 8, ("a5", "ab")),
    )
    for opcode, stores in zip(opcodes, (False, True), strict=True)
]


@pytest.fixture(scope="module")
def moving() -> Iterator[Guest]:
    """A guest with the code of each form, upwards and, 0x40 bytes behind, downwards."""
    guest = Guest()
    for form in FORMS:
        for offset, direction in ((0, "fc"), (0x40, "fd")):
            code = direction + LOAD_OPERANDS + form.code + STORE_OPERANDS + HLT
            guest.put(form.place + offset, code)
    yield guest
    guest.cpu.stop()


def move(
    form: Form, memory: bytearray, operands: tuple[int, int, int, int], step: int
) -> tuple[int, int, int]:
    """What the processor's manual says of the instruction, round by round."""
    count, source, target, value = operands
    for _ in range(count):
        data = value.to_bytes(8, "little")[: form.size]
        if not form.stores:
            data = bytes(memory[source - ARENA : source - ARENA + form.size])
            source += step * form.size
        memory[target - ARENA : target - ARENA + form.size] = data
        target += step * form.size
    return 0, source, target


@given(
    form=st.sampled_from(FORMS),
    downwards=st.booleans(),
    count=st.one_of(st.integers(0, 40), st.integers(0, 0x900)),
    source=st.integers(0, ARENA_BYTES - 8),
    distance=st.one_of(st.integers(-64, 64), st.integers(-ARENA_BYTES, ARENA_BYTES)),
    value=st.one_of(st.sampled_from([0, MASK, 0x0101_0101_0101_0101]), st.integers(0, MASK)),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rounds_come_one_after_the_other(
    moving: Guest, form: Form, *, downwards: bool, count: int, source: int, distance: int, value: int
) -> None:
    step = -1 if downwards else 1
    target = min(max(source + distance, 0), ARENA_BYTES - 8)
    room = [
        place // form.size if downwards else (ARENA_BYTES - place) // form.size for place in (source, target)
    ]
    count = min(count, *room)
    operands = (count, ARENA + source, ARENA + target, value)
    before = bytes((index * 7 + (index >> 8)) & 0xFF for index in range(ARENA_BYTES))
    expected = bytearray(before)
    registers = move(form, expected, operands, step)
    moving.ram.slice(ARENA, ARENA_BYTES)[:] = before
    moving.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", *operands)

    moving.cpu.enter(long_mode.entry_state(form.place + 0x40 * downwards, rsp=STACK, rsi=0))
    stopped = moving.cpu.run()

    assert stopped is Stopped.HALTED
    assert struct.unpack("<3Q", moving.ram.slice(OPERANDS, 24)) == registers
    assert bytes(moving.ram.slice(ARENA, ARENA_BYTES)) == bytes(expected)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.cpu.stop()


def map_one_page(guest: Guest) -> None:
    """Page tables with a page at `MAPPED` and nothing behind it, for `SWITCH`."""
    write_page_tables(guest)
    guest.ram.slice(LAST_TABLE, 8)[:] = struct.pack("<Q", PAGE | PRESENT | WRITABLE)
    guest.gate(PAGE_FAULT, STORE_OPERANDS + HLT)


@pytest.mark.parametrize("form", FORMS[:8], ids=lambda form: form.code)
def test_a_fault_of_the_target_comes_between_two_rounds(guest: Guest, form: Form) -> None:
    """The registers say how far it came."""
    map_one_page(guest)
    first = MAPPED + 0x1000 - 10 * form.size
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 25, CODE, first, MASK)

    stopped = guest.run(LIDT + SWITCH + LOAD_OPERANDS + form.code + HLT)

    source = CODE if form.stores else CODE + 10 * form.size
    assert stopped is Stopped.HALTED
    assert struct.unpack("<3Q", guest.ram.slice(OPERANDS, 24)) == (15, source, MAPPED + 0x1000)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.stores], ids=lambda form: form.code)
def test_a_fault_of_the_source_comes_between_two_rounds(guest: Guest, form: Form) -> None:
    map_one_page(guest)
    target = 0x31_8000
    first = MAPPED + 0x1000 - 10 * form.size
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 25, first, target, 0)

    stopped = guest.run(LIDT + SWITCH + LOAD_OPERANDS + form.code + HLT)

    assert stopped is Stopped.HALTED
    assert struct.unpack("<3Q", guest.ram.slice(OPERANDS, 24)) == (
        15,
        MAPPED + 0x1000,
        target + 10 * form.size,
    )


def test_source_and_target_may_have_the_same_place_in_the_tlb(guest: Guest) -> None:
    """Pages that are 256 pages apart have, so that each round drops one of them."""
    map_one_page(guest)
    source, target, kept = MAPPED + 0x1_0000, MAPPED - 0xF_0000, 0x35_0000
    guest.ram.slice(LAST_TABLE + 8 * 0x10, 8)[:] = struct.pack("<Q", kept | PRESENT | WRITABLE)
    data = bytes(range(1, 201))
    guest.ram.slice(kept, 200)[:] = data
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 200, source, target, 0)

    guest.run(LIDT + SWITCH + LOAD_OPERANDS + "f3a4" + STORE_OPERANDS + HLT)

    assert struct.unpack("<3Q", guest.ram.slice(OPERANDS, 24)) == (0, source + 200, target + 200)
    assert bytes(guest.ram.slice(target, 200)) == data


def test_code_that_is_written_over_is_the_new_code(guest: Guest) -> None:
    old, new = 0x31_0000, 0x31_1000
    guest.put(old, "b80a000000 c3")
    guest.put(new, "b80b000000 c3")
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 6, new, old, 0)
    call_old = "b800003100 ffd0"

    guest.run(
        call_old + LOAD_OPERANDS + "f3a4" + call_old + f"48890425 {struct.pack('<I', RESULT).hex()}" + HLT
    )

    assert guest.result == 0xB


def test_with_the_trap_flag_each_round_traps(guest: Guest) -> None:
    guest.gate(DEBUG, "48ff0425 00302000 48cf")  # inc qword [RESULT]; iretq
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 5, 0, 0x31_0000, 0)
    set_trap, clear_trap = "9c 810c2400010000 9d", "9c 812424fffeffff 9d"

    guest.run(LIDT + LOAD_OPERANDS + set_trap + "f3aa" + clear_trap + HLT)

    after_the_flag_comes = 3  # pushfq, and, popfq, of which the last still traps
    assert guest.result == 5 + after_the_flag_comes


@pytest.mark.parametrize("code", ["f364a4", "f365a4"], ids=["FS", "GS"])
def test_the_source_may_be_in_another_segment(guest: Guest, code: str) -> None:
    base = 0x1000
    msr = {"f364a4": "000100c0", "f365a4": "010100c0"}[code]
    set_base = f"b9{msr} b8{struct.pack('<I', base).hex()} 31d2 0f30"
    guest.ram.slice(0x31_0000 + base, 4)[:] = b"data"
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 4, 0x31_0000, 0x31_8000, 0)

    # Both pages were used before, so that neither is what keeps it from being done at once.
    use_pages = "8a06 8807"  # mov al,[rsi]; mov [rdi],al
    guest.run(set_base + LOAD_OPERANDS + use_pages + code + HLT)

    assert bytes(guest.ram.slice(0x31_8000, 4)) == b"data"


def test_a_device_gets_each_element(guest: Guest) -> None:
    guest.ram.slice(OPERANDS, 32)[:] = struct.pack("<4Q", 3, 0, 0xFEE0_0020, 7)

    guest.run(LOAD_OPERANDS + "f3ab" + HLT)

    assert guest.bus.asked == [("store", 0xFEE0_0020 + 4 * index, 4, 7) for index in range(3)]
