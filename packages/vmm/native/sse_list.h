/* The SSE instructions that the host's processor executes for the guest, one by one.
 *
 * Each list is L(X, ...) for each instruction; X is passed on. */

#ifndef NITRO_SSE_LIST_H
#define NITRO_SSE_LIST_H

/* With MXCSR: L(X, name), which is the mnemonic and the helper's name. Both operands are XMM registers or memory. */
#define SSE_FLOAT(L, X) \
    L(X, addps) L(X, subps) L(X, mulps) L(X, divps) L(X, minps) L(X, maxps) L(X, sqrtps) L(X, cmpeqps) \
    L(X, cmpltps) L(X, cmpleps) L(X, cmpunordps) L(X, cmpneqps) L(X, cmpnltps) L(X, cmpnleps) L(X, cmpordps) \
    L(X, addpd) L(X, subpd) L(X, mulpd) L(X, divpd) L(X, minpd) L(X, maxpd) L(X, sqrtpd) L(X, cmpeqpd) \
    L(X, cmpltpd) L(X, cmplepd) L(X, cmpunordpd) L(X, cmpneqpd) L(X, cmpnltpd) L(X, cmpnlepd) L(X, cmpordpd) \
    L(X, rcpps) L(X, rsqrtps) L(X, haddps) L(X, haddpd) L(X, hsubps) L(X, hsubpd) L(X, addsubps) \
    L(X, addsubpd) L(X, cvtdq2pd) L(X, cvtdq2ps) L(X, cvtpd2dq) L(X, cvtpd2ps) L(X, cvtps2dq) L(X, cvtps2pd) \
    L(X, cvttpd2dq) L(X, cvttps2dq)

/* The same, on the lowest number alone: doubles, and singles. */
#define SSE_DOUBLE(L, X) \
    L(X, addsd) L(X, subsd) L(X, mulsd) L(X, divsd) L(X, minsd) L(X, maxsd) L(X, sqrtsd) L(X, cmpeqsd) \
    L(X, cmpltsd) L(X, cmplesd) L(X, cmpunordsd) L(X, cmpneqsd) L(X, cmpnltsd) L(X, cmpnlesd) L(X, cmpordsd)
#define SSE_SINGLE(L, X) \
    L(X, addss) L(X, subss) L(X, mulss) L(X, divss) L(X, minss) L(X, maxss) L(X, sqrtss) L(X, cmpeqss) \
    L(X, cmpltss) L(X, cmpless) L(X, cmpunordss) L(X, cmpneqss) L(X, cmpnltss) L(X, cmpnless) L(X, cmpordss) \
    L(X, rcpss) L(X, rsqrtss)
#define SSE_CONVERT(L, X) L(X, cvtss2sd, ss, sd) L(X, cvtsd2ss, sd, ss)

/* Without MXCSR: L(X, helper, mnemonic). */
#define SSE_INTEGER(L, X) \
    L(X, pabsb, pabsb) L(X, pabsd, pabsd) L(X, pabsw, pabsw) L(X, packssdw, packssdw) \
    L(X, packsswb, packsswb) L(X, packusdw, packusdw) L(X, packuswb, packuswb) L(X, paddb, paddb) \
    L(X, paddl, paddd) L(X, paddq, paddq) L(X, paddsb, paddsb) L(X, paddsw, paddsw) L(X, paddusb, paddusb) \
    L(X, paddusw, paddusw) L(X, paddw, paddw) L(X, pand, pand) L(X, pandn, pandn) L(X, pavgb, pavgb) \
    L(X, pavgw, pavgw) L(X, pcmpeqb, pcmpeqb) L(X, pcmpeql, pcmpeqd) L(X, pcmpeqq, pcmpeqq) \
    L(X, pcmpeqw, pcmpeqw) L(X, pcmpgtb, pcmpgtb) L(X, pcmpgtl, pcmpgtd) L(X, pcmpgtq, pcmpgtq) \
    L(X, pcmpgtw, pcmpgtw) L(X, phaddd, phaddd) L(X, phaddsw, phaddsw) L(X, phaddw, phaddw) \
    L(X, phminposuw, phminposuw) L(X, phsubd, phsubd) L(X, phsubsw, phsubsw) L(X, phsubw, phsubw) \
    L(X, pmaddubsw, pmaddubsw) L(X, pmaddwd, pmaddwd) L(X, pmaxsb, pmaxsb) L(X, pmaxsd, pmaxsd) \
    L(X, pmaxsw, pmaxsw) L(X, pmaxub, pmaxub) L(X, pmaxud, pmaxud) L(X, pmaxuw, pmaxuw) L(X, pminsb, pminsb) \
    L(X, pminsd, pminsd) L(X, pminsw, pminsw) L(X, pminub, pminub) L(X, pminud, pminud) L(X, pminuw, pminuw) \
    L(X, pmovsxbd, pmovsxbd) L(X, pmovsxbq, pmovsxbq) L(X, pmovsxbw, pmovsxbw) L(X, pmovsxdq, pmovsxdq) \
    L(X, pmovsxwd, pmovsxwd) L(X, pmovsxwq, pmovsxwq) L(X, pmovzxbd, pmovzxbd) L(X, pmovzxbq, pmovzxbq) \
    L(X, pmovzxbw, pmovzxbw) L(X, pmovzxdq, pmovzxdq) L(X, pmovzxwd, pmovzxwd) L(X, pmovzxwq, pmovzxwq) \
    L(X, pmuldq, pmuldq) L(X, pmulhrsw, pmulhrsw) L(X, pmulhuw, pmulhuw) L(X, pmulhw, pmulhw) \
    L(X, pmulld, pmulld) L(X, pmullw, pmullw) L(X, pmuludq, pmuludq) L(X, por, por) L(X, psadbw, psadbw) \
    L(X, pshufb, pshufb) L(X, psignb, psignb) L(X, psignd, psignd) L(X, psignw, psignw) L(X, pslld, pslld) \
    L(X, psllq, psllq) L(X, psllw, psllw) L(X, psrad, psrad) L(X, psraw, psraw) L(X, psrld, psrld) \
    L(X, psrlq, psrlq) L(X, psrlw, psrlw) L(X, psubb, psubb) L(X, psubl, psubd) L(X, psubq, psubq) \
    L(X, psubsb, psubsb) L(X, psubsw, psubsw) L(X, psubusb, psubusb) L(X, psubusw, psubusw) \
    L(X, psubw, psubw) L(X, punpckhbw, punpckhbw) L(X, punpckhdq, punpckhdq) L(X, punpckhqdq, punpckhqdq) \
    L(X, punpckhwd, punpckhwd) L(X, punpcklbw, punpcklbw) L(X, punpckldq, punpckldq) \
    L(X, punpcklqdq, punpcklqdq) L(X, punpcklwd, punpcklwd) L(X, pxor, pxor)

