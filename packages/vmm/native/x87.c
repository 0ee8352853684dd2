/* The x87: exception flags, and arithmetic.
 *
 * QEMU's arithmetic gathers flags in softfloat's state, and nobody moves them to the status word. They have
 * the same places there, so they are moved whenever the guest could look. */

#include "sse.h"

#define FLAGS 0x3D /* softfloat has none for denormals */
#define EXCEPTIONS 0x3F
#define SUMMARY_AND_BUSY 0x8080

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

/* Arithmetic, by the host's own instructions: all 64 bits of the functions, rounding up in C1, denormals. */

#define ST(index) ENV_X87(registers, (ENV_FPSTT(registers) + (index)) & 7)
#define ST0 ST(0)
#define FT0 ENV_FT0(registers)
#define FLAG_INVALID 0x01
#define BEFORE_OPERATION 0x07 /* invalid, denormal, division by 0 */
#define STACK_FAULT 0x41
#define INDEFINITE ((struct x87){0xC000000000000000u, 0xFFFF})
#define C1 0x0200
#define C2 0x0400
#define ALL_CONDITIONS 0x4700
#define COMPARED 0x4500
#define CONTROL_RESET 0x037F
#define CONTROL_KEPT 0x0F00 /* precision and rounding; no exception is unmasked in the host */

/* Before an instruction: no flags, and the guest's rounding. */
static inline void begin(env *registers)
{
    uint16_t control = (ENV_FPUC(registers) & CONTROL_KEPT) | (CONTROL_RESET & ~CONTROL_KEPT);

    __asm__ volatile("fnclex");
    if (control != CONTROL_RESET)
        __asm__ volatile("fldcw %0" : : "m"(control));
}

/* After it: `status` is what it left, and `conditions` what of it the instruction defines. */
static inline void end(env *registers, uint16_t status, uint16_t conditions)
{
    static const uint16_t reset = CONTROL_RESET;

    if ((ENV_FPUC(registers) & CONTROL_KEPT) != (CONTROL_RESET & CONTROL_KEPT))
        __asm__ volatile("fldcw %0" : : "m"(reset));
    ENV_FPUS(registers) = (ENV_FPUS(registers) & ~conditions) | (status & conditions) | (status & EXCEPTIONS);
}

static inline bool is_empty(env *registers, int index)
{
    return ENV_FPTAGS(registers)[(ENV_FPSTT(registers) + (unsigned)index) & 7];
}

static inline void set_valid(env *registers, int index)
{
    ENV_FPTAGS(registers)[(ENV_FPSTT(registers) + (unsigned)index) & 7] = 0;
}

/* An operand that is empty, or a push onto a register that is not (SDM vol. 1, "Stack Overflow or Underflow
 * Exception"); says whether the result is to be the indefinite, because the exception is masked. */
static bool stack_fault(env *registers, bool overflow)
{
    ENV_FPUS(registers) = (ENV_FPUS(registers) & ~C1) | STACK_FAULT | (overflow ? C1 : 0);
    return ENV_FPUC(registers) & FLAG_INVALID;
}

/* What an unmasked exception keeps from being written, because it was raised before the operation. */
static inline bool is_refused_result(env *registers, uint16_t status)
{
    return status & ~ENV_FPUC(registers) & BEFORE_OPERATION;
}

static inline void push(env *registers)
{
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) - 1) & 7;
    ENV_FPTAGS(registers)[ENV_FPSTT(registers)] = 0;
}

static inline void pop(env *registers)
{
    ENV_FPTAGS(registers)[ENV_FPSTT(registers)] = 1;
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) + 1) & 7;
}

#define LOAD_TWO "fldt %[second]\n\tfldt %[first]\n\t"
#define STATUS "\n\tfnstsw %[status]\n\t"

