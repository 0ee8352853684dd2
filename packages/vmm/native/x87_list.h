/* The x87 instructions that the host's processor executes for the guest.
 *
 * Each list is L(X, ...) for each instruction; X is passed on. */

#ifndef NITRO_X87_LIST_H
#define NITRO_X87_LIST_H

/* L(X, helper, mnemonic): ST0 := ST0 operation FT0. */
#define X87_ARITHMETIC(L, X) \
    L(X, fadd_ST0_FT0, "fadd") L(X, fmul_ST0_FT0, "fmul") L(X, fsub_ST0_FT0, "fsub") \
    L(X, fsubr_ST0_FT0, "fsubr") L(X, fdiv_ST0_FT0, "fdiv") L(X, fdivr_ST0_FT0, "fdivr")

/* L(X, helper, mnemonic): STN := STN operation ST0. */
#define X87_ARITHMETIC_STN(L, X) \
    L(X, fadd_STN_ST0, "fadd") L(X, fmul_STN_ST0, "fmul") L(X, fsub_STN_ST0, "fsub") \
    L(X, fsubr_STN_ST0, "fsubr") L(X, fdiv_STN_ST0, "fdiv") L(X, fdivr_STN_ST0, "fdivr")

/* L(X, helper and mnemonic, condition bits that it defines): on ST0 alone. */
#define X87_UNARY(L, X) L(X, fsqrt, C1) L(X, frndint, C1) L(X, f2xm1, C1) L(X, fsin, C1 | C2) L(X, fcos, C1 | C2)

/* The same, with ST1 as a second operand. */
#define X87_BINARY(L, X) L(X, fscale, C1) L(X, fprem, ALL_CONDITIONS) L(X, fprem1, ALL_CONDITIONS)

/* L(X, helper and mnemonic): ST1 := a function of both, and ST0 is popped. */
#define X87_POPPING(L, X) L(X, fyl2x) L(X, fyl2xp1) L(X, fpatan)

/* L(X, helper and mnemonic, condition bits that it defines): ST0 becomes two. */
#define X87_PUSHING(L, X) L(X, fptan, C1 | C2) L(X, fsincos, C1 | C2) L(X, fxtract, C1)

/* L(X, helper, mnemonic, argument's type). */
#define X87_LOAD(L, X) L(X, fildl_ST0, "fildl", int32_t) L(X, fildll_ST0, "fildll", int64_t)

/* L(X, helper, mnemonic, result's type). */
#define X87_STORE(L, X) \
    L(X, fsts_ST0, "fstps", uint32_t) L(X, fstl_ST0, "fstpl", uint64_t) \
    L(X, fist_ST0, "fistps", int16_t) L(X, fistl_ST0, "fistpl", int32_t) L(X, fistll_ST0, "fistpll", int64_t) \
    L(X, fistt_ST0, "fisttps", int16_t) L(X, fisttl_ST0, "fisttpl", int32_t) \
    L(X, fisttll_ST0, "fisttpll", int64_t)

/* L(X, helper, mnemonic). */
#define X87_COMPARE(L, X) L(X, fcom_ST0_FT0, "fcom") L(X, fucom_ST0_FT0, "fucom")

/* L(X, helper, mnemonic): with the result in RFLAGS. */
#define X87_COMPARE_FLAGS(L, X) L(X, fcomi_ST0_FT0, "fcomi") L(X, fucomi_ST0_FT0, "fucomi")

/* L(X, mnemonic, which is the beginning of the helper's name): of ST0. */
#define X87_CONSTANTS(L, X) \
    L(X, fld1) L(X, fldz) L(X, fldpi) L(X, fldl2e) L(X, fldl2t) L(X, fldlg2) L(X, fldln2)
#define X87_SIGNS(L, X) L(X, fabs, CLEAR_SIGN) L(X, fchs, CHANGE_SIGN)

#endif
