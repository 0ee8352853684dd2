"""The native part: that it is in force, and guests that only it can hold."""

import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nitro_vmm.accel.unicorn import native, proof
from nitro_vmm.accel.unicorn.engine import Stopped
from tiny_guest import CODE, HANDLER, HLT, LIDT, RESULT, STACK, STORE_RAX, Guest

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"no native part: {native.MISSING}")

PATIENCE_S = 60.0
"""A guest that does not stop would run for ever. One that does may have to wait for a busy processor."""
TRAP_GATE = 0x8F00
CODE_OF_32_BITS = HANDLER + 0x800
OUT = "e664"  # out 0x64,al
WRMSR_EFER_SCE = "b9800000c0 0f32 83c801 0f30"


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.cpu.stop()


def stop(guest: Guest, code: str) -> None:
    """Start a guest that never ends; once it has used a port, one call of `Cpu.stop` has to end it."""
    stopped: list[Stopped] = []
    started = threading.Event()
    guest.bus.write_port = lambda *_: started.set()  # type: ignore[method-assign]
    runner = threading.Thread(target=lambda: stopped.append(guest.run(code)), daemon=True)
    runner.start()
    assert started.wait(PATIENCE_S)
    guest.cpu.stop()
    runner.join(PATIENCE_S)
    assert stopped == [Stopped.ASKED]


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# That it is in force.


def test_it_comes_too_late_after_unicorn() -> None:
    missing = python(
        "import unicorn\nfrom nitro_vmm.accel.unicorn import NATIVE_PART_MISSING\nprint(NATIVE_PART_MISSING)"
    )

    assert missing == "Unicorn was imported before it"


def test_a_library_of_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    monkeypatch.delitem(sys.modules, "unicorn", raising=False)

    library, missing = native._load()

    assert library is None
    assert "install nitro-vmm again" in missing


def test_a_function_that_is_not_called_is_noticed() -> None:
    """libunicorn loaded in front of the library calls its own functions."""
    name = python(
        "import ctypes, sys, unicorn\n"
        "from unicorn.unicorn_py3.unicorn import uclib\n"
        "from nitro_vmm.accel.unicorn.native import PATH, Library, _connect\n"
        "print(_connect(Library(PATH)))"
    )

    assert "does not call its" in name


WITHOUT_ITS_FUNCTIONS = """
import ctypes, os, unicorn
from unicorn.unicorn_py3.unicorn import uclib
from nitro_vmm.accel.unicorn import proof
from nitro_vmm.accel.unicorn.library import Library
from nitro_vmm.accel.unicorn.native import PATH

library, number = Library(PATH), 0
while name := library.symbol(number):
    library.set_original(number, ctypes.cast(uclib[name.decode()], ctypes.c_void_p).value)
    number += 1
for check in proof.CHECKS:
    if os.fork() == 0:  # it may end the process
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        os._exit(1 if proof.prove(library, [check]) else 0)
    if os.wait()[1] == 0:
        print(check.name)
"""
"""What of the proof is right on Unicorn alone, to which only the library's hooks have been added."""

RIGHT_WITHOUT_ITS_FUNCTIONS = {
    *("exception delivery", "INT1"),
    *("integer vectors", "CRC32", "PCLMULQDQ", "AES"),
    *("comparison", "conversion", "rounding", "x87 arithmetic", "LOOPE"),
}
"""What the hooks do; what is replaced because ours is faster; and what Unicorn has wrong only elsewhere."""


def test_the_proof_notices_what_is_not_mended() -> None:
    right = set(python(WITHOUT_ITS_FUNCTIONS).splitlines())

    assert right == RIGHT_WITHOUT_ITS_FUNCTIONS


def test_a_library_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = proof.CHECKS[-1]
    monkeypatch.setattr(proof, "CHECKS", (right, right._replace(right=right.right + 1)))

    monkeypatch.delitem(sys.modules, "unicorn", raising=False)
    library, missing = native._load()

    assert library is None
    assert missing.startswith(f"it computes wrongly: {right.name} gives 0x7 where 0x8 is right")


