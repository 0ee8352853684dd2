"""Forms of the x87."""

from collections.abc import Iterator
from typing import Final

from isa.form import ALL, C1, CF, DF, NO_CONDITIONS, PF, STATUS, ZF, Form, words

MEMORY: Final = {"m32": "dword ptr [MEM+32]", "m64": "qword ptr [MEM+48]", "m80": "tbyte ptr [MEM+64]"}
INTEGERS: Final = {"m16": "word ptr [MEM+96]", "m32": "dword ptr [MEM+100]", "m64": "qword ptr [MEM+104]"}
ARITHMETIC: Final = words("fadd fsub fsubr fmul fdiv fdivr")
ROUNDED: Final = NO_CONDITIONS | C1
COMPARED_FLAGS: Final = ZF | PF | CF | DF
TRANSCENDENTAL_BITS: Final = 50
"""Processors may differ in the last bits of these functions."""
UNDEFINED_BY_APPROXIMATION: Final = 0x0020
"""Whether the result is exact, when it is not."""


UNMASKED: Final = (
    *(
        "fadd st, st(1)",
        "faddp st(1), st",
        "fmul qword ptr [MEM+48]",
        "fdiv st, st(1)",
        "fidiv word ptr [MEM+96]",
    ),
    *(
        "fsub dword ptr [MEM+32]",
        "fsqrt",
        "fscale",
        "fprem",
        "frndint",
        "fxtract",
        "fchs",
        "fxam",
        "fcmovb st, st(2)",
    ),
    *(
        "fld dword ptr [MEM+32]",
        "fld qword ptr [MEM+48]",
        "fld tbyte ptr [MEM+64]",
        "fild dword ptr [MEM+100]",
    ),
    *("fld st(3)", "fldpi", "fbld tbyte ptr [MEM+64]", "fxch st(2)", "fst st(4)", "fstp st(3)", "fincstp"),
    *(
        "fst dword ptr [MEM+32]",
        "fstp qword ptr [MEM+48]",
        "fstp tbyte ptr [MEM+64]",
        "fbstp tbyte ptr [MEM+64]",
    ),
    *("fist dword ptr [MEM+100]", "fistp word ptr [MEM+96]", "fisttp qword ptr [MEM+104]", "ftst"),
    *(
        "fcom st(2)",
        "fucomp st(2)",
        "fcompp",
        "fcomi st, st(2)",
        "fucomip st, st(1)",
        "ficom word ptr [MEM+96]",
    ),
)
"""Tried with each exception that can be unmasked."""
WAITING: Final = (
    *(
        "fld1",
        "fadd st, st(1)",
        "fxch st(1)",
        "fnop",
        "fldcw [MEM+2]",
        "fldenv [MEM+16]",
        "frstor [MEM+8]",
        "fincstp",
    ),
    *(
        "ffree st(1)",
        "fst dword ptr [MEM+32]",
        "fistp word ptr [MEM+96]",
        "fild word ptr [MEM+96]",
        "fxam",
        "emms",
    ),
    *("paddb mm1, mm2", "movd mm1, eax", "cvtpi2ps xmm1, mm2", "cvttpd2pi mm1, xmm2", "movq2dq xmm1, mm2"),
    *(
        "pshufb mm1, mm2",
        "palignr mm1, mm2, 3",
        "lea rdi, [MEM+32]; maskmovq mm1, mm2",
        "movntq [MEM+32], mm2",
        "addps xmm1, xmm2",
    ),
    *(
        "fnstcw [MEM+2]",
        "fnstsw ax",
        "fnclex",
        "fninit",
        "pxor xmm1, xmm2",
        "cvtpi2pd xmm1, mm2",
        "movdq2q mm1, xmm2",
    ),
)
"""What may come after an exception: most of these raise it, and the last ones do not."""


PUSHING: Final = ("fld", "fild", "fbld", "fxtract", "fptan", "fsincos")


