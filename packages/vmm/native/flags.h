/* RFLAGS: QEMU keeps the arithmetic flags as the operands of the last operation. */

#ifndef NITRO_FLAGS_H
#define NITRO_FLAGS_H

#include "machine.h"

static inline uint64_t read_flags(env *registers)
{
    uint64_t arithmetic = original.helper_cc_compute_all_x86_64(
        ENV_CC_DST(registers), ENV_CC_SRC(registers), ENV_CC_SRC2(registers), (int)ENV_CC_OP(registers));
    return ENV_EFLAGS(registers) | arithmetic | (ENV_DF(registers) < 0 ? FLAG_DF : 0);
}

static inline void set_arithmetic_flags(env *registers, uint64_t flags)
{
    ENV_CC_SRC(registers) = flags & FLAGS_ARITHMETIC;
    ENV_CC_OP(registers) = CC_OP_EFLAGS;
}

static inline void write_flags(env *registers, uint64_t flags)
{
    set_arithmetic_flags(registers, flags);
    ENV_DF(registers) = flags & FLAG_DF ? -1 : 1;
    ENV_EFLAGS(registers) = (flags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF)) | 2;
}

/* As CMP does, by doing it. */
static inline void set_flags_of_subtraction(env *registers, uint32_t left, uint32_t right)
{
    uint16_t low; /* SF ZF AF PF CF in its upper byte */
    bool overflow;

    __asm__("cmpl %3, %2\n\tlahf" : "=a"(low), "=@cco"(overflow) : "r"(left), "r"(right));
    set_arithmetic_flags(registers, (uint64_t)(low >> 8) | (overflow ? FLAG_OF : 0));
}

#endif
