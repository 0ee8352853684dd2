"""Instructions that a processor without their feature must refuse with an invalid opcode.

Programs ask CPUID and stay away from them; one that does not ask must not compute nonsense.
"""

from collections.abc import Iterator
from typing import Final

from isa.form import Form, words

AVX: Final = (
    *words("vaddps vaddpd vsubps vmulps vdivps vminps vmaxps vandps vxorps vaddss vaddsd vmulss vdivsd"),
    *words("vpaddb vpaddw vpaddd vpaddq vpsubb vpsubd vpand vpor vpxor vpcmpeqb vpcmpgtd vpmulld vpmuludq"),
    *words("vpunpcklbw vpackuswb vpshufb vphaddw vpmaxsd vpminub vpsllw vpsrld vhaddps vaddsubpd vunpcklps"),
    *["vaesenc", "vaesdeclast", "vpcmpeqq", "vpcmpgtq"],
)
TWO_OPERANDS: Final = (
    *words("vmovaps vmovups vmovdqa vmovdqu vmovapd vsqrtps vrcpps vrsqrtps vcvtdq2ps vcvtps2dq vpabsb"),
    *words("vptest vucomiss vcomisd vmovddup vmovshdup vaesimc vphminposuw"),
)
WITH_IMMEDIATE: Final = (
    *("vshufps {0}, {1}, {2}, 7", "vpalignr {0}, {1}, {2}, 3", "vblendps {0}, {1}, {2}, 3"),
    *("vpshufd {0}, {1}, 7", "vcmpps {0}, {1}, {2}, 2", "vroundps {0}, {1}, 1", "vpblendw {0}, {1}, {2}, 3"),
    *("vdpps {0}, {1}, {2}, 255", "vpsllw {0}, {1}, 3", "vpslldq {0}, {1}, 3"),
)
OTHERS: Final = (
    *(
        "vzeroupper",
        "vzeroall",
        "vmovd xmm1, eax",
        "vmovq r9, xmm1",
        "vpextrb eax, xmm1, 3",
        "vmovmskps eax, xmm1",
    ),
    *("vpcmpistri xmm1, xmm2, 12", "vpcmpestrm xmm1, xmm2, 12", "vpclmulqdq xmm1, xmm2, xmm3, 17"),
    *(
        "vmovss xmm1, xmm2, xmm3",
        "vmovss xmm1, [MEM+16]",
        "vmovss [MEM+16], xmm1",
        "vcvtsi2sd xmm1, xmm2, eax",
    ),
    *("vcvttss2si eax, xmm1", "vpmovmskb eax, xmm1", "vldmxcsr [MEM+16]", "vstmxcsr [MEM+16]"),
    *("vbroadcastss xmm1, [MEM+16]", "vbroadcastsd ymm1, [MEM+16]", "vbroadcastf128 ymm1, [MEM+16]"),
    *("vinsertf128 ymm1, ymm2, xmm3, 1", "vextractf128 xmm1, ymm2, 1", "vperm2f128 ymm1, ymm2, ymm3, 1"),
    *(
        "vpermilps xmm1, xmm2, 5",
        "vmaskmovps xmm1, xmm2, [MEM+16]",
        "vtestps xmm1, xmm2",
        "vlddqu xmm1, [MEM]",
    ),
    *("vmovntdq [MEM+16], xmm1", "vmaskmovdqu xmm1, xmm2", "vpinsrd xmm1, xmm2, eax, 1"),
    *("vpblendvb xmm1, xmm2, xmm3, xmm4", "vpermq ymm1, ymm2, 7", "vpbroadcastb xmm1, xmm2"),
    *("vpsllvd xmm1, xmm2, xmm3", "vpgatherdd xmm1, [rax+xmm2*4], xmm3", "vfmadd213ps xmm1, xmm2, xmm3"),
    *("vfmadd231sd xmm1, xmm2, xmm3", "vcvtph2ps xmm1, xmm2", "vcvtps2ph xmm1, xmm2, 0"),
    *("vaddps zmm1, zmm2, zmm3", "vpaddd zmm1, zmm2, [MEM]", "kmovw k1, eax", "vmovdqu8 xmm17, xmm1"),
    *("sha1rnds4 xmm1, xmm2, 1", "sha256rnds2 xmm1, xmm2", "sha256msg1 xmm1, xmm2", "sha1nexte xmm1, xmm2"),
    *("adcx eax, ebx", "adox rax, rbx", "rdseed eax", "rdpid rax", "clwb [MEM]", "movdiri [MEM+16], eax"),
    *("gf2p8mulb xmm1, xmm2", "gf2p8affineqb xmm1, xmm2, 3", "xgetbv", "xsave [MEM]", "xrstor [MEM]"),
    *("xsaveopt [MEM]", "xsavec [MEM]", "extrq xmm1, xmm2", "insertq xmm1, xmm2", "movntss [MEM+16], xmm1"),
    *("pfadd mm1, mm2", "pswapd mm1, mm2", "femms", "pavgusb mm0, mm1", "pf2id mm0, mm1"),
    *("vpcmov xmm1, xmm2, xmm3, xmm4", "vphaddbw xmm1, xmm2", "blcfill eax, ebx", "tzmsk eax, ebx"),
    *("vfmaddps xmm1, xmm2, xmm3, xmm4", "llwpcb rax", "monitor", "mwait", "vmcall", "vmmcall", "serialize"),
    *("movdir64b rax, [MEM]", "tpause eax", "umonitor rax", "enqcmd rax, [MEM]", "cldemote [MEM]; ud2"),
    *("endbr64; ud2", "wrpkru", "rdpkru", "clzero", "rdpru", "invpcid rax, [MEM]", "xbegin 1f; 1:", "xtest"),
    *("bextr eax, ebx, 5", "vpmadd52luq xmm1, xmm2, xmm3", "vpdpbusd xmm1, xmm2, xmm3"),
)
MAY_BE_OFFERED: Final = {
    *("xgetbv", "xsave [MEM]", "xrstor [MEM]", "xsaveopt [MEM]", "xsavec [MEM]"),
}