#define OPERATE(mnemonic, index, source, source_empty)                                                           \
    struct x87 result = ST(index);                                                                               \
    uint16_t status;                                                                                             \
    if (is_empty(registers, index) || (source_empty)) {                                                          \
        if (stack_fault(registers, false)) {                                                                     \
            ST(index) = INDEFINITE;                                                                              \
            set_valid(registers, index);                                                                         \
        }                                                                                                        \
        return;                                                                                                  \
    }                                                                                                            \
    begin(registers);                                                                                            \
    __asm__ volatile(LOAD_TWO mnemonic " %%st(1), %%st" STATUS "fstpt %[first]\n\tfstp %%st(0)"                  \
                     : [first] "+m"(result), [status] "=a"(status)                                               \
                     : [second] "m"(source));                                                                    \
    end(registers, status, C1);                                                                                  \
    if (!is_refused_result(registers, status))                                                                   \
    ST(index) = result

#define ARITHMETIC(_, name, mnemonic, destination, source)                                                       \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        OPERATE(mnemonic, 0, FT0, FT0_EMPTY(registers));                                                         \
    }
X87_ARITHMETIC(ARITHMETIC, )

#define ARITHMETIC_STN(_, name, mnemonic)                                                                        \
    void helper_##name##_x86_64(env *registers, int index)                                                       \
    {                                                                                                            \
        OPERATE(mnemonic, index, ST0, is_empty(registers, 0));                                                   \
    }
X87_ARITHMETIC_STN(ARITHMETIC_STN, )

#define UNARY(_, name, conditions)                                                                               \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST0;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0)) {                                                                            \
            if (stack_fault(registers, false)) {                                                                 \
                ST0 = INDEFINITE;                                                                                \
                set_valid(registers, 0);                                                                         \
            }                                                                                                    \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[first]\n\t" #name STATUS "fstpt %[first]"                                       \
                         : [first] "+m"(result), [status] "=a"(status));                                         \
        end(registers, status, conditions);                                                                      \
        if (!is_refused_result(registers, status))                                                               \
            ST0 = result;                                                                                        \
    }
X87_UNARY(UNARY, )

#define BINARY(_, name, conditions)                                                                              \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST0;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || is_empty(registers, 1)) {                                                  \
            if (stack_fault(registers, false)) {                                                                 \
                ST0 = INDEFINITE;                                                                                \
                set_valid(registers, 0);                                                                         \
            }                                                                                                    \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO #name STATUS "fstpt %[first]\n\tfstp %%st(0)"                                  \
                         : [first] "+m"(result), [status] "=a"(status)                                           \
                         : [second] "m"(ST(1)));                                                                 \
        /* An invalid operation leaves the bits of the quotient alone. */                                        \
        end(registers, status, status & FLAG_INVALID ? (conditions) & (C1 | C2) : (conditions));                 \
        if (!is_refused_result(registers, status))                                                               \
            ST0 = result;                                                                                        \
    }
X87_BINARY(BINARY, )

#define POPPING(_, name)                                                                                         \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 result = ST(1);                                                                               \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || is_empty(registers, 1)) {                                                  \
            if (stack_fault(registers, false)) {                                                                 \
                ST(1) = INDEFINITE;                                                                              \
                set_valid(registers, 1);                                                                         \
                pop(registers);                                                                                  \
            }                                                                                                    \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO #name STATUS "fstpt %[second]"                                                 \
                         : [second] "+m"(result), [status] "=a"(status)                                          \
                         : [first] "m"(ST0));                                                                    \
        end(registers, status, C1);                                                                              \
        if (is_refused_result(registers, status))                                                                \
            return;                                                                                              \
        ST(1) = result;                                                                                          \
        pop(registers);                                                                                          \
    }
X87_POPPING(POPPING, )

