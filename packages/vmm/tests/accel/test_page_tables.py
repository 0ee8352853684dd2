"""Page tables that change while the guest runs, against a model: what an access finds, or its fault.

Whatever a program does to its tables, after the invalidation that Intel's manual asks for (SDM vol. 3A,
"Invalidation of TLBs and Paging-Structure Caches") the processor uses the new ones, for data and for code.
"""

import struct
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nitro_vmm.accel.unicorn import native
from nitro_vmm.accel.unicorn.engine import Stopped
from page_tables import (
    ACCESSED,
    DIRTY,
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
from tiny_guest import HLT, LIDT, RESULT, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

PAGE = 0x1000
MAIN, SITES, SITE_BYTES = 0x21_0000, 0x22_8000, 16
FRAMES = [0x31_0000, 0x31_1000, 0x31_2000, 0x31_3000]
"""Where small pages may be. Each frame, and each piece of a large page, has a function and a word."""
LARGE_FRAMES = [0, 0x20_0000]
FIRST_PAGE, PAGES = 0x80, 3
"""The pages that are used of what the third entry of the directory maps."""
DIRECTORY_ENTRY = TABLES + 0x2000 + 16
WORD = 0x100
NO_EXECUTE = 1 << 63
FAULT_MARK = 0x40

ENABLE = "b9800000c0 0f32 80cc08 0f30 0f20c0 0d00000100 0f22c0"
"""EFER.NXE, and CR0.WP."""
STORE_RBX = "48891c25" + struct.pack("<I", RESULT).hex()
ON_FAULT = "58 488d5c5b40 4801c3 4c893c24 4c89742418 48cf"
"""Takes note of the error code, and goes on at R15 with the stack at R14."""


def quad(value: int) -> str:
    return struct.pack("<Q", value).hex()


def length(code: str) -> int:
    return len(bytes.fromhex(code))


@dataclass
class Model:
    """What the tables say, what memory holds, and what RBX must be in the end."""

    words: dict[int, int] = field(default_factory=dict)
    """By physical address of the page."""
    functions: dict[int, int] = field(default_factory=dict)
    large: int | None = None
    """The directory's entry, if that maps a large page."""
    entries: list[int] = field(default_factory=lambda: [0] * PAGES)
    rbx: int = 0

    def note(self, number: int) -> None:
        self.rbx = 3 * self.rbx + number & (1 << 64) - 1

    def place(self, index: int) -> tuple[int, int]:
        """The entry of a page, and where the page is."""
        if self.large is None:
            return self.entries[index], self.entries[index] & 0xF_FFFF_F000
        return self.large, (self.large & 0xF_FFE0_0000) + PAGE * (FIRST_PAGE + index)

    def access(self, kind: str, index: int, value: int) -> None:
        entry, place = self.place(index)
        if not entry & PRESENT:
            self.note(FAULT_MARK + {"load": 0, "store": 2, "call": 0x10}[kind])
        elif kind == "store" and not entry & WRITABLE:
            self.note(FAULT_MARK + 3)
        elif kind == "call" and entry & NO_EXECUTE:
            self.note(FAULT_MARK + 0x11)
        elif kind == "store":
            self.words[place] = value
            self.mark(index, ACCESSED | DIRTY)
        else:
            self.note(self.words[place] if kind == "load" else self.functions[place])
            self.mark(index, ACCESSED)

    def mark(self, index: int, marks: int) -> None:
        if self.large is None:
            self.entries[index] |= marks
        else:
            self.large |= marks


kinds = st.sampled_from(["load", "store", "call"])
pages = st.integers(0, PAGES - 1)
values = st.integers(0, 99)
ways = st.sampled_from(["INVLPG", "CR3", "CR4"])
"""To tell the processor. Where CR3 does not suffice, INVLPG is taken."""
flags = st.builds(
    lambda *chosen: sum(chosen),
    *(st.sampled_from([0, flag]) for flag in (WRITABLE, GLOBAL, ACCESSED, DIRTY)),
    st.sampled_from([0, 0, 0, NO_EXECUTE]),
    st.sampled_from([0, *[PRESENT] * 4]),
)
steps = st.one_of(
    st.tuples(kinds, pages, values),
    st.tuples(st.just("small"), pages, st.sampled_from(FRAMES), flags, ways, kinds),
    st.tuples(st.just("large"), pages, st.sampled_from(LARGE_FRAMES), flags, ways, kinds),
    st.tuples(st.just("global pages"), st.booleans()),
)
Steps = list[tuple[str, int, int] | tuple[str, int, int, int, str, str] | tuple[str, bool]]
USED = PRESENT | ACCESSED


class Program:
    """The guest's code for some steps, and what it must come to."""

    def __init__(self, guest: Guest, base: int) -> None:
        self.model = Model()
        self._base = base
        self._code = "31db"
        self._global_pages = True
        places = FRAMES + [
            large + PAGE * (FIRST_PAGE + index) for large in LARGE_FRAMES for index in range(PAGES)
        ]
        for number, place in enumerate(places, 1):
            guest.put(place, f"488d5c5b{number:02x} c3")  # lea rbx,[rbx+rbx*2+N]; ret
            guest.ram.slice(place + WORD, 8)[:] = struct.pack("<Q", number)
            self.model.functions[place] = self.model.words[place] = number
        for index in range(PAGES):
            at = SITES + SITE_BYTES * index
            guest.put(at, "e8" + struct.pack("<i", self._page(index) - base - at - 5).hex() + "c3")
        self._code += set_entry(LAST_TABLE | PRESENT | WRITABLE | USER, table=DIRECTORY_ENTRY)

    @property
    def code(self) -> str:
        return self._code + STORE_RBX + HLT

    def _page(self, index: int) -> int:
        return self._base + MAPPED + PAGE * (FIRST_PAGE + index)

    def access(self, kind: str, index: int, value: int) -> None:
        self.model.access(kind, index, value)
        word = f"48ba {quad(self._page(index) + WORD)}"  # mov rdx,address
        code = {
            "load": f"{word} 488b02 488d1c5b 4801c3",  # mov rax,[rdx]; lea rbx,[rbx+rbx*2]; add rbx,rax
            "store": f"{word} 48c702 {struct.pack('<I', value).hex()}",  # mov qword [rdx],value
            "call": f"48b8 {quad(self._base + SITES + SITE_BYTES * index)} ffd0",
        }[kind]
        self._code += (
            f"4989e6 4c8d3d {struct.pack('<i', length(code)).hex()} {code}"  # r14: rsp, r15: behind it
        )

    def remap(self, size: str, index: int, frame: int, flags: int, how: str) -> None:
        """Map a page, or all of them as one, and tell the processor."""
        model = self.model
        was_large, was_small = model.large, list(model.entries)
        if size == "small":
            model.large = None
            model.entries[index] = frame | flags
            self._code += set_entry(model.entries[index], index=FIRST_PAGE + index)
            directory = LAST_TABLE | PRESENT | WRITABLE | USER
        else:
            model.large = directory = frame | flags | LARGE
        self._code += set_entry(directory, table=DIRECTORY_ENTRY)
        # Any address of a large page will do, but small ones have to be named each.
        indices = [index] if size == "small" or was_large is not None else list(range(PAGES))
        known = [was_large] if was_large is not None else [was_small[index] for index in indices]
        self._forget(how, indices, was_global=any(entry & GLOBAL for entry in known))

    def _forget(self, how: str, indices: list[int], *, was_global: bool) -> None:
        if how == "CR3" and not (self._global_pages and was_global):
            self._code += SWITCH
        elif how == "CR4":
            toggled = GLOBAL_PAGES_OFF + GLOBAL_PAGES_ON
            self._code += toggled if self._global_pages else toggled + GLOBAL_PAGES_OFF
        else:
            for index in indices:
                self._code += f"48b8 {quad(self._page(index))} 0f0138"

    def turn_global_pages(self, *, on: bool) -> None:
        self._global_pages = on
        self._code += GLOBAL_PAGES_ON if on else GLOBAL_PAGES_OFF


@pytest.mark.parametrize("base", [0, UPPER], ids=["lower half", "upper half"])
@settings(deadline=None, max_examples=150)
@example(
    steps=[
        ("large", 0, 0, USED, "INVLPG", "load"),
        ("call", 1, 0),
        ("large", 0, 0x20_0000, USED, "INVLPG", "load"),
        ("call", 1, 0),
    ]
)
@given(steps=st.lists(steps, max_size=40))
def test_an_access_finds_what_the_tables_say(base: int, steps: Steps) -> None:
    guest = Guest()
    write_page_tables(guest)
    map_upper_half(guest)
    guest.gate(PAGE_FAULT, ON_FAULT)
    program = Program(guest, base)
    for index in range(PAGES):
        program.remap("small", index, FRAMES[index], USED | WRITABLE | GLOBAL, "INVLPG")
    for step in steps:
        match step:
            case (("small" | "large") as size, index, frame, flags, how, kind):
                program.access(kind, index, 1)
                program.remap(size, index, frame, flags, how)
                program.access(kind, index, 2)
            case ("global pages", on):
                program.turn_global_pages(on=bool(on))
            case (kind, index, value):
                program.access(kind, index, value)
    guest.put(MAIN, program.code)

    patience = threading.Timer(5, guest.cpu.stop)
    patience.start()

    stopped = guest.run(f"{LIDT} {ENABLE} {GLOBAL_PAGES_ON} {SWITCH} 48b8 {quad(base + MAIN)} ffe0")

    patience.cancel()
    model = program.model
    assert (stopped, guest.result) == (Stopped.HALTED, model.rbx)
    for place, word in model.words.items():
        assert struct.unpack("<Q", guest.ram.slice(place + WORD, 8)) == (word,)
    entries = struct.unpack(f"<{PAGES}Q", guest.ram.slice(LAST_TABLE + 8 * FIRST_PAGE, 8 * PAGES))
    assert list(entries) == model.entries
    if model.large is not None:
        assert struct.unpack("<Q", guest.ram.slice(DIRECTORY_ENTRY, 8)) == (model.large,)
    guest.cpu.stop()
