/* The x87's exception flags, and its stores of integers.
 *
 * QEMU's arithmetic gathers flags in softfloat's state, and nobody moves them to the status word. They have
 * the same places there, so they are moved whenever the guest could look. */

#include "sse.h"

#define FLAG_INVALID 0x01
#define FLAGS 0x3D /* softfloat has none for denormals */
#define EXCEPTIONS 0x3F
#define SUMMARY_AND_BUSY 0x8080
#define INDEFINITE_16 (-0x8000)
#define INDEFINITE_32 INT32_MIN
#define INDEFINITE_64 INT64_MIN

static void collect_flags(env *registers)
{
    uint16_t status = ENV_FPUS(registers) | (ENV_FP_FLAGS(registers) & FLAGS);

    if (machine_of(registers) == NULL)
        return;
    if (status & ~ENV_FPUC(registers) & EXCEPTIONS)
        status |= SUMMARY_AND_BUSY;
    ENV_FPUS(registers) = status;
    ENV_FP_FLAGS(registers) = 0;
}

/* Jumps and no calls: QEMU's functions find the guest's instruction by their own return address. What loads a
 * new status word first collects, too, so that no old flag turns up later. */
uint32_t helper_fnstsw_x86_64(env *registers)
{
    collect_flags(registers);
    return original.helper_fnstsw_x86_64(registers);
}

#define COLLECT(name)                                                                                            \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        collect_flags(registers);                                                                                \
        original.helper_##name##_x86_64(registers);                                                              \
    }
COLLECT(fclex)
COLLECT(fninit)
COLLECT(fwait)

#define COLLECT_TO_MEMORY(name)                                                                                  \
    void helper_##name##_x86_64(env *registers, uint64_t address, int data32)                                    \
    {                                                                                                            \
        collect_flags(registers);                                                                                \
        original.helper_##name##_x86_64(registers, address, data32);                                             \
    }
COLLECT_TO_MEMORY(fstenv)
COLLECT_TO_MEMORY(fldenv)
COLLECT_TO_MEMORY(fsave)
COLLECT_TO_MEMORY(frstor)

void helper_fxsave_x86_64(env *registers, uint64_t address)
{
    collect_flags(registers);
    if (machine_of(registers) != NULL)
        collect_mxcsr(registers);
    original.helper_fxsave_x86_64(registers, address);
}

void helper_fxrstor_x86_64(env *registers, uint64_t address)
{
    collect_flags(registers);
    original.helper_fxrstor_x86_64(registers, address);
}

/* Call a conversion with no flags set; returns those that it raises, and adds them to the old ones. */
#define CONVERT(result, call)                                                                                    \
    uint8_t before = ENV_FP_FLAGS(registers);                                                                    \
    ENV_FP_FLAGS(registers) = 0;                                                                                 \
    result = call;                                                                                               \
    uint8_t raised = ENV_FP_FLAGS(registers);                                                                    \
    ENV_FP_FLAGS(registers) = before | raised

/* 16 bits come from a conversion to 32. */
static int32_t narrow(env *registers, int32_t (*convert)(env *))
{
    CONVERT(int32_t value, convert(registers));

    if (value == (int16_t)value && !(raised & FLAG_INVALID))
        return value;
    ENV_FP_FLAGS(registers) = before | FLAG_INVALID;
    return INDEFINITE_16;
}

int32_t helper_fist_ST0_x86_64(env *registers)
{
    return narrow(registers, original.helper_fistl_ST0_x86_64);
}

int32_t helper_fistt_ST0_x86_64(env *registers)
{
    return narrow(registers, original.helper_fisttl_ST0_x86_64);
}

int32_t helper_fisttl_ST0_x86_64(env *registers)
{
    CONVERT(int32_t value, original.helper_fisttl_ST0_x86_64(registers));
    return raised & FLAG_INVALID ? INDEFINITE_32 : value;
}

int64_t helper_fisttll_ST0_x86_64(env *registers)
{
    CONVERT(int64_t value, original.helper_fisttll_ST0_x86_64(registers));
    return raised & FLAG_INVALID ? INDEFINITE_64 : value;
}