/* As SSE_INTEGER, where the host has AES. */
#define SSE_AES(L, X) \
    L(X, aesenc) L(X, aesenclast) L(X, aesdec) L(X, aesdeclast) L(X, aesimc)

/* L(X, helper, result type, the number's type): from an XMM register to a general one. */
#define SSE_TO_INTEGER(L, X) \
    L(X, cvtss2si, int32_t, ss) L(X, cvtsd2si, int32_t, sd) L(X, cvttss2si, int32_t, ss) L(X, cvttsd2si, int32_t, sd) \
    L(X, cvtss2sq, int64_t, ss) L(X, cvtsd2sq, int64_t, sd) L(X, cvttss2sq, int64_t, ss) L(X, cvttsd2sq, int64_t, sd)

/* L(X, helper, argument type, the number's type): from a general register to an XMM one. */
#define SSE_FROM_INTEGER(L, X) \
    L(X, cvtsi2ss, uint32_t, ss) L(X, cvtsi2sd, uint32_t, sd) L(X, cvtsq2ss, uint64_t, ss) L(X, cvtsq2sd, uint64_t, sd)

/* L(X, name): between MMX and XMM registers. */
#define SSE_MMX(L, X) \
    L(X, cvtpi2ps) L(X, cvtpi2pd) L(X, cvtps2pi) L(X, cvttps2pi) L(X, cvtpd2pi) L(X, cvttpd2pi)

/* L(X, name): comparisons that set the arithmetic flags. */
#define SSE_COMPARE(L, X) L(X, comiss, ss) L(X, comisd, sd) L(X, ucomiss, ss) L(X, ucomisd, sd)

/* L(X, name): with an immediate byte that holds a rounding mode. */
#define SSE_ROUND(L, X) L(X, roundps, whole) L(X, roundpd, whole) L(X, roundss, ss) L(X, roundsd, sd)

/* L(X, name): with an immediate byte that says what to do with strings. */
#define SSE_STRING(L, X) \
    L(X, pcmpestri) L(X, pcmpestrm) L(X, pcmpistri) L(X, pcmpistrm)

#define IMMEDIATES_16(X, high)                                                                                   \
    X(high + 0) X(high + 1) X(high + 2) X(high + 3) X(high + 4) X(high + 5) X(high + 6) X(high + 7)              \
    X(high + 8) X(high + 9) X(high + 10) X(high + 11) X(high + 12) X(high + 13) X(high + 14) X(high + 15)
#define IMMEDIATES_128(X)                                                                                        \
    IMMEDIATES_16(X, 0x00) IMMEDIATES_16(X, 0x10) IMMEDIATES_16(X, 0x20) IMMEDIATES_16(X, 0x30)                  \
    IMMEDIATES_16(X, 0x40) IMMEDIATES_16(X, 0x50) IMMEDIATES_16(X, 0x60) IMMEDIATES_16(X, 0x70)
#define IMMEDIATES_256(X)                                                                                        \
    IMMEDIATES_128(X) IMMEDIATES_16(X, 0x80) IMMEDIATES_16(X, 0x90) IMMEDIATES_16(X, 0xA0) IMMEDIATES_16(X, 0xB0) \
    IMMEDIATES_16(X, 0xC0) IMMEDIATES_16(X, 0xD0) IMMEDIATES_16(X, 0xE0) IMMEDIATES_16(X, 0xF0)

#endif
