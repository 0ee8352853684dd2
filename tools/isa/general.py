"""Forms of the general-purpose instructions; defined flags are those of the Intel SDM, vol. 2."""

from collections.abc import Iterator
from itertools import product
from typing import Final

from isa.form import AF, ALL, CF, DF, OF, PF, SF, ZF, Form, words

SIZES: Final = (8, 16, 32, 64)
WIDE: Final = (16, 32, 64)
NAMES: Final = {8: "byte", 16: "word", 32: "dword", 64: "qword"}
REGISTERS: Final = {
    8: ("al", "bh", "r9b", "sil"),
    16: ("ax", "bx", "r9w", "si"),
    32: ("eax", "ebx", "r9d", "esi"),
    64: ("rax", "rbx", "r9", "rsi"),
}
IMMEDIATES: Final = {
    8: ("0x7f", "-128"),
    16: ("0x7fff", "-3"),
    32: ("0x7fffffff", "-5"),
    64: ("0x12345678", "-7"),
}
CONDITIONS: Final = words("o no b ae e ne be a s ns p np l ge le g")
UNDEFINED_BY_LOGIC: Final = AF
DIVISION: Final = DF
LOW: Final = CF | PF | AF | ZF | SF | DF


def memory(size: int, offset: int = 16) -> str:
    """A memory operand."""
    return f"{NAMES[size]} ptr [MEM+{offset}]"


def forms() -> Iterator[Form]:
    """All of them."""
    yield from _arithmetic()
    yield from _shifts()
    yield from _multiplication()
    yield from _bits()
    yield from _moves()
    yield from _conditions()
    yield from _strings()
    yield from _stack()
    yield from _extensions()
    yield from _sequences()


def _arithmetic() -> Iterator[Form]:
    for name, size in product(words("add or adc and sbb sub xor cmp test"), SIZES):
        flags = ALL & ~AF if name in {"or", "and", "xor", "test"} else ALL
        first, second, third, fourth = REGISTERS[size]
        yield Form(f"{name} {first}, {second if size > 8 else 'cl'}", flags=flags)
        yield Form(f"{name} {third}, {fourth}", flags=flags)
        yield Form(f"{name} {memory(size)}, {first}", flags=flags)
        yield Form(f"{name} {memory(size, 61)}, {third}", flags=flags)
        if name != "test":
            yield Form(f"{name} {third}, {memory(size)}", flags=flags)
            yield Form(f"{name} {second}, {memory(size, 63)}", flags=flags)
        for immediate in IMMEDIATES[size]:
            yield Form(f"{name} {first}, {immediate}", flags=flags)
            yield Form(f"{name} {third}, {immediate}", flags=flags)
            yield Form(f"{name} {memory(size)}, {immediate}", flags=flags)
        if name not in {"cmp", "test"}:
            yield Form(f"lock {name} {memory(size)}, {first}", flags=flags)
    for size in SIZES:
        first, second, third, _ = REGISTERS[size]
        for name, flags in (("inc", ALL), ("dec", ALL), ("neg", ALL), ("not", ALL)):
            yield Form(f"{name} {first}", flags=flags)
            yield Form(f"{name} {third}", flags=flags)
            yield Form(f"{name} {memory(size)}", flags=flags)
            yield Form(f"lock {name} {memory(size, 22)}", flags=flags)
        yield Form(f"xadd {first}, {second if size > 8 else 'cl'}")
        yield Form(f"xadd {third}, {third}")
        yield Form(f"xadd {memory(size)}, {first}")
        yield Form(f"lock xadd {memory(size, 37)}, {third}")
        yield Form(f"cmpxchg {second}, {'cl' if size == 8 else third}")
        yield Form(f"cmpxchg {first}, {third if size > 8 else 'dl'}")
        yield Form(f"mov {third}, {first}; cmpxchg {third}, {third}")
        yield Form(f"mov {third}, {first}; cmpxchg {third}, {second if size > 8 else 'dl'}")
        yield Form(f"cmpxchg {memory(size)}, {third}")
        yield Form(f"mov {first}, {memory(size)}; cmpxchg {memory(size)}, {third}")
        yield Form(f"lock cmpxchg {memory(size, 37)}, {third}")
    for prefix in ("", "lock "):
        yield Form(f"{prefix}cmpxchg8b qword ptr [MEM+16]")
        yield Form(f"mov eax, [MEM+16]; mov edx, [MEM+20]; {prefix}cmpxchg8b qword ptr [MEM+16]")
        yield Form(f"{prefix}cmpxchg16b xmmword ptr [MEM+16]", needs="cx16")
        yield Form(
            f"mov rax, [MEM+16]; mov rdx, [MEM+24]; {prefix}cmpxchg16b xmmword ptr [MEM+16]", needs="cx16"
        )
    yield Form("cmpxchg16b xmmword ptr [MEM+20]", needs="cx16")