def forms() -> Iterator[Form]:
    """All of them, each with a full stack (of which those that push free a register), and with any."""
    for code, status, flags in _exact():
        frees = code.startswith(PUSHING) and not code.startswith(("fldcw", "fldenv"))
        yield Form(f"ffree st(7); {code}" if frees else code, "x87", flags, status)
        if not code.startswith("ffree st(7)"):
            yield Form(code, "x87 stack", flags, status)
    for name in ("fsin", "fcos", "fsincos", "fptan", "fpatan", "f2xm1", "fyl2x", "fyl2xp1"):
        near = "fld1; fld st(1); fprem; fstp st(1); fstp st(2)"  # a number between -1 and 1
        status = NO_CONDITIONS & ~UNDEFINED_BY_APPROXIMATION
        yield Form(
            f"ffree st(7); ffree st(6); {near}; {name}", "x87", ALL, status, digits=TRANSCENDENTAL_BITS
        )


def _exact() -> Iterator[tuple[str, int, int]]:
    """Code, the status bits and the flags that it leaves defined."""
    for code, status in _plain():
        yield code, status, ALL
    for name in ("fcomi", "fcomip", "fucomi", "fucomip"):
        for register in (0, 1, 3):
            yield f"{name} st, st({register})", ROUNDED, COMPARED_FLAGS
    for condition in words("b e be u nb ne nbe nu"):
        yield f"fcmov{condition} st, st(1)", ROUNDED, ALL
        yield f"fcmov{condition} st, st(5)", ROUNDED, ALL


