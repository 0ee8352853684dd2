/* What moves numbers: loads, stores, constants, and from one register of the x87's stack to another.
 *
 * An access to memory may fault, and the instruction then begins anew, so it comes before every change. */

#include "x87.h"

static void load(env *registers, struct x87 value, uintptr_t return_address)
{
    ENV_FPUS(registers) &= ~C1;
    if (!is_empty(registers, -1)) {
        stack_fault(registers, true, return_address);
        value = INDEFINITE;
    }
    push(registers, value);
}

/* An integer, which always fits. */
#define LOAD(_, name, mnemonic, type)                                                                            \
    void helper_##name##_x86_64(env *registers, type value)                                                      \
    {                                                                                                            \
        struct x87 result;                                                                                       \
        __asm__(mnemonic " %1\n\tfstpt %0" : "=m"(result) : "m"(value));                                         \
        load(registers, result, RETURN_ADDRESS);                                                                 \
    }
X87_LOAD(LOAD, )

/* A number of a shorter format, by the bits of its exponent and fraction. NaNs stay what they are. */
static inline struct x87 converted(uint64_t bits, int exponent_bits, int fraction_bits, bool *denormal)
{
    int sign = bits >> (exponent_bits + fraction_bits) & 1, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    uint64_t significand = bits << (63 - fraction_bits) & INT64_MAX;

    *denormal = exponent == 0 && significand != 0;
    if (*denormal) {
        int shift = __builtin_clzll(significand);
        significand <<= shift;
        exponent = 0x3FFF - bias + 1 - shift;
    } else if (exponent != 0) {
        significand |= 1ull << 63;
        exponent = exponent == 2 * bias + 1 ? 0x7FFF : exponent + 0x3FFF - bias;
    }
    return (struct x87){significand, (uint16_t)(sign << 15 | exponent)};
}

#define SINGLE 8, 23
#define DOUBLE 11, 52
#define QUIET (1ull << 62)

/* A denormal number is loaded even if its exception is unmasked. */
static void load_number(env *registers, struct x87 value, bool denormal, uintptr_t return_address)
{
    bool signals = is_nan(value) && !(value.significand & QUIET);

    if ((denormal || signals) && is_empty(registers, -1)) {
        ENV_FPUS(registers) = (ENV_FPUS(registers) & ~C1) | (denormal ? DENORMAL : INVALID);
        if (signals)
            skip_if_unmasked(registers, INVALID, INVALID, return_address);
        value.significand |= signals ? QUIET : 0;
    }
    load(registers, value, return_address);
}

void helper_flds_ST0_x86_64(env *registers, uint32_t bits)
{
    bool denormal;
    struct x87 value = converted(bits, SINGLE, &denormal);

    load_number(registers, value, denormal, RETURN_ADDRESS);
}

void helper_fldl_ST0_x86_64(env *registers, uint64_t bits)
{
    bool denormal;
    struct x87 value = converted(bits, DOUBLE, &denormal);

    load_number(registers, value, denormal, RETURN_ADDRESS);
}

struct x87 load_ten_bytes(env *registers, uint64_t address, uintptr_t return_address)
{
    uint64_t significand = original.cpu_ldq_data_ra_x86_64(registers, address, return_address);
    uint32_t exponent = original.cpu_lduw_data_ra_x86_64(registers, address + 8, return_address);

    return (struct x87){significand, (uint16_t)exponent};
}

void store_ten_bytes(env *registers, uint64_t address, struct x87 value, uintptr_t return_address)
{
    original.cpu_stq_data_ra_x86_64(registers, address, value.significand, return_address);
    original.cpu_stw_data_ra_x86_64(registers, address + 8, value.exponent, return_address);
}

void helper_fldt_ST0_x86_64(env *registers, uint64_t address)
{
    load(registers, load_ten_bytes(registers, address, RETURN_ADDRESS), RETURN_ADDRESS);
}

void helper_fbld_ST0_x86_64(env *registers, uint64_t address)
{
    struct x87 value = load_ten_bytes(registers, address, RETURN_ADDRESS);

    __asm__("fbld %0\n\tfstpt %0" : "+m"(value));
    load(registers, value, RETURN_ADDRESS);
}