/* An argument out of range (C2) stays, and nothing is pushed. */
#define PUSHING(_, name)                                                                                         \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        struct x87 upper, lower;                                                                                 \
        uint16_t status;                                                                                         \
        if (is_empty(registers, 0) || !is_empty(registers, -1)) {                                                \
            if (stack_fault(registers, !is_empty(registers, 0))) {                                               \
                ST0 = INDEFINITE;                                                                                \
                set_valid(registers, 0);                                                                         \
                push(registers);                                                                                 \
                ST0 = INDEFINITE;                                                                                \
            }                                                                                                    \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[first]\n\t" #name STATUS "fstpt %[upper]\n\ttestl %[range], %%eax\n\t"           \
                         "jnz 1f\n\tfstpt %[lower]\n1:"                                                          \
                         : [upper] "=m"(upper), [lower] "=m"(lower), [status] "=&a"(status)                      \
                         : [first] "m"(ST0), [range] "i"(PUSHING_CONDITIONS_##name & C2)                         \
                         : "cc");                                                                                \
        end(registers, status, PUSHING_CONDITIONS_##name);                                                       \
        if ((status & C2 & PUSHING_CONDITIONS_##name) || is_refused_result(registers, status))                   \
            return;                                                                                              \
        ST0 = lower;                                                                                             \
        push(registers);                                                                                         \
        ST0 = upper;                                                                                             \
    }
#define PUSHING_CONDITIONS_fptan (C1 | C2)
#define PUSHING_CONDITIONS_fsincos (C1 | C2)
#define PUSHING_CONDITIONS_fxtract C1
X87_PUSHING(PUSHING, )

#define LOAD(_, name, mnemonic, type, pushes)                                                                    \
    void helper_##name##_x86_64(env *registers, type value)                                                      \
    {                                                                                                            \
        struct x87 result;                                                                                       \
        uint16_t status;                                                                                         \
        if ((pushes) && !is_empty(registers, -1)) {                                                              \
            if (stack_fault(registers, true)) {                                                                  \
                push(registers);                                                                                 \
                ST0 = INDEFINITE;                                                                                \
            }                                                                                                    \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(mnemonic " %[value]" STATUS "fstpt %[result]"                                           \
                         : [result] "=m"(result), [status] "=a"(status)                                          \
                         : [value] "m"(value));                                                                  \
        end(registers, status, (pushes) ? C1 : 0);                                                               \
        if (pushes) {                                                                                            \
            push(registers);                                                                                     \
            ST0 = result;                                                                                        \
        } else {                                                                                                 \
            FT0 = result;                                                                                        \
            FT0_EMPTY(registers) = 0;                                                                            \
        }                                                                                                        \
    }
X87_LOAD(LOAD, )

#define STORE(_, name, mnemonic, type)                                                                           \
    type helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        static const struct x87 indefinite = INDEFINITE;                                                         \
        bool empty = is_empty(registers, 0);                                                                     \
        type result;                                                                                             \
        uint16_t status;                                                                                         \
        begin(registers);                                                                                        \
        __asm__ volatile("fldt %[first]\n\t" mnemonic " %[result]\n\tfnstsw %[status]"                           \
                         : [result] "=m"(result), [status] "=a"(status)                                          \
                         : [first] "m"(*(empty ? &indefinite : &ST0)));                                          \
        if (empty) {                                                                                             \
            end(registers, 0, 0);                                                                                \
            stack_fault(registers, false);                                                                       \
        } else {                                                                                                 \
            end(registers, status, C1);                                                                          \
        }                                                                                                        \
        return result;                                                                                           \
    }
X87_STORE(STORE, )

#define UNORDERED (is_empty(registers, 0) || FT0_EMPTY(registers))
#define COMPARE(_, name, mnemonic)                                                                               \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        uint16_t status;                                                                                         \
        if (UNORDERED) {                                                                                         \
            stack_fault(registers, false);                                                                       \
            ENV_FPUS(registers) |= COMPARED;                                                                     \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO mnemonic " %%st(1)" STATUS "fstp %%st(0)\n\tfstp %%st(0)"                      \
                         : [status] "=a"(status)                                                                 \
                         : [first] "m"(ST0), [second] "m"(FT0));                                                 \
        end(registers, status, COMPARED | C1);                                                                   \
    }
X87_COMPARE(COMPARE, )

