"""The processor, with the native part and without it."""

import os
import struct
import time
from collections.abc import Iterator

import pytest

from nitro_vmm.accel.unicorn import native, private, tsc
from nitro_vmm.accel.unicorn.engine import Stopped
from nitro_vmm.accel.unicorn.tsc import measure_tsc_hz, read_tsc
from nitro_vmm.errors import HostError
from tiny_guest import (
    CODE,
    HANDLER,
    HLT,
    INTERRUPT_GATE,
    LIDT,
    RESULT,
    STORE_RAX,
    TRAP_GATE_FOR_USERS,
    TSC_HZ,
    Guest,
)


@pytest.fixture(params=["native", "Python"])
def guest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    if request.param == "Python":
        monkeypatch.setattr(native, "LIBRARY", None)
    elif native.LIBRARY is None:
        pytest.skip(f"no native part: {native.MISSING}")
    guest = Guest()
    yield guest
    guest.cpu.stop()


def test_hlt_stops(guest: Guest) -> None:
    assert guest.run(HLT) is Stopped.HALTED
    assert not guest.cpu.interrupts_enabled


def test_the_kernel_finds_its_registers(guest: Guest) -> None:
    assert guest.run("4889f0" + STORE_RAX + HLT) is Stopped.HALTED  # mov rax,rsi

    assert guest.result == 0x7000


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("66baf803 b041 ee", ("out", 0x3F8, 1, 0x41)),  # mov dx,0x3f8; mov al,0x41; out dx,al
        ("66ba1000 66b83412 66ef", ("out", 0x10, 2, 0x1234)),  # out dx,ax
        ("66ba1000 b878563412 ef", ("out", 0x10, 4, 0x12345678)),  # out dx,eax
        ("e664", ("out", 0x64, 1, 0)),  # out 0x64,al
    ],
)
def test_out(guest: Guest, code: str, asked: tuple[object, ...]) -> None:
    assert guest.run(f"31c0 {code} {HLT}") is Stopped.HALTED

    assert guest.bus.asked == [asked]


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [("ec", 1, 0xFFFF_FF88), ("66ed", 2, 0xFFFF_7788), ("ed", 4, 0x5566_7788)],  # in al/ax/eax,dx
)
def test_in(guest: Guest, code: str, size: int, value: int) -> None:
    assert guest.run(f"66baf803 b8ffffffff {code} {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.bus.asked == [("in", 0x3F8, size)]
    assert guest.result == value


def test_an_address_without_ram_goes_to_the_bus(guest: Guest) -> None:
    # mov ebx,0xfee00020; mov eax,[rbx]; mov [rbx+0x90],eax
    assert guest.run(f"bb2000e0fe 8b03 898390000000 {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.bus.asked == [("load", 0xFEE0_0020, 4), ("store", 0xFEE0_00B0, 4, 0x5566_7788)]
    assert guest.result == 0x5566_7788


def test_code_outside_ram_crashes(guest: Guest) -> None:
    assert guest.run("b8000000d0 ffe0") is Stopped.CRASHED  # mov eax,0xd0000000; jmp rax

    assert "0xd0000000" in guest.cpu.crash


def test_cpuid(guest: Guest) -> None:
    # mov eax,0x15; cpuid; mov eax,ecx
    assert guest.run(f"b815000000 0fa2 89c8 {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == TSC_HZ


def test_cpuid_of_a_leaf_that_is_not_there(guest: Guest) -> None:
    # mov eax,0xdead; cpuid; or eax,ebx; or eax,ecx; or eax,edx
    assert guest.run(f"b8adde0000 0fa2 09d8 09c8 09d0 {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == 0


@pytest.mark.parametrize(
    ("leaf", "subleaf", "is_there"), [(7, 0, True), (7, 1, False), (1, 5, True), (1, 0, True)]
)
def test_only_leaf_7_has_subleaves(guest: Guest, leaf: int, subleaf: int, is_there: bool) -> None:  # noqa: FBT001
    # mov eax,LEAF; mov ecx,SUBLEAF; cpuid; mov eax,ebx
    code = f"b8{leaf:02x}000000 b9{subleaf:02x}000000 0fa2 89d8 {STORE_RAX} {HLT}"

    assert guest.run(code) is Stopped.HALTED
    assert bool(guest.result) is is_there


def test_syscall_and_sysret(guest: Guest) -> None:
    entry = HANDLER.to_bytes(4, "little").hex()
    # RCX, the flags, and R11
    guest.put(HANDLER, f"4889c8 {STORE_RAX} 9c 58 48890425 08302000 4c891c25 10302000 {HLT}")
    wrmsr = "0f30"
    code = (
        f"b9800000c0 0f32 83c801 {wrmsr} "  # EFER.SCE
        f"b9810000c0 31c0 ba10001000 {wrmsr} "  # STAR: kernel code 0x10
        f"b9820000c0 b8{entry} 31d2 {wrmsr} "  # LSTAR
        f"b9840000c0 b800020000 {wrmsr} "  # FMASK: IF
        "fb "  # sti
    )
    syscall_at = CODE + len(bytes.fromhex(code))
    assert guest.run(f"{code} 0f05") is Stopped.HALTED

    assert guest.result == syscall_at + 2
    flags, flags_before = struct.unpack("<2Q", guest.ram.slice(RESULT + 8, 16))
    assert not flags & 1 << 9
    assert flags_before == flags | 1 << 9


def test_syscall_without_sce_is_an_invalid_opcode(guest: Guest) -> None:
    guest.gate(6, f"488b0424 {STORE_RAX} {HLT}")  # the address that it returns to

    assert guest.run(f"{LIDT} 0f05") is Stopped.HALTED

    assert guest.result == CODE + len(bytes.fromhex(LIDT))


def test_an_exception_reaches_its_handler_and_returns(guest: Guest) -> None:
    guest.gate(6, "4883042402 48cf")  # add qword [rsp],2; iretq

    assert guest.run(f"{LIDT} 0f0b b82a000000 {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == 42


def test_a_page_fault_has_its_address_and_error_code(guest: Guest) -> None:
    guest.gate(14, f"0f20d0 {STORE_RAX} 58 48890425 08302000 {HLT}")  # mov rax,cr2; and the error code
    address = 0x0000_1234_5678_9ABC

    # mov rbx,address; mov [rbx],eax
    assert guest.run(f"{LIDT} 48bb{address.to_bytes(8, 'little').hex()} 8903") is Stopped.HALTED

    assert guest.result == address
    assert struct.unpack("<Q", guest.ram.slice(RESULT + 8, 8)) == (2,)


def test_a_software_interrupt_returns_behind_itself(guest: Guest) -> None:
    guest.gate(0x80, "48cf", kind=TRAP_GATE_FOR_USERS)

    assert guest.run(f"{LIDT} cd80 b82b000000 {STORE_RAX} {HLT}") is Stopped.HALTED

    assert guest.result == 0x2B


def test_a_software_interrupt_without_a_gate_is_a_protection_fault_at_itself(guest: Guest) -> None:
    guest.gate(13, f"58 {STORE_RAX} 58 48890425 08302000 {HLT}")  # the error code, and the address

    assert guest.run(f"{LIDT} cd81") is Stopped.HALTED

    assert guest.result == 0x81 * 8 + 2
    assert struct.unpack("<Q", guest.ram.slice(RESULT + 8, 8)) == (CODE + len(bytes.fromhex(LIDT)),)


def test_an_exception_without_a_gate_becomes_a_double_fault(guest: Guest) -> None:
    guest.gate(8, f"58 {STORE_RAX} {HLT}")

    # xor ecx,ecx; div ecx
    assert guest.run(f"{LIDT} 31c9 f7f1") is Stopped.HALTED

    assert guest.result == 0


def test_an_invalid_opcode_without_a_gate_becomes_a_protection_fault(guest: Guest) -> None:
    guest.gate(13, f"58 {STORE_RAX} {HLT}")

    assert guest.run(f"{LIDT} 0f0b") is Stopped.HALTED

    assert guest.result == 6 * 8 + 2


def test_without_any_gate_it_is_a_triple_fault(guest: Guest) -> None:
    assert guest.run(f"{LIDT} 0f0b") is Stopped.TRIPLE_FAULT


def test_an_offered_interrupt_is_taken_when_the_guest_allows_it(guest: Guest) -> None:
    guest.gate(0x31, f"b801000000 {STORE_RAX} {HLT}")
    assert guest.cpu.taken

    guest.cpu.offer(0x31)
    assert not guest.cpu.taken
    assert guest.run(f"{LIDT} fb ebfe") is Stopped.HALTED  # sti; jmp $

    assert guest.cpu.taken
    assert guest.result == 1


def test_an_offered_interrupt_waits_while_interrupts_are_off(guest: Guest) -> None:
    guest.gate(0x31, f"b801000000 {STORE_RAX} {HLT}")

    guest.cpu.offer(0x31)
    assert guest.run(f"{LIDT} fa 90 {HLT}") is Stopped.HALTED

    assert not guest.cpu.taken
    assert guest.result == 0
    guest.cpu.withdraw()
    assert guest.cpu.taken


def test_an_interrupt_whose_stack_is_in_no_tss_is_an_invalid_tss(guest: Guest) -> None:
    guest.gate(0x31, HLT, kind=INTERRUPT_GATE | 1)
    guest.gate(10, f"58 {STORE_RAX} b801000000 48890425 08302000 {HLT}")

    guest.cpu.offer(0x31)
    assert guest.run(f"{LIDT} fb ebfe") is Stopped.HALTED

    assert guest.result == 0
    assert struct.unpack("<Q", guest.ram.slice(RESULT + 8, 8)) == (1,)


def test_a_halted_guest_goes_on_with_an_interrupt(guest: Guest) -> None:
    guest.gate(0x31, "48cf")
    assert guest.run(f"{LIDT} fb {HLT} b807000000 {STORE_RAX} fa {HLT}") is Stopped.HALTED
    assert guest.cpu.interrupts_enabled
    assert guest.result == 0

    guest.cpu.offer(0x31)
    assert guest.cpu.run() is Stopped.HALTED

    assert not guest.cpu.interrupts_enabled
    assert guest.result == 7


def test_a_processor_that_was_stopped_does_not_start(guest: Guest) -> None:
    guest.cpu.stop()

    assert guest.run("ebfe") is Stopped.ASKED


def test_a_hook_can_stop_the_guest(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.bus, "write_port", lambda *_: guest.cpu.stop())

    assert guest.run("e664 ebfe") is Stopped.ASKED  # out 0x64,al; jmp $


def test_the_time_stamp_counter_advances() -> None:
    first = read_tsc()

    hz = measure_tsc_hz(first)

    assert hz % 1000 == 0
    assert 100_000_000 < hz < 10_000_000_000
    assert read_tsc().ticks > first.ticks


# Builds of Unicorn that are not the one we know.


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nitro_vmm.accel.unicorn.public.version", lambda: "2.1.3")

    with pytest.raises(HostError, match=r"this is Unicorn 2\.1\.3") as caught:
        Guest()

    assert caught.value.hint == "pip install unicorn==2.1.4"


def test_another_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    host = os.uname_result(("Linux", "host", "6.12", "1", "aarch64"))
    monkeypatch.setattr("os.uname", lambda: host)

    with pytest.raises(HostError, match="not known for Linux on aarch64"):
        Guest()


@pytest.mark.parametrize(
    "name",
    [
        *("UC_CPU", "CPU_ENV", "CPU_CLASS", "CLASS_DO_INTERRUPT"),
        *("CPU_EXCEPTION_INDEX", "ENV_EIP", "ENV_CR", "ENV_STAR", "ENV_LSTAR", "ENV_FMASK"),
        *("ENV_TR", "ENV_GDT", "ENV_IDT", "ENV_FPUS", "ENV_FPUC", "ENV_MXCSR", "ENV_XMM"),
        *("ENV_SYSENTER_CS", "ENV_SYSENTER_ESP", "ENV_SYSENTER_EIP"),
    ],
)
def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(private, name, getattr(private, name) + 8)

    with pytest.raises(HostError, match="laid out differently"):
        Guest()


@pytest.mark.parametrize("native_part", [True, False])
def test_a_look_at_the_counter_says_when_it_was(native_part: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    if not native_part:
        monkeypatch.setattr(tsc, "LIBRARY", None)

    before_ns = time.monotonic_ns()
    sample = read_tsc()
    after_ns = time.monotonic_ns()

    assert before_ns <= sample.monotonic_ns <= after_ns