def forms() -> Iterator[Form]:
    """All of them; without AVX, XSAVE and the rest."""
    for name in AVX:
        for operands in ("xmm0, xmm1, xmm2", "xmm9, xmm10, xmm11", "xmm0, xmm1, [MEM+16]"):
            yield _refused(f"{name} {operands}", "avx")
    for name in AVX:
        if name[-2:] not in {"ss", "sd"} and name not in {"vpsllw", "vpsrld"}:
            yield _refused(f"{name} ymm0, ymm1, ymm2", "avx")
    for name in TWO_OPERANDS:
        yield _refused(f"{name} xmm0, xmm9", "avx")
        yield _refused(f"{name} xmm0, [MEM+16]", "avx")
    for name in ("vmovaps", "vmovups", "vmovdqu"):
        yield _refused(f"{name} [MEM+16], xmm9", "avx")
        yield _refused(f"{name} ymm0, ymm1", "avx")
        yield _refused(f"{name} [MEM+32], ymm1", "avx")
    for pattern in WITH_IMMEDIATE:
        yield _refused(pattern.format("xmm0", "xmm1", "xmm2"), "avx")
        yield _refused(pattern.format("ymm0", "ymm1", "ymm2"), "avx")
    for code in OTHERS:
        yield _refused(code, "avx" if code[0] == "v" else "xsave" if code.split()[0].startswith("x") else "")
    # The same prefixes in front of opcodes that have no such form.
    for first in (0xC4, 0xC5, 0x62):
        for second in (0xE0, 0xF1, 0xF8, 0xFD):
            for opcode in (0x05, 0x0B, 0x1F, 0x58, 0x77, 0xA2, 0xB0, 0xC7, 0xEF):
                if (first == 0xC5 and opcode == 0x58) or (first == 0xC4 and opcode == 0xB0):
                    continue
                yield _refused(f".byte {first:#x},{second:#x},{opcode:#x},0xc1,0xc1,0xc1,0xc1", "avx")


def _refused(code: str, needs: str) -> Form:
    return Form(code, inputs="lanes", needs=needs, refused=True)