#define ZERO_PARITY_CARRY 0x45u
#define COMPARE_FLAGS(_, name, mnemonic)                                                                         \
    void helper_##name##_x86_64(env *registers)                                                                  \
    {                                                                                                            \
        bool zero, parity, carry;                                                                                \
        uint16_t status;                                                                                         \
        if (UNORDERED) {                                                                                         \
            stack_fault(registers, false);                                                                       \
            ENV_CC_SRC(registers) = ZERO_PARITY_CARRY;                                                           \
            return;                                                                                              \
        }                                                                                                        \
        begin(registers);                                                                                        \
        __asm__ volatile(LOAD_TWO mnemonic " %%st(1), %%st" STATUS "fstp %%st(0)\n\tfstp %%st(0)"                \
                         : [status] "=a"(status), "=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry)                 \
                         : [first] "m"(ST0), [second] "m"(FT0));                                                 \
        end(registers, status, C1);                                                                              \
        ENV_CC_SRC(registers) = (uint64_t)zero << 6 | (uint64_t)parity << 2 | (uint64_t)carry;                   \
    }
X87_COMPARE_FLAGS(COMPARE_FLAGS, )

/* The second operand of the next instruction comes from the stack, or from an integer in memory. */
void helper_fmov_FT0_STN_x86_64(env *registers, int index)
{
    original.helper_fmov_FT0_STN_x86_64(registers, index);
    FT0_EMPTY(registers) = is_empty(registers, index);
}

void helper_fildl_FT0_x86_64(env *registers, int32_t value)
{
    original.helper_fildl_FT0_x86_64(registers, value);
    FT0_EMPTY(registers) = 0;
}

void helper_fldz_FT0_x86_64(env *registers)
{
    original.helper_fldz_FT0_x86_64(registers);
    FT0_EMPTY(registers) = 0;
}

/* QEMU pushes first, and then fills the new register. */
void helper_fpush_x86_64(env *registers)
{
    PUSHED_ONTO_FULL(registers) = !is_empty(registers, -1);
    original.helper_fpush_x86_64(registers);
}

/* Whether the push before was a fault, and its result is filled in. */
static bool fill_after_overflow(env *registers)
{
    bool overflow = PUSHED_ONTO_FULL(registers);

    PUSHED_ONTO_FULL(registers) = 0;
    if (!overflow)
        return false;
    stack_fault(registers, true);
    ST0 = INDEFINITE;
    return true;
}

/* Constants are rounded as the guest wishes. */
#define CONSTANT(_, name)                                                                                        \
    void helper_##name##_ST0_x86_64(env *registers)                                                              \
    {                                                                                                            \
        if (fill_after_overflow(registers))                                                                      \
            return;                                                                                              \
        begin(registers);                                                                                        \
        __asm__ volatile(#name "\n\tfstpt %0" : "=m"(ST0));                                                      \
        end(registers, 0, C1);                                                                                   \
    }
X87_CONSTANTS(CONSTANT, )

void helper_fmov_ST0_STN_x86_64(env *registers, int index)
{
    bool empty = is_empty(registers, index);

    if (fill_after_overflow(registers))
        return;
    original.helper_fmov_ST0_STN_x86_64(registers, index);
    ENV_FPUS(registers) &= ~C1;
    if (empty) {
        stack_fault(registers, false);
        ST0 = INDEFINITE;
    }
}

#define SIGN(_, name)                                                                                            \
    void helper_##name##_ST0_x86_64(env *registers)                                                              \
    {                                                                                                            \
        if (!is_empty(registers, 0)) {                                                                           \
            original.helper_##name##_ST0_x86_64(registers);                                                      \
            ENV_FPUS(registers) &= ~C1;                                                                          \
        } else if (stack_fault(registers, false)) {                                                              \
            ST0 = INDEFINITE;                                                                                    \
            set_valid(registers, 0);                                                                             \
        }                                                                                                        \
    }
X87_SIGNS(SIGN, )

#define CONTROL_WRITABLE 0x1F3F
#define CONTROL_FIXED 0x0040

void helper_fldcw_x86_64(env *registers, uint32_t value)
{
    original.helper_fldcw_x86_64(registers, (value & CONTROL_WRITABLE) | CONTROL_FIXED);
}

void helper_emms_x86_64(env *registers)
{
    ENV_FPSTT(registers) = 0;
    original.helper_emms_x86_64(registers);
}
