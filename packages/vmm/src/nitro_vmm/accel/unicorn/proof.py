"""A guest of a few instructions that proves the native part: one of each kind that it mends.

It runs in an engine of its own before the first machine is made, for about two milliseconds. A wrong result
means that this library does not fit this Unicorn or this host, and then no machine uses it.
"""

import ctypes
import mmap
import struct
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from nitro_vmm.accel.unicorn import identity
from nitro_vmm.accel.unicorn.library import Library
from nitro_vmm.accel.unicorn.native_engine import NativeEngine
from nitro_vmm.accel.unicorn.public import PROT_ALL, Register, Uc
from nitro_vmm.address_map import RamRange

CODE: Final = 0x1000
HANDLERS: Final = 0x2000
CHANGING_CODE: Final = 0x3000
DATA: Final = 0x4000
RESULTS: Final = 0x5000
STACK_TOP: Final = 0x7000
IDT: Final = 0x7000
GDT: Final = 0x8000
PAGE_TABLES: Final = 0x9000
"""Four pages: they map the first 2 MiB, and `CHANGING_CODE` once more at `SECOND_MAPPING`."""
SECOND_MAPPING: Final = 0x21_0000
RAM_BYTES: Final = 0xD000

CODE_SELECTOR: Final = 0x10
GDT_ENTRIES: Final = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
INTERRUPT_GATE: Final = 0x8E00
VECTORS: Final = 32
SYSTEM_CALL: Final = 32
"""What the handler of SYSCALL answers; that of an exception answers with its vector."""
HANDLER_BYTES: Final = 8
PORT_ANSWER: Final = 0x5A
TSC_HZ: Final = 10**9
TRANSLATION_BUFFER_BYTES: Final = 1 << 20
ADDRESS_SPACE_BYTES: Final = 64 << 20
"""What the engine may need in all, with room to spare."""
SECONDS_MAX: Final = 2.0
"""After which it is ended, however busy the host is."""
FAILED: Final = 0xDEAD_BEEF
"""What stands for the result of a program that did not come to its end."""

CR0: Final = 0x8000_0033
"""PG, NE, ET, MP, PE."""
CR4: Final = 0x620
"""PAE, OSFXSR, OSXMMEXCPT."""
EFER: Final = 0xD01
"""NXE, LMA, LME, SCE."""
MSR_EFER: Final = 0xC000_0080
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_FMASK: Final = 0xC000_0084
PRESENT_WRITABLE: Final = 0x63
LARGE: Final = 0x80
NO_EXECUTE: Final = 1 << 63

# Numbers for the checks, at R15: a signalling NaN, a quiet one, and so on; then 16 bytes to write to.
NUMBERS: Final = struct.pack(
    "<32I",
    *(0x7F80_0001, 0x3F80_0000, 0x4000_0000, 0x80FF_7F01),
    *(0x7FC1_2345, 0x4040_0000, 0xC000_0000, 0x8001_7FFF),
    *(0x3F80_0000, 0x4040_0000, 0x4F80_0000, 0xC020_0000),
    *(0x4CBE_BC20, 0x3F80_0000, 0xCCBE_BC20, 0x3F80_0000),
    *(0x3F80_0000, 0x3F80_0000, 0x3F80_0000, 0x3F80_0000),
    *(0x0C0D_0E0F, 0x8081_0203, 0x0001_0203, 0x0F0E_0D0C),
    *(0x0000_6261, 0, 0, 0),  # "ab"
    *(0x7878_7878, 0x7878_7878, 0x7878_7878, 0x6178_7878),  # "xxxxxxxxxxxxxxxa"
)


class Check(NamedTuple):
    """Code that leaves a result in RAX, or raises an exception."""

    name: str
    """What it is about, for people."""
    code: str
    right: int
    """The result, or the exception's vector."""


