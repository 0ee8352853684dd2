/* PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM, by the host's own instructions.
 *
 * Their immediate byte is part of the instruction, so there is one instruction for each of its 128 meanings. */

#include "sse.h"
#include "sse_list.h"

#define REX_W 0x100u /* QEMU's mark for lengths of 64 bits */

struct flags {
    bool carry, zero, sign, overflow;
};

#define FLAGS_OUT "=@ccc"(flags.carry), "=@ccz"(flags.zero), "=@ccs"(flags.sign), "=@cco"(flags.overflow)

static void set_flags(env *registers, struct flags flags)
{
    ENV_CC_SRC(registers) = (uint64_t)flags.carry | (uint64_t)flags.zero << 6 | (uint64_t)flags.sign << 7
        | (uint64_t)flags.overflow << 11;
}

/* Only a length's absolute value counts, up to what a register holds, so 64 bits fit into 32. */
static int32_t length(uint64_t value, uint32_t control)
{
    int64_t wide = (int64_t)value;

    if (!(control & REX_W))
        return (int32_t)value;
    return wide > 16 ? 16 : wide < -16 ? -16 : (int32_t)wide;
}

#define CASE_pcmpestri(immediate)                                                                                \
    case immediate:                                                                                              \
        __asm__("pcmpestri %7, %6, %5"                                                                           \
                : FLAGS_OUT, "=c"(index)                                                                         \
                : "x"(left), "x"(right), "i"(immediate), "a"(left_length), "d"(right_length));                   \
        break;
#define CASE_pcmpistri(immediate)                                                                                \
    case immediate:                                                                                              \
        __asm__("pcmpistri %7, %6, %5" : FLAGS_OUT, "=c"(index) : "x"(left), "x"(right), "i"(immediate));        \
        break;
#define CASE_pcmpestrm(immediate)                                                                                \
    case immediate:                                                                                              \
        __asm__("pcmpestrm %7, %6, %5"                                                                           \
                : FLAGS_OUT, "=Yz"(mask)                                                                         \
                : "x"(left), "x"(right), "i"(immediate), "a"(left_length), "d"(right_length));                   \
        break;
#define CASE_pcmpistrm(immediate)                                                                                \
    case immediate:                                                                                              \
        __asm__("pcmpistrm %7, %6, %5" : FLAGS_OUT, "=Yz"(mask) : "x"(left), "x"(right), "i"(immediate));        \
        break;

#define COMPARE_STRINGS(_, name)                                                                                    \
    void helper_##name##_xmm_x86_64(env *registers, const void *first, const void *second, uint32_t control)     \
    {                                                                                                            \
        __m128i left = load_halves(first), right = load_halves(second);                                          \
        int32_t left_length = length(ENV_REGS(registers)[RAX], control);                                         \
        int32_t right_length = length(ENV_REGS(registers)[RDX], control);                                        \
        __m128i mask = left;                                                                                     \
        uint32_t index = 0;                                                                                      \
        struct flags flags = {0};                                                                                \
        (void)left_length, (void)right_length;                                                                   \
        switch (control & 0x7F) {                                                                                \
            IMMEDIATES_128(CASE_##name)                                                                          \
        }                                                                                                        \
        set_flags(registers, flags);                                                                             \
        STORE_##name;                                                                                            \
    }
#define STORE_INDEX (void)mask, ENV_REGS(registers)[RCX] = index
#define STORE_MASK (void)index, _mm_storeu_si128(ENV_XMM(registers, 0), mask)
#define STORE_pcmpestri STORE_INDEX
#define STORE_pcmpistri STORE_INDEX
#define STORE_pcmpestrm STORE_MASK
#define STORE_pcmpistrm STORE_MASK

SSE_STRING(COMPARE_STRINGS, )
