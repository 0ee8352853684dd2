/* The x87's arithmetic and comparisons, by the host's own instructions: all 64 bits, NaNs, denormals, flags. */

#include "flags.h"
#include "x87.h"

/* A number in memory that is denormal there has become a normal one in FT0. The exception comes after those of
 * an invalid operation and of a division by zero, and not with NaNs. */
static inline uint16_t with_denormal(env *registers, uint16_t status, struct x87 first)
{
    if (__builtin_expect(!FT0_DENORMAL(registers), 1) || is_nan(first) || (status & (INVALID | DIVISION_BY_ZERO)))
        return status;
    if (ENV_FPUC(registers) & DENORMAL)
        return status | DENORMAL;
    return (status & ~(EXCEPTIONS | C1)) | DENORMAL; /* the operation does not take place */
}

/* Then the flags must be the instruction's own. */
static inline void begin_with_operand(env *registers)
{
    if (__builtin_expect(FT0_DENORMAL(registers), 0))
        forget_flags();
    begin(registers);
}

#define OPERATE(mnemonic, index, source, source_empty, begin_with, with_denormal)                                \
    struct x87 result = ST(index);                                                                               \
    uint16_t status;                                                                                             \
    if (is_empty(registers, index) || (source_empty)) {                                                          \
        stack_fault(registers, false, RETURN_ADDRESS);                                                           \
        set(registers, index, INDEFINITE);                                                                       \
        return;                                                                                                  \
    }                                                                                                            \
    begin_with(registers);                                                                                       \
    __asm__ volatile(LOAD_TWO mnemonic " %%st(1), %%st" STATUS "fstpt %[first]\n\tfstp %%st(0)"                  \
                     : [first] "+m"(result), [status] "=a"(status)                                               \
                     : [second] "m"(source));                                                                    \
    rest(registers, status);                                                                                     \
    status = with_denormal(registers, status, ST(index));                                                        \
    note_status(registers, status, C1);                                                                          \
    skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                       \
    ST(index) = result
#define NO_DENORMAL(registers, status, first) (status)

#define ARITHMETIC(_, name, mnemonic)                                                                            \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        OPERATE(mnemonic, 0, FT0, FT0_EMPTY(registers), begin_with_operand, with_denormal);                      \
    }
X87_ARITHMETIC(ARITHMETIC, )

#define ARITHMETIC_STN(_, name, mnemonic)                                                                        \
    void helper_##name##_x86_64(env *registers, int index)                                                       \
    {                                                                                                            \
        OPERATE(mnemonic, index, ST0, is_empty(registers, 0), begin, NO_DENORMAL);                               \
    }
X87_ARITHMETIC_STN(ARITHMETIC_STN, )

#define UNARY(_, name, conditions)                                                                               \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST0;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0)) {                                                                            \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            set(registers, 0, INDEFINITE);                                                                       \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[first]\n\t" #name STATUS "fstpt %[first]"                                       \
                         : [first] "+m"(result), [status] "=a"(status));                                         \
        end(registers, status, conditions);                                                                      \
        skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                   \
        ST0 = result;                                                                                            \
    }
X87_UNARY(UNARY, )

/* Without a quotient its bits stay as they were. */
static uint16_t defined(env *registers, uint16_t status, struct x87 result, uint16_t conditions)
{
    bool no_quotient = is_nan(result) || (unmasked_of(registers, status) & BEFORE_OPERATION);

    return no_quotient ? conditions & (C1 | C2) : conditions;
}

#define BINARY(_, name, conditions)                                                                              \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST0;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || is_empty(registers, 1)) {                                                  \
            ENV_FPUS(registers) &= ~((conditions) & C2);                                                         \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            set(registers, 0, INDEFINITE);                                                                       \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO #name STATUS "fstpt %[first]\n\tfstp %%st(0)"                                  \
                         : [first] "+m"(result), [status] "=a"(status)                                           \
                         : [second] "m"(ST(1)));                                                                 \
        end(registers, status, defined(registers, status, result, conditions));                                  \
        skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                   \
        ST0 = result;                                                                                            \
    }
X87_BINARY(BINARY, )

#define POPPING(_, name)                                                                                         \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST(1);                                                                               \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || is_empty(registers, 1)) {                                                  \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            set(registers, 1, INDEFINITE);                                                                       \
            pop(registers);                                                                                      \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO #name STATUS "fstpt %[second]"                                                 \
                         : [second] "+m"(result), [status] "=a"(status)                                          \
                         : [first] "m"(ST0));                                                                    \
        end(registers, status, C1);                                                                              \
        skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                   \
        ST(1) = result;                                                                                          \
        pop(registers);                                                                                          \
    }