#define STORE(_, name, mnemonic, type)                                                                           \
    type helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 value = ST0;                                                                                  \
        type result;                                                                                             \
        uint16_t status;                                                                                         \
        bool empty = is_empty(registers, 0);                                                                     \
        if (empty) {                                                                                             \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            value = INDEFINITE;                                                                                  \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[value]\n\t" mnemonic " %[result]" STATUS                                        \
                         : [result] "=m"(result), [status] "=a"(status)                                          \
                         : [value] "m"(value));                                                                  \
        rest(registers, status);                                                                                 \
        if (!empty)                                                                                              \
            note_status(registers, status, C1);                                                                  \
        skip_if_unmasked(registers, status, EXCEPTIONS & ~PRECISION, RETURN_ADDRESS);                            \
        return result;                                                                                           \
    }
X87_STORE(STORE, )

/* Store ten bytes, for an empty register those of the indefinite. */
static void store(env *registers, uint64_t address, struct x87 value, uintptr_t return_address)
{
    bool empty = is_empty(registers, 0);

    if (empty && unmasked_of(registers, INVALID))
        stack_fault(registers, false, return_address);
    store_ten_bytes(registers, address, value, return_address);
    if (empty)
        stack_fault(registers, false, return_address);
}

void helper_fstt_ST0_x86_64(env *registers, uint64_t address)
{
    store(registers, address, is_empty(registers, 0) ? INDEFINITE : ST0, RETURN_ADDRESS);
    if (!is_empty(registers, 0))
        ENV_FPUS(registers) &= ~C1;
}

void helper_fbst_ST0_x86_64(env *registers, uint64_t address)
{
    struct x87 value = is_empty(registers, 0) ? INDEFINITE : ST0, packed = {0, 0};
    uint16_t status;

    begin(registers);
    __asm__ volatile("fldt %[value]\n\tfbstp %[packed]" STATUS
                     : [packed] "+m"(packed), [status] "=a"(status)
                     : [value] "m"(value));
    rest(registers, status);
    if (is_empty(registers, 0)) {
        store(registers, address, packed, RETURN_ADDRESS);
        return;
    }
    if (!unmasked_of(registers, status & ~PRECISION))
        store(registers, address, packed, RETURN_ADDRESS);
    note_status(registers, status, C1);
    skip_if_unmasked(registers, status, EXCEPTIONS & ~PRECISION, RETURN_ADDRESS);
}

/* QEMU pushes first, and then fills the new register from a constant or from another one. */
enum { NOT_PUSHED, PUSHED, PUSHED_ONTO_FULL };

void helper_fpush_x86_64(env *registers)
{
    JUST_PUSHED(registers) = is_empty(registers, -1) ? PUSHED : PUSHED_ONTO_FULL;
    push(registers, ST(-1));
}

/* Undo the push, so that `load` finds the stack as it was; tells what there was in its place. */
static int unpush(env *registers)
{
    int what = JUST_PUSHED(registers);

    JUST_PUSHED(registers) = NOT_PUSHED;
    ENV_FPTAGS(registers)[ENV_FPSTT(registers)] = what == PUSHED;
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) + 1) & 7;
    return what;
}