def _plain() -> Iterator[tuple[str, int]]:
    for name in ARITHMETIC:
        for register in (0, 1, 6):
            yield f"{name} st, st({register})", ROUNDED
            yield f"{name} st({register}), st", ROUNDED
            yield f"{name}p st({register}), st", ROUNDED
        yield f"{name} {MEMORY['m32']}", ROUNDED
        yield f"{name} {MEMORY['m64']}", ROUNDED
        integer = name.replace("f", "fi", 1)
        yield f"{integer} {INTEGERS['m16']}", ROUNDED
        yield f"{integer} {INTEGERS['m32']}", ROUNDED
    for operand in MEMORY.values():
        yield f"fld {operand}", ROUNDED
        yield f"fstp {operand}", ROUNDED
    for operand in (MEMORY["m32"], MEMORY["m64"]):
        yield f"fst {operand}", ROUNDED
    for operand in INTEGERS.values():
        yield f"fild {operand}", ROUNDED
        yield f"fistp {operand}", ROUNDED
        yield f"fisttp {operand}", ROUNDED
    for operand in (INTEGERS["m16"], INTEGERS["m32"]):
        yield f"fist {operand}", ROUNDED
    # Numbers that fit, for most random ones do not.
    for code in ("fild word ptr [MEM+96]; fdiv dword ptr [MEM+36]", "fild dword ptr [MEM+100]; fsqrt"):
        for operand in INTEGERS.values():
            yield f"ffree st(7); ffree st(6); {code}; fistp {operand}", NO_CONDITIONS
            yield f"ffree st(7); ffree st(6); {code}; fisttp {operand}", NO_CONDITIONS
    for register in (0, 2, 6):
        for name in ("fld", "fst", "fstp", "fxch", "ffree", "ffreep"):
            yield f"{name} st({register})", ROUNDED
        for name in ("fcom", "fcomp", "fucom", "fucomp"):
            yield f"{name} st({register})", STATUS & ~C1
    for name in ("fcompp", "fucompp"):
        yield name, STATUS & ~C1
    for name in ("fcom", "fcomp"):
        yield f"{name} {MEMORY['m32']}", STATUS & ~C1
        yield f"{name} {MEMORY['m64']}", STATUS & ~C1
    for name in ("ficom", "ficomp"):
        yield f"{name} {INTEGERS['m16']}", STATUS & ~C1
        yield f"{name} {INTEGERS['m32']}", STATUS & ~C1
    yield "ftst", STATUS & ~C1
    yield "fxam", STATUS
    for name in ("fprem", "fprem1"):
        yield name, STATUS
        yield f"fxch st(3); {name}", STATUS
    for name in words("fabs fchs fsqrt frndint fscale fxtract fdecstp fincstp fnop fwait fnclex fninit"):
        yield name, ROUNDED
    for name in words("fld1 fldz fldpi fldl2e fldl2t fldlg2 fldln2"):
        yield name, ROUNDED
    for code in (
        *(
            "fbld tbyte ptr [MEM+64]",
            "fbstp tbyte ptr [MEM+64]",
            "fild word ptr [MEM+96]; fbstp tbyte ptr [MEM+64]",
        ),
        *(
            "fnstcw [MEM+16]",
            "fldcw [MEM+16]",
            "fnstsw ax",
            "fnstsw [MEM+16]",
            "fld1; fnstenv [MEM+16]; fninit",
        ),
        *("or word ptr [MEM+16], 0x3f; fldcw [MEM+16]", "fnstenv [MEM]; fninit; fldenv [MEM]"),
        *("fnsave [MEM+8]; frstor [MEM+8]", "emms"),
    ):
        yield code + _forget_pointers(code), NO_CONDITIONS
    # Exceptions that are not masked: they come with the next instruction that waits.
    for name in UNMASKED:
        for control in (0x37E, 0x37D, 0x37B, 0x377, 0x36F, 0x35F, 0x340):
            yield f"{_unmask(control)}; {name}; fnstsw [MEM+2]; fwait; mov bl, 1", ROUNDED
    for name in WAITING:
        yield f"{_unmask(0x37B)}; ffree st(7); fldz; fdivr st, st(1); {name}; mov bl, 1", NO_CONDITIONS
    for name in ("fnstenv [MEM+16]", "fnsave [MEM+8]"):
        yield f"{_unmask(0x37E)}; fsqrt; {name}; fwait; fninit" + _forget_pointers(name), NO_CONDITIONS
    # Flags that were there before the exception was unmasked, and words with bits that do not exist.
    yield "fldcw [MEM+16]; fnstsw [MEM+2]; fwait", NO_CONDITIONS
    for name in (
        "fldenv [MEM+16]",
        ".byte 0x66; fldenv [MEM+16]",
        "frstor [MEM+8]",
        ".byte 0x66; frstor [MEM+8]",
    ):
        for then in (
            "fnstsw [MEM+2]; fwait; mov bl, 1",
            "fadd st, st(1); fxam",
            "fst st(3); fincstp; fxch st(2)",
        ):
            yield f"{name}; {then}", NO_CONDITIONS
    for name in ("fxrstor", "fxrstor64"):
        yield f"{name} [MEM]", NO_CONDITIONS
        for mxcsr in ("mov dword ptr [MEM+24], 0x1f80", "and dword ptr [MEM+24], 0xffff"):
            yield f"{mxcsr}; {name} [MEM]; fnstsw [MEM+2]; fwait; mov bl, 1", NO_CONDITIONS
            yield (
                f"{mxcsr}; {name} [MEM]; fadd st, st(1); fst qword ptr [MEM+48]; paddb mm1, mm2",
                NO_CONDITIONS,
            )
    for name in ("fnstenv [MEM+16]", "fnsave [MEM+8]"):
        yield f".byte 0x66; {name}; mov dword ptr [MEM+14], 0; mov qword ptr [MEM+22], 0", NO_CONDITIONS


def _unmask(control: int) -> str:
    return f"mov word ptr [MEM], {control:#x}; fnclex; fldcw [MEM]"


def _forget_pointers(code: str) -> str:
    """Clear what an environment in memory says of the last instruction, which processors may keep or not."""
    if "fnstenv" not in code and "fnsave" not in code:
        return ""
    at = 8 if "fnsave" in code else 0 if "[MEM]" in code else 16
    return "".join(f"; mov dword ptr [MEM+{at + offset}], 0" for offset in (12, 16, 20, 24))