X87_POPPING(POPPING, )

/* An argument out of range (C2) stays, and nothing is pushed. */
#define PUSHING(_, name, conditions)                                                                             \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 upper, lower;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || !is_empty(registers, -1)) {                                                \
            stack_fault(registers, !is_empty(registers, 0), RETURN_ADDRESS);                                     \
            set(registers, 0, INDEFINITE);                                                                       \
            push(registers, INDEFINITE);                                                                         \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[first]\n\t" #name STATUS "fstpt %[upper]\n\ttestl %[range], %%eax\n\t"          \
                         "jnz 1f\n\tfstpt %[lower]\n1:"                                                          \
                         : [upper] "=m"(upper), [lower] "=m"(lower), [status] "=&a"(status)                      \
                         : [first] "m"(ST0), [range] "i"((conditions) & C2));                                    \
        end(registers, status, conditions);                                                                      \
        if (status & C2 & (conditions))                                                                          \
            return;                                                                                              \
        skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                   \
        ST0 = lower;                                                                                             \
        push(registers, upper);                                                                                  \
    }
X87_PUSHING(PUSHING, )

/* Comparisons have their result even if an exception is unmasked, although the SDM says that they have not. */

#define UNORDERED (is_empty(registers, 0) || FT0_EMPTY(registers))

#define COMPARE(_, name, mnemonic)                                                                               \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        uint16_t status;                                                                                         \
        if (UNORDERED) {                                                                                         \
            ENV_FPUS(registers) |= COMPARED;                                                                     \
            stack_fault(registers, false, RETURN_ADDRESS);                                                       \
            return;                                                                                              \
        }                                                                                                        \
        begin_with_operand(registers);                                                                           \
        __asm__ volatile(LOAD_TWO mnemonic " %%st(1)" STATUS "fstp %%st(0)\n\tfstp %%st(0)"                      \
                         : [status] "=a"(status)                                                                 \
                         : [first] "m"(ST0), [second] "m"(FT0));                                                 \
        rest(registers, status);                                                                                 \
        status = with_denormal(registers, status, ST0);                                                          \
        note_status(registers, status, COMPARED | C1);                                                           \
        skip_if_unmasked(registers, status, BEFORE_OPERATION, RETURN_ADDRESS);                                   \
    }
X87_COMPARE(COMPARE, )

#define ZERO_PARITY_CARRY 0x45u

static _Noreturn void skip_with_flags(env *registers, uint64_t flags, uintptr_t return_address)
{
    original.cpu_restore_state_x86_64(CPU_OF(registers), return_address, true);
    set_arithmetic_flags(registers, flags);
    skip_instruction(registers, 0);
}

#define COMPARE_FLAGS(_, name, mnemonic)                                                                         \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        bool zero, parity, carry;                                                                                \
        uint16_t status;                                                                                         \
        if (UNORDERED) {                                                                                         \
            ENV_FPUS(registers) = (ENV_FPUS(registers) & ~C1) | STACK_FAULT;                                     \
            if (unmasked_of(registers, INVALID))                                                                 \
                skip_with_flags(registers, ZERO_PARITY_CARRY, RETURN_ADDRESS);                                   \
            ENV_CC_SRC(registers) = ZERO_PARITY_CARRY;                                                           \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO mnemonic " %%st(1), %%st\n\tsetz %[zero]\n\tsetp %[parity]\n\tsetc %[carry]"   \
                         STATUS "fstp %%st(0)\n\tfstp %%st(0)"                                                   \
                         : [status] "=&a"(status), [zero] "=&d"(zero), [parity] "=&c"(parity), [carry] "=&r"(carry)\
                         : [first] "m"(ST0), [second] "m"(FT0));                                                 \
        end(registers, status, C1);                                                                              \
        uint64_t flags = (uint64_t)zero << 6 | (uint64_t)parity << 2 | (uint64_t)carry;                          \
        if (unmasked_of(registers, status) & BEFORE_OPERATION)                                                   \
            skip_with_flags(registers, flags, RETURN_ADDRESS);                                                   \
        ENV_CC_SRC(registers) = flags;                                                                           \
    }
X87_COMPARE_FLAGS(COMPARE_FLAGS, )

#define CLASSES_EMPTY (C3 | C0)

void helper_fxam_ST0_x86_64(env *registers)
{
    uint16_t status = CLASSES_EMPTY | (ST0.exponent >> 15 ? C1 : 0);

    if (!is_empty(registers, 0))
        __asm__ volatile("fldt %[first]\n\tfxam" STATUS "fstp %%st(0)" : [status] "=a"(status) : [first] "m"(ST0));
    note_status(registers, status & ALL_CONDITIONS, ALL_CONDITIONS);
}