/* Constants are rounded as the guest wishes. */
#define CONSTANT(_, name)                                                                                        \
    void helper_##name##_ST0_x86_64(env *registers)                                                              \
    {                                                                                                            \
        struct x87 value;                                                                                        \
        unpush(registers);                                                                                       \
        begin(registers);                                                                                        \
        __asm__ volatile(#name "\n\tfstpt %0" : "=m"(value));                                                    \
        rest(registers, 0);                                                                                      \
        load(registers, value, RETURN_ADDRESS);                                                                  \
    }
X87_CONSTANTS(CONSTANT, )

/* FLD of a register, counted from the stack with the new one on it; or FCMOV, whose condition is met. */
void helper_fmov_ST0_STN_x86_64(env *registers, int index)
{
    if (JUST_PUSHED(registers) == NOT_PUSHED) {
        ST0 = ST(index);
        return;
    }
    unpush(registers);
    if (is_empty(registers, index - 1)) {
        stack_fault(registers, false, RETURN_ADDRESS);
        push(registers, INDEFINITE);
    } else {
        load(registers, ST(index - 1), RETURN_ADDRESS);
    }
}

/* Called before FCMOV (translate.c). */
void check_conditional_move(env *registers, int index, uintptr_t return_address)
{
    ENV_FPUS(registers) &= ~C1;
    if (!is_empty(registers, 0) && !is_empty(registers, index))
        return;
    stack_fault(registers, false, return_address);
    set(registers, 0, INDEFINITE);
    skip_instruction(registers, return_address);
}

/* FST and FSTP to a register. */
void helper_fmov_STN_ST0_x86_64(env *registers, int index)
{
    ENV_FPUS(registers) &= ~C1;
    if (is_empty(registers, 0)) {
        stack_fault(registers, false, RETURN_ADDRESS);
        set(registers, index, INDEFINITE);
    } else {
        set(registers, index, ST0);
    }
}

void helper_fxchg_ST0_STN_x86_64(env *registers, int index)
{
    ENV_FPUS(registers) &= ~C1;
    if (is_empty(registers, 0) || is_empty(registers, index))
        stack_fault(registers, false, RETURN_ADDRESS);
    struct x87 first = is_empty(registers, 0) ? INDEFINITE : ST0;
    struct x87 second = is_empty(registers, index) ? INDEFINITE : ST(index);
    set(registers, 0, second);
    set(registers, index, first);
}

#define SIGN(_, name, new_sign)                                                                                  \
    void helper_##name##_ST0_x86_64(env *registers)                                                              \
    {                                                                                                            \
        if (is_empty(registers, 0)) {                                                                            \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            set(registers, 0, INDEFINITE);                                                                       \
        } else {                                                                                                 \
            ENV_FPUS(registers) &= ~C1;                                                                          \
            ST0.exponent = new_sign(ST0.exponent);                                                               \
        }                                                                                                        \
    }
#define CLEAR_SIGN(exponent) ((exponent) & 0x7FFF)
#define CHANGE_SIGN(exponent) ((exponent) ^ 0x8000)
X87_SIGNS(SIGN, )

/* FT0 is the second operand of the next instruction. QEMU fills it before it calls the instruction, which may
 * then find that it has a reason not to look at it; so what it came from is noted, and no exception is raised. */

static void set_operand(env *registers, struct x87 value, bool empty, bool denormal)
{
    FT0 = value;
    FT0_EMPTY(registers) = empty;
    FT0_DENORMAL(registers) = denormal;
}

void helper_fmov_FT0_STN_x86_64(env *registers, int index)
{
    set_operand(registers, ST(index), is_empty(registers, index), false);
}

void helper_fldz_FT0_x86_64(env *registers)
{
    set_operand(registers, (struct x87){0, 0}, false, false);
}

void helper_fildl_FT0_x86_64(env *registers, int32_t integer)
{
    struct x87 value;

    __asm__("fildl %1\n\tfstpt %0" : "=m"(value) : "m"(integer));
    set_operand(registers, value, false, false);
}

/* Signalling NaNs signal when they are used. */
void helper_flds_FT0_x86_64(env *registers, uint32_t bits)
{
    bool denormal;
    struct x87 value = converted(bits, SINGLE, &denormal);

    set_operand(registers, value, false, denormal);
}

void helper_fldl_FT0_x86_64(env *registers, uint64_t bits)
{
    bool denormal;
    struct x87 value = converted(bits, DOUBLE, &denormal);

    set_operand(registers, value, false, denormal);
}

void helper_fincstp_x86_64(env *registers)
{
    ENV_FPUS(registers) &= ~C1;
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) + 1) & 7;
}

void helper_fdecstp_x86_64(env *registers)
{
    ENV_FPUS(registers) &= ~C1;
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) - 1) & 7;
}