CHECKS: Final = (
    # ud2
    Check("exception delivery", "0f0b", 6),
    # syscall
    Check("SYSCALL", "0f05", 32),
    # mov eax,0x40000000; cpuid; mov eax,ebx
    Check("CPUID", "b8000000400fa289d8", 0x4B4D_564B),
    # mov ecx,0x1b; rdmsr
    Check("model-specific registers", "b91b0000000f32", 0xFEE0_0900),
    # xor eax,eax; in al,0x61
    Check("ports", "31c0e461", 90),
    # xor eax,eax; ltr ax
    Check("LTR", "31c00f00d8", 13),
    # .byte 0xf1
    Check("INT1", "f1", 1),
    # vaddps xmm0,xmm0,xmm1
    Check("VEX", "c5f858c1", 6),
    # movaps xmm0,[r15+4]
    Check("alignment", "410f284704", 13),
    # movabs rax,0xffffffff00000001; mov dword ptr [r15+0x80],1; mov edx,2; cmpxchg [r15+0x80],edx
    Check(
        "CMPXCHG",
        "48b801000000ffffffff41c7878000000001000000ba02000000410fb19780000000",
        0xFFFF_FFFF_0000_0001,
    ),
    # mov eax,1; movabs rcx,0x700000001; movabs rdx,0x900000002; cmpxchg edx,ecx; mov rax,rdx
    Check(
        "CMPXCHG of registers",
        "b80100000048b9010000000700000048ba02000000090000000fb1ca4889d0",
        0x0009_0000_0002,
    ),
    # mov ecx,3; xor eax,eax; 1: loope 1b; mov eax,ecx
    Check("LOOPE", "b90300000031c0e1fe89c8", 0),
    # movaps xmm0,[r15]; addps xmm0,[r15+0x10]; movd eax,xmm0
    Check("addition", "410f2807410f584710660f7ec0", 0x7FC0_0001),
    # mov dword ptr [r15+0x80],0x1f80; ldmxcsr [r15+0x80]; movss xmm0,[r15+0x20];
    # divss xmm0,[r15+0x24]; stmxcsr [r15+0x80]; mov eax,[r15+0x80]
    Check(
        "MXCSR",
        "41c78780000000801f0000410fae9780000000f3410f104720f3410f5e4724410fae9f80000000418b8780000000",
        0x1FA0,
    ),
    # movaps xmm0,[r15+0x30]; dpps xmm0,[r15+0x40],0xf1; movd eax,xmm0
    Check("dot products", "410f28473066410f3a404740f1660f7ec0", 0),
    # cvttss2si eax,[r15+0x30+12]; cvttss2si rdx,[r15+0x28]; shl rax,32; or rax,rdx
    Check("conversion", "f3410f2c473cf3490f2c572848c1e0204809d0", 0x0001_0000_0000),
    # movss xmm0,[r15]; ucomiss xmm0,[r15+0x20]; pushfq; pop rax; and eax,0x45
    Check("comparison", "f3410f1007410f2e47209c5883e045", 69),
    # roundss xmm0,[r15+0x2c],1; movd eax,xmm0
    Check("rounding", "66410f3a0a472c01660f7ec0", 0xC040_0000),
    # movaps xmm0,[r15]; paddb xmm0,[r15+0x10]; pshufb xmm0,[r15+0x50]; movq rax,xmm0
    Check("integer vectors", "410f280766410ffc471066410f3800475066480f7ec0", 0x41FE_00FE_0000),
    # mov eax,0x12345678; crc32 rax,qword ptr [r15+0x10]
    Check("CRC32", "b878563412f2490f38f14710", 0x30AF_48E9),
    # movaps xmm0,[r15+0x50]; pclmulqdq xmm0,[r15+0x30],0; movq rax,xmm0
    Check("PCLMULQDQ", "410f28475066410f3a4447300066480f7ec0", 0x454F_930D_DD05_15E0),
    # movaps xmm0,[r15+0x50]; aesenc xmm0,[r15+0x30]; movq rax,xmm0
    Check("AES", "410f28475066410f38dc473066480f7ec0", 0x89D8_8D3A_31DD_D65F),
    # movaps xmm0,[r15+0x60]; pcmpistri xmm0,[r15+0x70],12; mov eax,ecx
    Check("string compares", "410f28476066410f3a6347700c89c8", 15),
    # fninit; fld dword ptr [r15+0x20]; fdiv dword ptr [r15+0x24]; fstp qword ptr [r15+0x80];
    # mov rax,[r15+0x80]
    Check("x87 arithmetic", "dbe341d9472041d8772441dd9f80000000498b8780000000", 0x3FD5_5555_5555_5555),
    # fninit; fld1; fldpi; fcomip st,st(1); fld dword ptr [r15]; fistp dword ptr [r15+0x80];
    # fnstsw ax; movzx eax,ax
    Check("x87 flags", "dbe3d9e8d9ebdff141d90741db9f80000000dfe00fb7c0", 0x3801),
    # fninit; fxch st(1); fnstsw ax; movzx eax,ax
    Check("x87 stack", "dbe3d9c9dfe00fb7c0", 65),
    # fninit; stc; fcmovnb st,st(1); fnstsw ax; movzx eax,ax
    Check("FCMOV", "dbe3f9dbc1dfe00fb7c0", 65),
    # fninit; mov dword ptr [r15+0x80],0x37b; fldcw [r15+0x80]; fld1; fldz; fdivp; fld1
    Check("x87 exceptions", "dbe341c787800000007b03000041d9af80000000d9e8d9eedef9d9e8", 16),
    # fninit; pxor mm0,mm0; fxam; fnstsw ax; movzx eax,ax; emms
    Check("MMX", "dbe30fefc0d9e5dfe00fb7c00f77", 0x200),
    # mov byte ptr [0x210001],6; call r12; mov byte ptr [0x210001],7; call r12
    Check("code through a second mapping", "c60425010021000641ffd4c60425010021000741ffd4", 7),
)


def prove(library: Library, checks: Sequence[Check] = ()) -> str:
    """Why the library is not to be used, for people; empty if all results are right."""
    checks = checks or CHECKS
    results = run(library, checks)
    for check, result in zip(checks, results, strict=True):
        if result != check.right:
            return f"{check.name} gives {result:#x} where {check.right:#x} is right"
    return ""


