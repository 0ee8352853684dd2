"""Forms of MMX and SSE to SSE4.2, AES and PCLMULQDQ."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Final

from isa.form import AF, ALL, CF, DF, OF, PF, SF, ZF, Form, words

PACKED_INTEGER: Final = (
    *words("paddb paddw paddd paddq paddsb paddsw paddusb paddusw psubb psubw psubd psubq psubsb psubsw"),
    *words("psubusb psubusw pmulhw pmulhuw pmullw pmuludq pmaddwd pand pandn por pxor pcmpeqb pcmpeqw"),
    *words("pcmpeqd pcmpgtb pcmpgtw pcmpgtd packsswb packssdw packuswb punpcklbw punpcklwd punpckldq"),
    *words("punpckhbw punpckhwd punpckhdq psllw pslld psllq psrlw psrld psrlq psraw psrad pavgb pavgw"),
    *words("pminub pminsw pmaxub pmaxsw psadbw"),
)
"""There for MMX, and for SSE2."""
PACKED_SSSE3: Final = (
    *words("pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw pmaddubsw pmulhrsw psignb psignw psignd"),
    *["pabsb", "pabsw", "pabsd"],
)
PACKED_SSE: Final = {
    "": "punpcklqdq punpckhqdq",
    "sse4_1": "pmulld pmuldq pminsb pminsd pminuw pminud pmaxsb pmaxsd pmaxuw pmaxud pcmpeqq packusdw "
    "phminposuw",
    "sse4_2": "pcmpgtq",
    "aes": "aesenc aesenclast aesdec aesdeclast aesimc",
}
SHIFTS: Final = "psllw pslld psllq psrlw psrld psrlq psraw psrad"
WIDENING: Final = {"bw": 8, "bd": 4, "bq": 2, "wd": 8, "wq": 4, "dq": 8}
IMMEDIATES: Final = (0, 1, 0x1B, 0x4E, 0x93, 0xA5, 0xE4, 0xFF)
ALL_IMMEDIATES: Final = tuple(range(256))
WIDTHS: Final = {"ss": "dword", "sd": "qword", "ps": "xmmword", "pd": "xmmword"}
COMPARED: Final = ZF | PF | CF | AF | SF | OF | DF
INPUTS: Final = {"s": "singles", "d": "doubles"}


def forms() -> Iterator[Form]:
    """All of them."""
    yield from _packed_integer()
    yield from _immediate()
    yield from _string_compares()
    yield from _floating()
    yield from _conversions()
    yield from _moves()
    yield from _state()
    yield from _multimedia()


def _pair(name: str, inputs: str, *, suffix: str = "", needs: str = "", flags: int = ALL) -> Iterator[Form]:
    """With a register, with itself, with aligned memory, and with memory that is not: which must fault."""
    for operands in (
        *("xmm0, xmm1", "xmm9, xmm2", "xmm3, xmm3"),
        *("xmm1, xmmword ptr [MEM+16]", "xmm12, xmmword ptr [MEM+48]", "xmm1, xmmword ptr [MEM+20]"),
    ):
        yield Form(f"{name} {operands}{suffix}", inputs=inputs, needs=needs, flags=flags)


def _packed_integer() -> Iterator[Form]:
    for name in PACKED_INTEGER:
        yield from _pair(name, "lanes")
    for name in PACKED_SSSE3:
        yield from _pair(name, "lanes", needs="ssse3")
    for feature, names in PACKED_SSE.items():
        for name in names.split():
            yield from _pair(name, "lanes", needs=feature)
    yield from _pair("ptest", "lanes", needs="sse4_1")
    yield Form("pxor xmm1, xmm1; ptest xmm0, xmm1", inputs="lanes", needs="sse4_1")
    yield Form("pcmpeqd xmm1, xmm1; ptest xmm1, xmm0", inputs="lanes", needs="sse4_1")
    for kind, width in WIDENING.items():
        size = {8: "qword", 4: "dword", 2: "word"}[width]
        for sign in "sz":
            yield Form(f"pmov{sign}x{kind} xmm0, xmm9", inputs="lanes", needs="sse4_1")
            yield Form(f"pmov{sign}x{kind} xmm1, {size} ptr [MEM+61]", inputs="lanes", needs="sse4_1")
    # Shifts by what a register holds, which is rarely small.
    for name in SHIFTS.split():
        yield Form(f"pxor xmm2, xmm2; and eax, 31; movd xmm2, eax; {name} xmm0, xmm2", inputs="lanes")
        for count in (0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 255):
            yield Form(f"{name} xmm1, {count}", inputs="lanes")
    for name, count in product(("pslldq", "psrldq"), (0, 1, 7, 8, 15, 16, 255)):
        yield Form(f"{name} xmm10, {count}", inputs="lanes")
    for name in ("pblendvb", "blendvps", "blendvpd"):
        yield from _pair(name, "lanes", needs="sse4_1")


def _immediate() -> Iterator[Form]:
    """Instructions with an immediate byte that chooses."""
    chosen: Iterable[tuple[str, str, str, Iterable[int]]] = (
        ("pshufd", "", "lanes", ALL_IMMEDIATES),
        ("pshufhw", "", "lanes", IMMEDIATES),
        ("pshuflw", "", "lanes", IMMEDIATES),
        ("shufps", "", "lanes", ALL_IMMEDIATES),
        ("shufpd", "", "lanes", (0, 1, 2, 3, 0xFF)),
        ("palignr", "ssse3", "lanes", (0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 255)),
        ("blendps", "sse4_1", "lanes", range(16)),
        ("blendpd", "sse4_1", "lanes", range(4)),
        ("pblendw", "sse4_1", "lanes", ALL_IMMEDIATES),
        ("insertps", "sse4_1", "lanes", ALL_IMMEDIATES),
        ("mpsadbw", "sse4_1", "lanes", range(8)),
        ("aeskeygenassist", "aes", "lanes", (0, 1, 2, 0x1B, 0x36, 0xFF)),
        ("pclmulqdq", "pclmulqdq", "lanes", (0, 1, 0x10, 0x11, 0xEE, 0xFF)),
        ("dpps", "sse4_1", "singles", ALL_IMMEDIATES),
        ("dppd", "sse4_1", "doubles", (*range(0x34), 0xF1, 0xFF)),
        ("roundps", "sse4_1", "singles", range(16)),
        ("roundpd", "sse4_1", "doubles", range(16)),
        *((f"cmp{kind}", "", INPUTS[kind[1]], range(8)) for kind in ("ps", "pd")),
    )
    for name, feature, inputs, immediates in chosen:
        for immediate in immediates:
            yield Form(f"{name} xmm1, xmm9, {immediate}", inputs=inputs, needs=feature)
        for immediate in list(immediates)[:4]:
            memory = "dword" if name == "insertps" else "xmmword"
            yield Form(f"{name} xmm1, {memory} ptr [MEM+16], {immediate}", inputs=inputs, needs=feature)
            yield Form(f"{name} xmm1, {memory} ptr [MEM+22], {immediate}", inputs=inputs, needs=feature)
    for kind, width in (("ss", "dword"), ("sd", "qword")):
        for immediate in range(8):
            yield Form(f"cmp{kind} xmm0, xmm1, {immediate}", inputs=INPUTS[kind[1]])
            yield Form(f"cmp{kind} xmm10, {width} ptr [MEM+61], {immediate}", inputs=INPUTS[kind[1]])
        for immediate in range(16):
            yield Form(f"round{kind} xmm0, xmm1, {immediate}", inputs=INPUTS[kind[1]], needs="sse4_1")
        yield Form(f"round{kind} xmm9, {width} ptr [MEM+61], 4", inputs=INPUTS[kind[1]], needs="sse4_1")
    for size, register, counts in (("b", "eax", 16), ("d", "r9d", 4), ("q", "rax", 2)):
        memory = {"b": "byte", "d": "dword", "q": "qword"}[size]
        for count in (*range(counts), 0xFF):
            yield Form(f"pextr{size} {register}, xmm1, {count}", inputs="lanes", needs="sse4_1")
            yield Form(f"pextr{size} {memory} ptr [MEM+61], xmm1, {count}", inputs="lanes", needs="sse4_1")
            yield Form(f"pinsr{size} xmm9, {register}, {count}", inputs="lanes", needs="sse4_1")
            yield Form(f"pinsr{size} xmm1, {memory} ptr [MEM+61], {count}", inputs="lanes", needs="sse4_1")
    for count in (*range(8), 0xFF):
        yield Form(f"pextrw ebx, xmm1, {count}", inputs="lanes")
        yield Form(f"pextrw word ptr [MEM+63], xmm1, {count}", inputs="lanes", needs="sse4_1")
        yield Form(f"pinsrw xmm9, ebx, {count}", inputs="lanes")
        yield Form(f"pinsrw xmm1, word ptr [MEM+63], {count}", inputs="lanes")
    for count in (0, 1, 2, 3, 0xFF):
        yield Form(f"extractps eax, xmm1, {count}", inputs="lanes", needs="sse4_1")
        yield Form(f"extractps [MEM+61], xmm1, {count}", inputs="lanes", needs="sse4_1")
        yield Form(f"insertps xmm1, dword ptr [MEM+61], {count * 16 & 255}", inputs="lanes", needs="sse4_1")


def _string_compares() -> Iterator[Form]:
    for name, immediate in product(("pcmpistri", "pcmpistrm", "pcmpestri", "pcmpestrm"), ALL_IMMEDIATES):
        yield Form(f"{name} xmm1, xmm2, {immediate}", inputs="texts", needs="sse4_2")
        if immediate % 5 == 0:
            yield Form(f"{name} xmm9, xmmword ptr [MEM+21], {immediate}", inputs="texts", needs="sse4_2")
    for name in ("pcmpestri", "pcmpestrm"):
        for immediate in (0x0C, 0x0D, 0x40):
            yield Form(f"rex.w {name} xmm1, xmm2, {immediate}", inputs="texts", needs="sse4_2")


def _floating() -> Iterator[Form]:
    for name, kind in product(words("add sub mul div min max"), WIDTHS):
        yield from _floating_pair(f"{name}{kind}", kind)
    for name in ("sqrt",):
        for kind in WIDTHS:
            yield from _floating_pair(f"{name}{kind}", kind)
    for name in ("rcpps", "rcpss", "rsqrtps", "rsqrtss"):
        yield Form(f"{name} xmm0, xmm1", inputs="singles", digits=10)
    for name in ("haddps", "hsubps", "addsubps"):
        yield from _pair(name, "singles", needs="sse3")
    for name in ("haddpd", "hsubpd", "addsubpd"):
        yield from _pair(name, "doubles", needs="sse3")
    for name in ("andps", "andnps", "orps", "xorps", "unpcklps", "unpckhps"):
        yield from _pair(name, "lanes")
    for name in ("andpd", "andnpd", "orpd", "xorpd", "unpcklpd", "unpckhpd"):
        yield from _pair(name, "lanes")
    for name in ("comi", "ucomi"):
        for kind in ("ss", "sd"):
            yield from _floating_pair(f"{name}{kind}", kind, flags=COMPARED)
    # Chains of flags: MXCSR's are sticky, and what an instruction leaves there another must not lose.
    for kind in WIDTHS:
        inputs = INPUTS[kind[1]]
        yield Form(f"div{kind} xmm0, xmm1; add{kind} xmm2, xmm3; mul{kind} xmm0, xmm2", inputs=inputs)
        yield Form(
            f"add{kind} xmm0, xmm1; stmxcsr [MEM+16]; mov dword ptr [MEM+20], 0x1f80; ldmxcsr [MEM+20]; "
            f"sqrt{kind} xmm2, xmm0; stmxcsr [MEM+24]",
            inputs=inputs,
        )


def _floating_pair(name: str, kind: str, flags: int = ALL) -> Iterator[Form]:
    inputs = INPUTS[kind[1]]
    if kind[0] == "p":
        yield from _pair(name, inputs)
        return
    for operands in (
        *("xmm0, xmm1", "xmm9, xmm2", "xmm3, xmm3"),
        *(f"xmm1, {WIDTHS[kind]} ptr [MEM+16]", f"xmm12, {WIDTHS[kind]} ptr [MEM+61]"),
    ):
        yield Form(f"{name} {operands}", inputs=inputs, flags=flags)


def _conversions() -> Iterator[Form]:
    for name, inputs, memory in (
        *(
            ("cvtdq2ps", "lanes", "xmmword"),
            ("cvtdq2pd", "lanes", "qword"),
            ("cvtps2dq", "singles", "xmmword"),
        ),
        *(("cvttps2dq", "singles", "xmmword"), ("cvtpd2dq", "doubles", "xmmword")),
        *(
            ("cvttpd2dq", "doubles", "xmmword"),
            ("cvtps2pd", "singles", "qword"),
            ("cvtpd2ps", "doubles", "xmmword"),
        ),
        *(("cvtss2sd", "singles", "dword"), ("cvtsd2ss", "doubles", "qword")),
    ):
        yield Form(f"{name} xmm0, xmm1", inputs=inputs)
        yield Form(f"{name} xmm9, {memory} ptr [MEM+16]", inputs=inputs)
        yield Form(f"{name} xmm9, {memory} ptr [MEM+20]", inputs=inputs)
    for kind, width in (("ss", "dword"), ("sd", "qword")):
        for truncating, register in product("t", ("eax", "r9")):
            for name in (f"cvt{kind}2si", f"cvt{truncating}{kind}2si"):
                yield Form(f"{name} {register}, xmm1", inputs=INPUTS[kind[1]])
                yield Form(f"{name} {register}, {width} ptr [MEM+61]", inputs=INPUTS[kind[1]])
        for register, memory in (("eax", "dword"), ("r9", "qword")):
            yield Form(f"cvtsi2{kind} xmm1, {register}")
            yield Form(f"cvtsi2{kind} xmm9, {memory} ptr [MEM+61]")


def _moves() -> Iterator[Form]:
    for name in ("movaps", "movapd", "movdqa", "movups", "movupd", "movdqu"):
        yield Form(f"{name} xmm0, xmm9", inputs="lanes")
        for offset in (16, 24, 48, 57):
            yield Form(f"{name} xmm1, [MEM+{offset}]", inputs="lanes")
            yield Form(f"{name} [MEM+{offset}], xmm9", inputs="lanes")
    for name in ("movntps", "movntpd", "movntdq"):
        yield Form(f"{name} [MEM+32], xmm1", inputs="lanes")
        yield Form(f"{name} [MEM+36], xmm1", inputs="lanes")
    yield Form("movntdqa xmm1, [MEM+32]", inputs="lanes", needs="sse4_1")
    yield Form("movntdqa xmm1, [MEM+36]", inputs="lanes", needs="sse4_1")
    yield Form("lddqu xmm1, [MEM+61]", inputs="lanes", needs="sse3")
    for name in ("movddup", "movshdup", "movsldup"):
        yield Form(f"{name} xmm0, xmm9", inputs="lanes", needs="sse3")
        yield Form(f"{name} xmm1, [MEM+16]", inputs="lanes", needs="sse3")
        yield Form(f"{name} xmm1, [MEM+20]", inputs="lanes", needs="sse3")
    for name in ("movss", "movsd"):
        yield Form(f"{name} xmm0, xmm9", inputs="lanes")
        yield Form(f"{name} xmm1, [MEM+61]", inputs="lanes")
        yield Form(f"{name} [MEM+61], xmm9", inputs="lanes")
    for name in ("movlps", "movhps", "movlpd", "movhpd"):
        yield Form(f"{name} xmm1, [MEM+61]", inputs="lanes")
        yield Form(f"{name} [MEM+61], xmm9", inputs="lanes")
    for code in (
        *("movhlps xmm0, xmm9", "movlhps xmm0, xmm9", "movd xmm1, eax", "movd eax, xmm9", "movq xmm1, r9"),
        *("movq r9, xmm1", "movd xmm1, [MEM+61]", "movd [MEM+61], xmm1", "movq xmm0, xmm9"),
        *("movq xmm1, qword ptr [MEM+61]", "movq qword ptr [MEM+61], xmm9", "movmskps eax, xmm9"),
        *("movmskpd r9d, xmm1", "pmovmskb eax, xmm9", "lea edi, [MEM+19]; maskmovdqu xmm0, xmm1"),
        *("movdq2q mm1, xmm9", "movq2dq xmm9, mm1"),
    ):
        yield Form(code, inputs="lanes", multimedia="mm1" in code and "xmm1" not in code)


def _state() -> Iterator[Form]:
    for code in (
        *("stmxcsr [MEM+16]", "ldmxcsr [MEM+16]", "and dword ptr [MEM+16], 0xffbf; ldmxcsr [MEM+16]"),
        *(
            "mov dword ptr [MEM+16], 0x10000; ldmxcsr [MEM+16]",
            "mov dword ptr [MEM+16], 0x5f8f; ldmxcsr [MEM+16]",
        ),
    ):
        yield Form(code, inputs="singles")
    # Exceptions that are not masked.
    for kind in WIDTHS:
        for name in ("add", "mul", "div", "sqrt"):
            operation = f"{name}{kind} xmm0, xmm1"
            for mask in (0x1F00, 0x1D80, 0x1B80, 0x1780, 0x0F80):
                yield Form(
                    f"mov dword ptr [MEM+16], {mask:#x}; ldmxcsr [MEM+16]; {operation}",
                    inputs=INPUTS[kind[1]],
                )
    yield Form("mov dword ptr [MEM+16], 0x1f00; ldmxcsr [MEM+16]; ucomisd xmm0, xmm1", inputs="doubles")
    yield Form("mov dword ptr [MEM+16], 0x0f80; ldmxcsr [MEM+16]; cvtsd2si eax, xmm1", inputs="doubles")


def _multimedia() -> Iterator[Form]:
    """MMX, and what SSE, SSE2 and SSSE3 added to it."""
    names: Iterable[tuple[str, str]] = (
        *((name, "") for name in PACKED_INTEGER),
        *((name, "ssse3") for name in PACKED_SSSE3),
    )
    for name, feature in names:
        yield Form(f"{name} mm0, mm1", inputs="lanes", needs=feature, multimedia=True)
        width = "dword" if name.startswith("punpckl") else "qword"
        yield Form(f"{name} mm2, {width} ptr [MEM+60]", inputs="lanes", needs=feature, multimedia=True)
    codes: list[tuple[str, str]] = [
        (f"{name} mm1, {count}", "") for name in SHIFTS.split() for count in (0, 1, 15, 31, 32, 63, 64, 255)
    ]
    codes += [(f"pshufw mm0, mm1, {immediate}", "") for immediate in IMMEDIATES]
    codes += [(f"palignr mm0, mm1, {count}", "ssse3") for count in (0, 1, 7, 8, 9, 15, 16, 255)]
    codes += [(f"pextrw eax, mm1, {count}", "") for count in (0, 3, 5)]
    codes += [(f"pinsrw mm1, eax, {count}", "") for count in (0, 3, 5)]
    codes += [
        *(("movd mm0, eax", ""), ("movd eax, mm1", ""), ("movq mm0, mm1", ""), ("movq rax, mm1", "")),
        *(
            ("movq mm0, qword ptr [MEM+61]", ""),
            ("movq qword ptr [MEM+61], mm1", ""),
            ("pmovmskb eax, mm1", ""),
        ),
        *(("lea edi, [MEM+20]; maskmovq mm0, mm1", ""), ("movntq qword ptr [MEM+24], mm1", ""), ("emms", "")),
        *(("cvtpi2ps xmm0, mm1", ""), ("cvtpi2pd xmm0, mm1", ""), ("paddb mm0, mm1; emms", "")),
    ]
    for code, feature in codes:
        yield Form(code, inputs="lanes", needs=feature, multimedia=True)
    for name in ("cvtps2pi", "cvttps2pi"):
        yield Form(f"{name} mm0, xmm1", inputs="singles", multimedia=True)
        yield Form(f"{name} mm0, qword ptr [MEM+60]", inputs="singles", multimedia=True)
    for name in ("cvtpd2pi", "cvttpd2pi"):
        yield Form(f"{name} mm0, xmm1", inputs="doubles", multimedia=True)
        yield Form(f"{name} mm0, xmmword ptr [MEM+16]", inputs="doubles", multimedia=True)
    yield Form("movq mm0, mm1", inputs="lanes")  # once with the exponents, which every one of them sets