def _shift_flags(name: str, size: int, count: int) -> int:
    """The flags that a shift by a constant leaves defined."""
    masked = count & (63 if size == 64 else 31)
    if not masked:
        return ALL
    rotates = name[0] == "r"
    flags = ALL if rotates else ALL & ~AF
    if masked != 1:
        flags &= ~OF
    if name in {"shl", "shr"} and masked > size:
        flags &= ~CF
    return flags


def _shifts() -> Iterator[Form]:
    for name, size in product(words("rol ror rcl rcr shl shr sar"), SIZES):
        first, second, third, _ = REGISTERS[size]
        for count in sorted({0, 1, 2, 7, size // 2, size - 1, size, size + 1, 31, 63, 0x81}):
            flags = _shift_flags(name, size, count)
            yield Form(f"{name} {first}, {count}", flags=flags)
            yield Form(f"{name} {memory(size)}, {count}", flags=flags)
        by_cl = ALL & ~OF
        if name[0] == "s":
            by_cl &= ~AF
            if size < 32:
                by_cl &= ~CF
        yield Form(f"{name} {first}, cl", flags=by_cl)
        yield Form(f"{name} {second}, cl", flags=by_cl)
        yield Form(f"{name} {third}, cl", flags=by_cl)
        yield Form(f"{name} {memory(size, 61)}, cl", flags=by_cl)
    for name, size in product(("shld", "shrd"), WIDE):
        first, second, third, _ = REGISTERS[size]
        for count in sorted({0, 1, 2, size // 2, size - 1}):
            flags = ALL if not count else ALL & ~AF & (ALL if count == 1 else ~OF)
            yield Form(f"{name} {first}, {second}, {count}", flags=flags)
            yield Form(f"{name} {memory(size)}, {third}, {count}", flags=flags)
        limit = "and cl, 15; " if size == 16 else ""
        yield Form(f"{limit}{name} {first}, {second}, cl", flags=ALL & ~AF & ~OF)
        yield Form(f"{limit}{name} {memory(size)}, {third}, cl", flags=ALL & ~AF & ~OF)


def _multiplication() -> Iterator[Form]:
    product_flags = CF | OF | DF
    for size in SIZES:
        _, second, third, fourth = REGISTERS[size]
        for name in ("mul", "imul"):
            yield Form(f"{name} {third}", flags=product_flags)
            yield Form(f"{name} {second}", flags=product_flags)
            yield Form(f"{name} {memory(size)}", flags=product_flags)
        for name in ("div", "idiv"):
            yield Form(f"{name} {third}", flags=DIVISION)
            yield Form(f"{name} {memory(size)}", flags=DIVISION)
            # Most random dividends overflow: here is one that does not.
            high = "movzx eax, al" if size == 8 else "xor edx, edx"
            extend = {8: "cbw", 16: "cwd", 32: "cdq", 64: "cqo"}[size]
            yield Form(f"{high if name == 'div' else extend}; {name} {third}", flags=DIVISION)
            yield Form(f"{high if name == 'div' else extend}; {name} {fourth}", flags=DIVISION)
        if size > 8:
            yield Form(f"imul {third}, {second}", flags=product_flags)
            yield Form(f"imul {third}, {memory(size)}", flags=product_flags)
            yield Form(f"imul {third}, {second}, 0x7b", flags=product_flags)
            yield Form(f"imul {second}, {memory(size)}, {IMMEDIATES[size][0]}", flags=product_flags)
            yield Form(f"imul {second}, {third}, -1", flags=product_flags)


def _bits() -> Iterator[Form]:
    tested = CF | ZF | DF
    for size in WIDE:
        first, second, third, fourth = REGISTERS[size]
        for name in ("bt", "bts", "btr", "btc"):
            yield Form(f"{name} {first}, {second}", flags=tested)
            for number in (0, size - 1, size + 3):
                yield Form(f"{name} {third}, {number}", flags=tested)
                yield Form(f"{name} {memory(size)}, {number}", flags=tested)
            # A bit string: the register reaches beyond the operand, here by up to 48 bytes.
            near = f"movsx {first}, al"
            yield Form(f"{near}; {name} {memory(size, 48)}, {first}", flags=tested)
            if name != "bt":
                yield Form(f"lock {name} {memory(size)}, 5", flags=tested)
        for name in ("bsf", "bsr"):
            yield Form(f"bts {second}, {size - 2}; {name} {third}, {second}", flags=ZF | DF)
            yield Form(f"bts {memory(size)}, 1; {name} {first}, {memory(size)}", flags=ZF | DF)
        yield (
            Form(f"xor esi, esi; bsf {third}, {fourth}; setz al", flags=ZF | DF)
            if size == 64
            else Form(f"xor esi, esi; bsf {third}, {fourth}; setz al; xor {third}, {third}", flags=0)
        )
        for name, feature in (("tzcnt", "bmi1"), ("lzcnt", "lzcnt")):
            yield Form(f"{name} {third}, {second}", flags=CF | ZF | DF, needs=feature)
            yield Form(f"{name} {first}, {memory(size)}", flags=CF | ZF | DF, needs=feature)
            yield Form(f"xor ebx, ebx; {name} {first}, {second}", flags=CF | ZF | DF, needs=feature)
        yield Form(f"popcnt {third}, {second}", needs="popcnt")
        yield Form(f"popcnt {first}, {memory(size)}", needs="popcnt")
        yield Form(f"movbe {third}, {memory(size)}", needs="movbe")
        yield Form(f"movbe {memory(size, 61)}, {first}", needs="movbe")
    for register in ("eax", "r9d", "rbx", "r12"):
        yield Form(f"bswap {register}")


def _moves() -> Iterator[Form]:
    for size in SIZES:
        first, second, third, fourth = REGISTERS[size]
        yield Form(f"mov {first}, {second if size > 8 else 'cl'}")
        yield Form(f"mov {third}, {fourth}")
        yield Form(f"mov {third}, {memory(size, 63)}")
        yield Form(f"mov {memory(size, 61)}, {third}")
        yield Form(f"mov {memory(size)}, {IMMEDIATES[size][1]}")
        yield Form(f"mov {third}, {IMMEDIATES[size][0]}")
        yield Form(f"xchg {first}, {second if size > 8 else 'cl'}")
        yield Form(f"xchg {third}, {first}")
        yield Form(f"xchg {memory(size, 37)}, {third}")
    yield Form("movabs rax, 0x123456789abcdef0")
    yield Form(".byte 0x90")
    yield Form("xchg r8, rax")
    yield Form("nop dword ptr [rax+rax*1+0]")
    yield Form("pause")
    for target, source in ((16, 8), (32, 8), (64, 8), (32, 16), (64, 16)):
        for name in ("movzx", "movsx"):
            yield Form(f"{name} {REGISTERS[target][2]}, {REGISTERS[source][3]}")
            yield Form(f"{name} {REGISTERS[target][1]}, {memory(source)}")
    for high in ("bh", "ch"):
        yield Form(f"movzx eax, {high}")
        yield Form(f"movsx eax, {high}")
    yield Form("movsxd rax, ebx")
    yield Form("movsxd r9, dword ptr [MEM+62]")
    for name in words("cbw cwde cdqe cwd cdq cqo lahf sahf stc clc cmc cld std"):
        yield Form(name)
    yield Form("mov ebx, MEM; and al, 63; xlatb")
    addresses = (
        *("rax+rbx", "rax+rbx*2+5", "rsi+r9*8-128", "r13+r12*4+0x12345678", "rbp+0", "rbx*8+1"),
        *("rsp+rax", "r12+1", "r13"),
    )
    for register, address in product(("ax", "eax", "r9"), addresses):
        yield Form(f"lea {register}, [{address}]")
    yield Form("lea rax, [eax+ebx*4+3]")
    yield Form("lea r9d, [r8d+r9d]")
    yield Form("and eax, 31; mov rbx, [rax+MEM]")
    yield Form("and eax, 15; mov ebx, MEM; mov r9, [rbx+rax*4]")
    yield Form("mov eax, MEM-8; mov rbx, [eax+16]")
    for feature_register in ("fs", "gs"):
        set_base = f"mov eax, MEM; wr{feature_register}base rax"
        yield Form(f"{set_base}; mov rbx, {feature_register}:[16]", needs="fsgsbase")
        yield Form(f"{set_base}; mov {feature_register}:[24], r9d", needs="fsgsbase")
        yield Form(
            f"shr rax, 18; wr{feature_register}base rax; rd{feature_register}base rbx",
            flags=0,
            needs="fsgsbase",
        )
        yield Form(f"wr{feature_register}base eax; rd{feature_register}base ebx", needs="fsgsbase")
    yield Form("movnti [MEM+16], rax")
    yield Form("movnti [MEM+61], r9d")
    for name in ("lfence", "mfence", "sfence", "clflush [MEM]", "prefetcht0 [MEM]", "prefetchnta [rax]"):
        yield Form(name)


def _conditions() -> Iterator[Form]:
    for condition in CONDITIONS:
        yield Form(f"set{condition} al")
        yield Form(f"set{condition} byte ptr [MEM+9]")
        yield Form(f"j{condition} 1f; mov bl, 77; 1:")
        for size in WIDE:
            yield Form(f"cmov{condition} {REGISTERS[size][2]}, {REGISTERS[size][1]}")
            yield Form(f"cmov{condition} {REGISTERS[size][0]}, {memory(size)}")
    for name in ("loop", "loope", "loopne", "jrcxz", "jecxz"):
        yield Form(f"{name} 1f; mov bl, 77; 1:")
        yield Form(f"and ecx, 1; {name} 1f; mov bl, 77; 1:", flags=ALL & ~AF)


def _strings() -> Iterator[Form]:
    suffixes = {8: "b", 16: "w", 32: "d", 64: "q"}
    for size, suffix in suffixes.items():
        step = size // 8
        pointers = "lea esi, [MEM+48]; lea edi, [MEM+72]; and ecx, 3"
        accumulator = REGISTERS[size][0]
        for name in ("movs", "stos", "lods", "scas", "cmps"):
            flags = ALL if name in {"scas", "cmps"} else ALL & ~AF
            yield Form(f"{pointers}; {name}{suffix}", flags=flags)
            repeats = ("repe", "repne") if name in {"scas", "cmps"} else ("rep",)
            for repeat in repeats:
                yield Form(f"{pointers}; {repeat} {name}{suffix}", flags=ALL & ~AF)
                equal = f"mov {accumulator}, {memory(size, 72)}; mov {memory(size, 48)}, {accumulator}"
                yield Form(f"{pointers}; {equal}; {repeat} {name}{suffix}", flags=ALL & ~AF)
        yield Form(f"lea esi, [MEM+8]; lea edi, [MEM+{8 + step}]; mov ecx, 5; cld; rep movs{suffix}")


def _stack() -> Iterator[Form]:
    for register in ("rax", "r9", "ax", "r12w", "rsp"):
        yield Form(f"push {register}")
        yield Form(f"pop {register}")
    yield Form("push 0x7f")
    yield Form("push -0x12345678")
    yield Form("pushw -2")
    yield Form("push qword ptr [MEM+24]")
    yield Form("pop qword ptr [MEM+24]")
    yield Form("push qword ptr [rsp+8]")
    yield Form("pop qword ptr [rsp+8]")
    yield Form("pushfq; and qword ptr [rsp], 0xcd5", flags=0)
    yield Form("and eax, 0xcd5; push rax; popfq", flags=ALL)
    yield Form("enter 16, 0")
    yield Form("mov rbp, rsp; enter 8, 1")
    yield Form("mov rbp, rsp; leave")
    yield Form("call 1f; 1: pop rax; sub rax, offset 1b", flags=ALL)
    yield Form("lea rax, [rip+1f]; push rax; ret; mov bl, 1; 1:")
    yield Form("lea rax, [rip+1f]; push rax; push rax; ret 8; mov bl, 1; 1:")
    yield Form("lea rax, [rip+1f]; jmp rax; mov bl, 1; 1:")
    yield Form("lea rax, [rip+1f]; mov [MEM+16], rax; jmp [MEM+16]; mov bl, 1; 1: mov qword ptr [MEM+16], 0")
    for name in ("int3", "ud2", "ud2; nop"):
        yield Form(name)
    # INT1. In some virtual machines (seen: KVM on an AMD EPYC) its trap is at the instruction, not behind it.
    yield Form(".byte 0xf1", by_record=True)
    # Not in 64-bit mode, or with a prefix that is not allowed.
    for code in ("0x06", "0x27", "0x37", "0x3f", "0xce", "0x60", "0xd4,10", "0xea", "0x9a", "0x82,0xc0,1"):
        yield Form(f".byte {code}")
    for code in ("0x90", "0x01,0xd8", "0x0f,0xa3,0x00", "0x89,0x03", "0x0f,0x58,0xc1", "0x84,0x00"):
        yield Form(f".byte 0xf0,{code}")
    yield Form(".byte 0x0f,0xff,0xc0")
    yield Form(".byte 0x0f,0x04")
    yield Form(".byte 0x0f,0x0a")
    yield Form(".byte 0xc6,0xc8,0x00")
    yield Form(".byte 0xff,0xf8")
    yield Form(".byte 0xfe,0xd0")
    yield Form(".byte 0x8f,0xc8")


def _extensions() -> Iterator[Form]:
    for size in (32, 64):
        first, second, third, fourth = REGISTERS[size]
        scanned = CF | ZF | SF | OF | DF
        yield Form(f"andn {first}, {second}, {third}", flags=scanned, needs="bmi1")
        yield Form(f"andn {first}, {second}, {memory(size)}", flags=scanned, needs="bmi1")
        for name in ("blsi", "blsr", "blsmsk"):
            yield Form(f"{name} {first}, {second}", flags=scanned, needs="bmi1")
            yield Form(f"{name} {third}, {memory(size)}", flags=scanned, needs="bmi1")
            yield Form(f"xor ebx, ebx; {name} {first}, {second}", flags=scanned, needs="bmi1")
        for name, flags, feature in (
            ("bextr", ZF | CF | OF | DF, "bmi1"),
            ("bzhi", scanned, "bmi2"),
            ("sarx", ALL, "bmi2"),
            ("shlx", ALL, "bmi2"),
            ("shrx", ALL, "bmi2"),
        ):
            yield Form(f"{name} {first}, {second}, {third}", flags=flags, needs=feature)
            yield Form(f"{name} {first}, {memory(size)}, {fourth}", flags=flags, needs=feature)
        for length in (0, 1, 31, 32, 63, 64, 65, 255):
            yield Form(
                f"mov r9d, {length << 8 | 3}; bextr {first}, {second}, {third}",
                flags=ZF | CF | OF | DF,
                needs="bmi1",
            )
            yield Form(f"mov r9d, {length}; bzhi {first}, {second}, {third}", flags=scanned, needs="bmi2")
        for name in ("pdep", "pext", "mulx"):
            yield Form(f"{name} {first}, {second}, {third}", needs="bmi2")
            yield Form(f"{name} {first}, {second}, {memory(size)}", needs="bmi2")
        yield Form(f"mulx {first}, {first}, {third}", needs="bmi2")
        for count in (0, 1, 13, 31, 63):
            yield Form(f"rorx {first}, {second}, {count}", needs="bmi2")
        yield Form(f"rorx {third}, {memory(size)}, 5", needs="bmi2")
    for target, source in (("eax", 8), ("rax", 8), ("eax", 16), ("r9d", 32), ("r9", 64)):
        yield Form(f"crc32 {target}, {REGISTERS[source][1 if source > 8 else 2]}", needs="sse4_2")
        yield Form(f"crc32 {target}, {memory(source)}", needs="sse4_2")


def _sequences() -> Iterator[Form]:
    """What translators get wrong: flags that one instruction leaves and another, much later, reads."""
    first = (
        *("add eax, ebx", "sub r9, rsi", "adc al, bl", "sbb rax, rbx", "neg ecx", "and edx, ebx", "inc r9b"),
        *(
            "dec rax",
            "shl ebx, 3",
            "sar r9, 63",
            "xadd rax, rbx",
            "cmpxchg rbx, r9",
            "rcl eax, 1",
            "bt rax, 7",
        ),
    )
    second = (
        "inc r10",
        "dec r10b",
        "not r10",
        "lea r10, [r10+1]",
        "rol r11d, 1",
        "bswap r11",
        "xchg r10, r11",
    )
    for before, between in product(first, second):
        yield Form(f"{before}; {between}; setc r12b; adc r13, r14; rcr r15, 1", flags=CF | DF)
        yield Form(f"{before}; {between}; setc r12b; lahf; and ah, 1; sahf; sbb r13, r13", flags=LOW & ~AF)
    for before in first:
        for condition in CONDITIONS:
            if "bt" in before and condition not in {"b", "ae"}:
                continue
            if ("sar" in before or "shl" in before) and condition in {"o", "no", "l", "ge", "le", "g"}:
                continue
            yield Form(f"{before}; j{condition} 1f; inc r12; 1:", flags=DF)