def run(library: Library, checks: Sequence[Check]) -> list[int]:
    """Run the checks' code on the library; returns their results."""
    ram = mmap.mmap(-1, RAM_BYTES)
    _fill(ram, checks)
    pin = ctypes.c_char.from_buffer(ram)
    uc = Uc()
    uc.ctl_exits_enabled(True)
    uc.ctl_set_tcg_buffer_size(TRANSLATION_BUFFER_BYTES)
    uc.mem_map_ptr(0, RAM_BYTES, PROT_ALL, ctypes.addressof(pin))
    engine = NativeEngine(
        library,
        uc,
        _Port(),
        tsc_hz=TSC_HZ,
        ram=[(RamRange(0, RAM_BYTES), ctypes.addressof(pin))],
        holes=[],
        leaves=identity.leaves(TSC_HZ, native=True),
    )
    _enter(uc)
    watch = threading.Timer(SECONDS_MAX, engine.stop)
    watch.start()
    engine.run()
    watch.cancel()
    watch.join()
    return list(struct.unpack_from(f"<{len(checks)}Q", ram, RESULTS))


class _Port:
    """A board with one port; nothing of it is asked otherwise."""

    def read_port(self, _port: int, _size: int) -> int:
        return PORT_ANSWER

    def write_port(self, _port: int, _size: int, _value: int) -> None: ...

    def read_memory(self, _address: int, _size: int) -> int:
        return 0

    def write_memory(self, _address: int, _size: int, _value: int) -> None: ...

    def write_bytes(self, _port: int, _data: bytes) -> None: ...

    def arm_timer(self, _ticks: int) -> None: ...


def _fill(ram: mmap.mmap, checks: Sequence[Check]) -> None:
    pages = (
        (CODE, _program(checks)),
        (HANDLERS, b"".join(_handler(vector) for vector in (*range(VECTORS), SYSTEM_CALL))),
        (CHANGING_CODE, bytes.fromhex("b805000000 c3")),  # mov eax, 5; ret
        (DATA, NUMBERS),
        (RESULTS, struct.pack("<Q", FAILED) * len(checks)),
        (IDT, b"".join(_gate(HANDLERS + HANDLER_BYTES * vector) for vector in range(VECTORS))),
        (GDT, struct.pack("<4Q", *GDT_ENTRIES)),
        (PAGE_TABLES, struct.pack("<Q", PAGE_TABLES + 0x1000 | PRESENT_WRITABLE)),
        (PAGE_TABLES + 0x1000, struct.pack("<Q", PAGE_TABLES + 0x2000 | PRESENT_WRITABLE)),
        (
            PAGE_TABLES + 0x2000,
            struct.pack("<2Q", PRESENT_WRITABLE | LARGE, PAGE_TABLES + 0x3000 | PRESENT_WRITABLE),
        ),
        (
            PAGE_TABLES + 0x3000 + (SECOND_MAPPING >> 12 & 0x1FF) * 8,
            struct.pack("<Q", CHANGING_CODE | PRESENT_WRITABLE | NO_EXECUTE),
        ),
    )
    for address, data in pages:
        ram[address : address + len(data)] = data


def _program(checks: Sequence[Check]) -> bytes:
    """Each check, and what stores RAX, where exceptions come to, too: their handlers jump to R14."""
    program = b""
    for check in checks:
        code = bytes.fromhex(check.code)
        program += bytes.fromhex("4c8d35") + struct.pack("<I", len(code) + 3)  # lea r14, [rip + ...]
        program += bytes.fromhex("4c89ec")  # mov rsp, r13
        program += code + bytes.fromhex("48ab")  # stosq
    return program + bytes.fromhex("f4")  # hlt


def _handler(answer: int) -> bytes:
    return b"\xb8" + struct.pack("<I", answer) + bytes.fromhex("41ffe6")  # mov eax, answer; jmp r14


def _gate(handler: int) -> bytes:
    return struct.pack("<HHHHQ", handler, CODE_SELECTOR, INTERRUPT_GATE, 0, 0)


def _enter(uc: Uc) -> None:
    for register, value in (
        (Register.CR4, CR4),
        (Register.CR3, PAGE_TABLES),
        (Register.MSR, (MSR_EFER, EFER)),
        (Register.MSR, (MSR_STAR, CODE_SELECTOR << 32)),
        (Register.MSR, (MSR_LSTAR, HANDLERS + HANDLER_BYTES * SYSTEM_CALL)),
        (Register.MSR, (MSR_FMASK, 0)),
        (Register.CR0, CR0),
        (Register.GDTR, (0, GDT, 8 * len(GDT_ENTRIES) - 1, 0)),
        (Register.IDTR, (0, IDT, 16 * VECTORS - 1, 0)),
        (Register.RDI, RESULTS),
        (Register.R12, CHANGING_CODE),
        (Register.R13, STACK_TOP),
        (Register.R15, DATA),
        (Register.RIP, CODE),
    ):
        uc.reg_write(register, value)