def test_it_asks_for_no_newer_c_library_than_its_wheel_promises() -> None:
    """manylinux_2_17."""
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", native.PATH.read_bytes())

    assert versions
    assert max((int(major), int(minor)) for major, minor in versions) <= (2, 17)


def test_other_engines_are_left_alone() -> None:
    """Another user of Unicorn in the process keeps its hooks."""
    import unicorn
    from unicorn import x86_const as x86

    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, bytes.fromhex("0f05 0fa2 e440 f4"))  # syscall; cpuid; in al,0x40; hlt
    called = []

    def note(name: str, answer: int) -> Callable[..., int]:
        def hook(*_: object) -> int:
            called.append(name)
            return answer

        return hook

    for name, answer, instruction in (
        ("syscall", 0, x86.UC_X86_INS_SYSCALL),
        ("cpuid", 1, x86.UC_X86_INS_CPUID),
        ("in", 7, x86.UC_X86_INS_IN),
    ):
        uc.hook_add(unicorn.UC_HOOK_INSN, note(name, answer), None, 1, 0, instruction)

    uc.emu_start(0x1000, 0)

    assert called == ["syscall", "cpuid", "in"]
    assert uc.reg_read(x86.UC_X86_REG_AL) == 7


def test_a_device_that_fails_ends_the_run(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise RuntimeError("a device")

    monkeypatch.setattr(guest.bus, "write_port", fail)

    with pytest.raises(RuntimeError, match="a device"):
        guest.run("e664 ebfe")  # out 0x64,al; jmp $


def test_a_shared_word_is_read_without_a_device(guest: Guest) -> None:
    word = memoryview(bytearray(4)).cast("I")
    guest.cpu.share_word(0xFEE0_0020, word)
    word[0] = 0x1234_5678

    guest.run("bb2000e0fe 8b03" + STORE_RAX + HLT)  # mov ebx,0xfee00020; mov eax,[rbx]

    assert guest.result == 0x1234_5678
    assert guest.bus.asked == []


@pytest.mark.parametrize(
    ("access", "asked"),
    [
        ("8a03", ("load", 0xFEE0_0020, 1)),
        ("8b4304", ("load", 0xFEE0_0024, 4)),
        ("8903", ("store", 0xFEE0_0020, 4, 0)),
    ],
    ids=["a byte of it", "its neighbour", "a write"],
)
def test_all_else_goes_to_the_device(guest: Guest, access: str, asked: tuple[object, ...]) -> None:
    guest.cpu.share_word(0xFEE0_0020, memoryview(bytearray(4)).cast("I"))

    guest.run("31c0 bb2000e0fe" + access + HLT)

    assert guest.bus.asked == [asked]


def test_words_for_which_there_is_no_room_stay_with_the_device(guest: Guest) -> None:
    word = memoryview(bytearray(4)).cast("I")
    for index in range(100):
        guest.cpu.share_word(0xFEE0_0000 + 4 * index, word)

    guest.run("bb2000e0fe 8b03 8b8388000000" + HLT)  # mov eax,[rbx]; mov eax,[rbx+0x88]

    assert guest.bus.asked == [("load", 0xFEE0_00A8, 4)]


def test_the_guest_learns_that_repeated_moves_are_quick(guest: Guest) -> None:
    """Linux takes ERMS for broken without this bit of IA32_MISC_ENABLE."""
    guest.run("b9a0010000 0f32 83e001" + STORE_RAX + HLT)  # mov ecx,0x1a0; rdmsr; and eax,1

    assert guest.result == 1


def test_machines_end_in_any_order() -> None:
    """Left in cycles, to the collector and to the interpreter's end."""
    said = python(
        f"import gc, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny_guest import Guest\n"
        "left = [Guest() for _ in range(20)]\n"
        "for guest in left:\n    guest.itself = guest\n    guest.run('f4')\n"
        "del left[:10], guest\ngc.collect()\nprint('collected')"
    )

    assert said == "collected"


# Stopping: one request, from another thread, ends every guest.


def test_an_endless_loop_stops(guest: Guest) -> None:
    stop(guest, f"{OUT} ebfe")


def test_faults_without_end_stop(guest: Guest) -> None:
    guest.gate(6, f"{OUT} 48cf")  # iretq: to the instruction that faulted

    stop(guest, f"{LIDT} 0f0b")


def test_system_calls_without_sce_stop(guest: Guest) -> None:
    guest.gate(6, f"{OUT} 48cf")

    stop(guest, f"{LIDT} 0f05")


def test_an_interrupt_that_nobody_can_deliver_stops(guest: Guest) -> None:
    """Its vector has no gate, and the handler of the fault returns with interrupts on."""
    guest.gate(13, f"{OUT} 58 48cf", kind=TRAP_GATE)  # pop rax; iretq
    guest.cpu.offer(0x31)

    stop(guest, f"{LIDT} fb ebfe")
    assert guest.cpu.taken


def test_a_stopped_guest_goes_on(guest: Guest) -> None:
    stop(guest, f"{OUT} 8b042500302000 85c0 74f5 {HLT}")  # l: mov eax,[RESULT]; test eax,eax; jz l
    guest.ram.slice(RESULT, 1)[:] = b"\1"

    guest.cpu.forget_stop()

    assert guest.cpu.run() is Stopped.HALTED


# Exceptions in states of all kinds.


def test_a_stack_over_the_page_tables(guest: Guest) -> None:
    """Pushing the frame changes what the next push is translated by."""
    for vector in range(32):
        guest.gate(vector, HLT)

    # mov esp,0xa010 (the first entry of the root table is just below); ud2
    assert guest.run(f"{LIDT} bc10a00000 0f0b") in {Stopped.TRIPLE_FAULT, Stopped.HALTED}


def test_no_physical_address_extension_in_long_mode(guest: Guest) -> None:
    guest.gate(6, HLT)

    # mov rax,cr4; and eax,~0x20; mov cr4,rax
    stopped = guest.run(f"{LIDT} 0f20e0 83e0df 0f22e0 0f0b")

    assert stopped in {Stopped.TRIPLE_FAULT, Stopped.HALTED}


def test_a_breakpoint_after_leaving_long_mode(guest: Guest) -> None:
    # A 32-bit code segment of our own.
    descriptors = bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
    guest.ram.slice(RESULT + 0x100, len(descriptors))[:] = descriptors
    guest.put(RESULT + 0x80, "1700 00312000 00000000")  # GDTR
    guest.put(RESULT + 0x90, f"{(HANDLER + 0x800).to_bytes(4, 'little').hex()} 0800")  # far pointer
    guest.put(
        HANDLER + 0x800,
        "66b81000 8ed8 8ed0"  # mov ax,0x10; mov ds,ax; mov ss,ax
        "0f20c0 25ffffff7f 0f22c0"  # paging off
        "b9800000c0 31c0 31d2 0f30"  # EFER 0
        "cc",
    )

    # lgdt [RESULT+0x80]; ljmp [RESULT+0x90]
    assert guest.run(f"{LIDT} 0f011425 80302000 ff2c25 90302000") is Stopped.TRIPLE_FAULT


def test_ltr_of_a_null_selector_is_a_protection_fault(guest: Guest) -> None:
    guest.gate(13, f"58 {STORE_RAX} {HLT}")

    assert guest.run(f"{LIDT} b807000000 {STORE_RAX} 31c0 0f00d8") is Stopped.HALTED  # ltr ax

    assert guest.result == 0


def test_an_error_code_names_the_gate(guest: Guest) -> None:
    guest.gate(13, f"58 {STORE_RAX} {HLT}")

    assert guest.run(f"{LIDT} cdf0") is Stopped.HALTED  # int 0xf0

    assert guest.result == 0xF0 * 8 + 2


def run_32_bits(guest: Guest, before: str, code: str) -> Stopped:
    """Run code in a 32-bit segment, at `CODE_OF_32_BITS`, after some in 64-bit mode."""
    descriptors = bytes(16) + bytes.fromhex("ffff0000009baf00 ffff00000093cf00 ffff0000009bcf00")
    guest.ram.slice(RESULT + 0x100, len(descriptors))[:] = descriptors
    guest.put(RESULT + 0x80, "2700 00312000 00000000")
    guest.put(RESULT + 0x90, f"{CODE_OF_32_BITS.to_bytes(4, 'little').hex()} 2000")
    guest.put(CODE_OF_32_BITS, code)
    return guest.run(f"{before} {LIDT} 0f011425 80302000 ff2c25 90302000")


def test_a_system_call_of_32_bit_code_is_an_invalid_opcode(guest: Guest) -> None:
    guest.gate(6, f"488b0424 {STORE_RAX} {HLT}")  # where it returns to

    stopped = run_32_bits(guest, WRMSR_EFER_SCE, "0f05")

    assert stopped is Stopped.HALTED
    assert guest.result == CODE_OF_32_BITS


@pytest.mark.parametrize(
    "store",
    [
        *("d91e", "d95e40", "d99e40404040", "d91d40404040"),  # fstp dword ptr [esi], with displacements
        *("d91c9e", "d95c9e40", "d99c9e40404040", "d91c9d40404040"),  # ... [esi+ebx*4]
        *("67d91f", "67d95f40", "67d99f4040", "67d91e4040"),  # ... [bx]
        "d9c9",  # fxch st(1)
    ],
)
def test_an_instruction_without_effect_ends_where_it_ends(guest: Guest, store: str) -> None:
    """It finds an empty register, and the exception is unmasked; 40 is inc eax."""
    unmask = "66c70570302000 7e03 d92d70302000"
    code = f"dbe3 {unmask} 31c0 {store} 40 a3 00302000 {HLT}"

    stopped = run_32_bits(guest, "0f20c0 83e0f3 0f22c0", code)

    assert stopped is Stopped.HALTED
    assert guest.result == 1


@pytest.mark.parametrize("operation", ["d8c1", "dcc9", "d9c1", "dbf1", "d9c9", "0f6fc1"])
def test_any_number_of_operations_in_a_row(guest: Guest, operation: str) -> None:
    """More of one than QEMU has temporaries for, in one page without a jump."""
    many = operation * (3000 // (len(operation) // 2))

    stopped = guest.run("dbe3 31c0" + many + "ffc0" + STORE_RAX + HLT)  # fninit; xor eax,eax

    assert (stopped, guest.result) == (Stopped.HALTED, 1)


LOOPS = {
    "a short jump": "ebfe",
    "a near jump": "e9fbffffff",
    "a conditional jump": "31c0 74fe",
    "a near conditional jump": "31c0 0f84faffffff",
    "LOOP": "48b90000000000000010 e2fe",
    "JRCXZ": "31c9 e3fe",
    "a return": "488d05f9ffffff 50 c3",  # lea rax,[itself]; push rax; ret
    "an indirect jump": "b8" + struct.pack("<I", CODE + 2).hex() + "ffe0",  # to the instruction before it
    "two pages": "e9fb0f0000",
    "a repeated store": "fc bf00003000 48b90000000000000010 31c0 f3aa",
    "forward and back": "eb02 ebfe 9090 ebfa",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_of_any_kind_stops(guest: Guest, loop: str) -> None:
    """Only some blocks look whether they are wanted."""
    guest.put(CODE + 0x1002, "e9fbefffff")  # for the jump to another page

    stop(guest, OUT + loop)


@pytest.mark.parametrize("loop", [LOOPS["a short jump"], LOOPS["a return"]])
def test_an_interrupt_ends_a_loop(guest: Guest, loop: str) -> None:
    guest.gate(0x40, "b82a000000" + STORE_RAX + HLT)
    guest.bus.write_port = lambda *_: guest.cpu.offer(0x40)  # type: ignore[method-assign]

    stopped = guest.run(LIDT + OUT + "fb" + loop)

    assert (stopped, guest.result) == (Stopped.HALTED, 42)


def test_an_exception_of_the_x87_waits_for_the_next_instruction(guest: Guest) -> None:
    guest.gate(16, f"488b0424 {STORE_RAX} {HLT}")  # where it returns to
    unmask = "66c7042580302000 7b03 d92c2580302000"  # division by 0
    enable = "0f20c0 83e0f3 83c820 0f22c0"  # CR0.NE

    stopped = guest.run(f"{LIDT} {enable} dbe3 {unmask} d9e8 d9ee def9 90 90 d9e8 {HLT}")

    assert stopped is Stopped.HALTED
    assert guest.result == CODE + len(bytes.fromhex(f"{LIDT} {enable} dbe3 {unmask} d9e8 d9ee def9 90 90"))


def test_sysenter(guest: Guest) -> None:
    guest.put(HANDLER, f"4889e0 {STORE_RAX} {HLT}")  # mov rax,rsp
    wrmsr = "0f30"
    stopped = guest.run(
        f"31d2 b974010000 b810000000 {wrmsr} "  # the code segment
        f"b975010000 b8{(STACK - 64).to_bytes(4, 'little').hex()} {wrmsr} "
        f"b976010000 b8{HANDLER.to_bytes(4, 'little').hex()} {wrmsr} "
        "fb 0f34"
    )

    assert stopped is Stopped.HALTED
    assert guest.result == STACK - 64
    assert not guest.cpu.interrupts_enabled


def test_sysenter_without_a_segment_is_a_protection_fault(guest: Guest) -> None:
    guest.gate(13, f"58 488b0424 {STORE_RAX} {HLT}")

    assert guest.run(f"{LIDT} 90 0f34") is Stopped.HALTED

    assert guest.result == CODE + len(bytes.fromhex(LIDT)) + 1


# Ports, from a program.

USER_CODE, USER_STACK, TSS = RESULT + 0x800, STACK - 0x100, RESULT + 0x200


def enter_user_mode(guest: Guest, code: str, *, iopl: int = 0, permitted: bool = False) -> str:
    """Code that runs ``code`` in ring 3, with a TSS whose bitmap permits port 0x64 or nothing."""
    for table in (0xA000, 0xB000, 0xC000):  # the boot page tables: everything is the user's, too
        for index in range(4):
            (entry,) = struct.unpack("<Q", guest.ram.slice(table + 8 * index, 8))
            guest.ram.slice(table + 8 * index, 8)[:] = struct.pack("<Q", entry | 4 if entry else 0)
    guest.put(USER_CODE, code)
    bitmap = bytearray(b"\xff" * 32)
    if permitted:
        bitmap[0x64 // 8] &= ~(1 << 0x64 % 8)
    tss = bytearray(104) + bitmap
    tss[4:12] = struct.pack("<Q", STACK)
    tss[102:104] = struct.pack("<H", 104)
    guest.ram.slice(TSS, len(tss))[:] = tss
    descriptors = struct.pack(
        "<8Q",
        *(0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF),
        TSS << 16 & 0xFF_FFFF_0000 | TSS << 32 & 0xFF << 56 | 0x8900 << 32 | len(tss) - 1,
        0,
    )
    guest.ram.slice(RESULT + 0x100, len(descriptors))[:] = descriptors
    guest.put(RESULT + 0x80, "3f00 00312000 00000000")
    flags = 0x2 | iopl << 12
    return (
        f"{LIDT} 0f011425 80302000 66b83000 0f00d8"  # lgdt; ltr 0x30
        f"6a2b 68{USER_STACK.to_bytes(4, 'little').hex()} 68{flags.to_bytes(4, 'little').hex()}"
        f"6a23 68{USER_CODE.to_bytes(4, 'little').hex()} 48cf"
    )


@pytest.mark.parametrize("code", ["e664", "e464", "66ba6400 ee", "66ba6400 ed", "66ba6400 6e"])
def test_a_program_may_not_use_ports(guest: Guest, code: str) -> None:
    guest.gate(13, f"58 {STORE_RAX} b801000000 48890425 08302000 {HLT}")

    assert guest.run(enter_user_mode(guest, code)) is Stopped.HALTED

    assert struct.unpack("<2Q", guest.ram.slice(RESULT, 16)) == (0, 1)
    assert guest.bus.asked == []


def test_a_program_may_use_a_port_that_the_bitmap_permits(guest: Guest) -> None:
    guest.gate(13, HLT)

    assert guest.run(enter_user_mode(guest, "e664 e665", permitted=True)) is Stopped.HALTED

    assert guest.bus.asked == [("out", 0x64, 1, 0x30)]


def test_a_program_with_the_privilege_may_use_all_ports(guest: Guest) -> None:
    guest.gate(3, HLT, kind=0xEE00)

    assert guest.run(enter_user_mode(guest, "e664 e665 cc", iopl=3)) is Stopped.HALTED

    assert guest.bus.asked == [("out", 0x64, 1, 0x30), ("out", 0x65, 1, 0x30)]


# What the guest's arithmetic must not do to ours.


def test_a_device_computes_with_the_host_s_rounding(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(guest.bus, "write_port", lambda *_: seen.append(0.1 + 0.2))
    guest.ram.slice(RESULT, 4)[:] = struct.pack("<I", 0xFFC0)  # round to zero, flush denormals

    # mov eax,cr4; or eax,0x600; mov cr4,eax; ldmxcsr [RESULT]; out
    stopped = guest.run(f"0f20e0 0d00060000 0f22e0 0fae1425 00302000 {OUT} 0fae1c25 08302000 {HLT}")

    assert stopped is Stopped.HALTED
    assert seen == [0.1 + 0.2]
    assert struct.unpack("<I", guest.ram.slice(RESULT + 8, 4)) == (0xFFC0,)


def test_a_library_older_than_its_sources_is_not_loaded(tmp_path: Path) -> None:
    library, source = tmp_path / "libnitro.so", tmp_path / "native" / "table.h"
    source.parent.mkdir()
    for path in (library, source):
        path.touch()
    os.utime(library, (1000, 1000))

    os.utime(source, (1001, 1001))
    assert native.is_stale(library, source.parent)
    os.utime(source, (999, 999))
    assert not native.is_stale(library, source.parent)
    assert not native.is_stale(library, tmp_path / "absent")


# A page that is watched.

ARM_THE_TIMER = "b9e0060000 b8ffffffff 31d2 0f30"  # mov ecx,0x6e0; mov eax,-1; xor edx,edx; wrmsr
READ_THE_PAGE = "8b042500003000 eb00"  # mov eax,[0x300000]; and a jump, which ends the block
WATCHED = 0x30_0000


def test_a_page_that_is_touched_stops_the_guest_once_its_timer_was_armed() -> None:
    early, late = Guest(), Guest()

    for guest in (early, late):
        assert guest.cpu.watch_page(WATCHED)
    stopped_early = early.run(READ_THE_PAGE + HLT)
    stopped_late = [late.run(ARM_THE_TIMER + READ_THE_PAGE + HLT), late.cpu.run()]

    assert stopped_early is Stopped.HALTED
    assert stopped_late == [Stopped.PAGE, Stopped.HALTED]


def test_a_page_beside_the_watched_one_does_not_stop_the_guest() -> None:
    guest = Guest()
    guest.cpu.watch_page(WATCHED + 0x1000)

    assert guest.run(ARM_THE_TIMER + READ_THE_PAGE + HLT) is Stopped.HALTED
