/* SSE to SSE4.2, by the host's own instructions.
 *
 * The host is an x86-64 processor itself, so its instructions have the guest's semantics to the last bit: the
 * choice among NaNs, rounding, denormals, flags, string compares. They are written in assembly, because a
 * compiler may swap the operands of an addition, which decides between two NaNs.
 *
 * MXCSR's flags gather in the host's register (sse.h). A guest that unmasks an exception gets #XM at the
 * instruction that raises it, before the result is written (SDM vol. 1, "SIMD Floating-Point Exceptions"). */

#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>

#include "sse.h"
#include "sse_list.h"

#define unlikely(condition) __builtin_expect(condition, 0)

#define CR4_OSXMMEXCPT (1u << 10)
#define SIMD_EXCEPTION 19
#define ZERO_FLAG 0x40u
#define PARITY_FLAG 0x04u
#define CARRY_FLAG 0x01u

static bool host_has_aes, host_has_pclmul;

/* Whether the host has the instructions that this file needs; sets what it knows of others. */
bool probe_sse(void)
{
    __builtin_cpu_init();
    host_has_aes = __builtin_cpu_supports("aes");
    host_has_pclmul = __builtin_cpu_supports("pclmul");
    return __builtin_cpu_supports("sse4.2");
}

#define get load_halves

static inline void put(void *place, __m128i value)
{
    _mm_storeu_si128(place, value);
}

/* Numbers by their size: both ends of an operation on the lowest one leave the rest of the register alone. */
#define get_whole get
#define put_whole put
#define get_sd(place) _mm_castpd_si128(_mm_load_sd(place))
#define put_sd(place, value) _mm_store_sd(place, _mm_castsi128_pd(value))
#define get_ss(place) _mm_castps_si128(_mm_load_ss(place))
#define put_ss(place, value) _mm_store_ss(place, _mm_castsi128_ps(value))

static inline bool has_unmasked(env *registers)
{
    return unlikely((ENV_MXCSR(registers) & MXCSR_MASKS) != MXCSR_MASKS);
}

/* While the guest has an exception unmasked, it is unmasked in the host, too, for one instruction: which flags
 * are set then, and whether a tiny result that is exact traps, differs from what the masked instruction tells.
 * The host's trap is a signal. Its handler notes the flags, masks all, and has the instruction go on. */

static __thread __attribute__((tls_model("initial-exec"))) struct {
    volatile bool armed;
    volatile uint32_t trapped; /* MXCSR at the trap, or 0 */
} unmasked;

static struct sigaction others; /* what there was before; threads that race to note it note the same */

static void on_trap(int number, siginfo_t *info, void *context)
{
    struct _libc_fpstate *state = ((ucontext_t *)context)->uc_mcontext.fpregs;

    if (unmasked.armed) {
        unmasked.trapped = state->mxcsr;
        state->mxcsr |= MXCSR_MASKS;
    } else if (others.sa_flags & SA_SIGINFO) {
        others.sa_sigaction(number, info, context);
    } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
        others.sa_handler(number);
    } else {
        sigaction(number, &others, NULL); /* the instruction runs again, and has its due */
    }
}

/* The handler stays: other threads may be here, too. It is set each time, because somebody may have set another
 * one meanwhile. */
static __attribute__((noinline)) void unmask(env *registers)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO}, before;

    collect_mxcsr(registers);
    sigaction(SIGFPE, &action, &before);
    if (!(before.sa_flags & SA_SIGINFO) || before.sa_sigaction != on_trap)
        others = before;
    unmasked.trapped = 0;
    unmasked.armed = true;
    _mm_setcsr(ENV_MXCSR(registers) & ~MXCSR_FLAGS & ~MXCSR_RESERVED);
}

static __attribute__((noinline)) void raise_unmasked(env *registers, uintptr_t return_address)
{
    uint32_t flags = unmasked.trapped ? unmasked.trapped : _mm_getcsr();

    unmasked.armed = false;
    ENV_MXCSR(registers) |= flags & MXCSR_FLAGS;
    enter_mxcsr(registers);
    if (unmasked.trapped) {
        int vector = ENV_CR(registers, 4) & CR4_OSXMMEXCPT ? SIMD_EXCEPTION : INVALID_OPCODE;
        raise_exception(registers, vector, 0, return_address);
    }
}

#define BEGIN(registers)                                                                                         \
    if (has_unmasked(registers))                                                                                 \
    unmask(registers)
#define END(registers)                                                                                           \
    if (has_unmasked(registers))                                                                                 \
    raise_unmasked(registers, RETURN_ADDRESS)

/* The two ways are apart, so that the usual one saves no registers. */
#define OPERATION(name, from, to)                                                                                \
    static __attribute__((noinline)) void unmasked_##name(env *registers, void *destination, const void *source, \
                                                          uintptr_t return_address)                              \
    {                                                                                                            \
        __m128i result = get_##to(destination);                                                                  \
        unmask(registers);                                                                                       \
        __asm__ volatile(#name " %1, %0" : "+x"(result) : "x"(get_##from(source)));                              \
        raise_unmasked(registers, return_address);                                                               \
        put_##to(destination, result);                                                                           \
    }                                                                                                            \
    void helper_##name##_x86_64(env *registers, void *destination, const void *source)                           \
    {                                                                                                            \
        if (has_unmasked(registers)) {                                                                           \
            unmasked_##name(registers, destination, source, RETURN_ADDRESS);                                     \
            return;                                                                                              \
        }                                                                                                        \
        __m128i result = get_##to(destination);                                                                  \
        __asm__ volatile(#name " %1, %0" : "+x"(result) : "x"(get_##from(source)));                              \
        put_##to(destination, result);                                                                           \
    }
#define FLOAT(_, name) OPERATION(name, whole, whole)
#define DOUBLE(_, name) OPERATION(name, sd, sd)
#define SINGLE(_, name) OPERATION(name, ss, ss)
#define CONVERT(_, name, from, to) OPERATION(name, from, to)
SSE_FLOAT(FLOAT, )
SSE_DOUBLE(DOUBLE, )
SSE_SINGLE(SINGLE, )
SSE_CONVERT(CONVERT, )

#define INTEGER(_, name, mnemonic)                                                                                  \
    void helper_##name##_xmm_x86_64(env *registers, void *destination, const void *source)                       \
    {                                                                                                            \
        __m128i result = get(destination);                                                                       \
        (void)registers;                                                                                         \
        __asm__(#mnemonic " %1, %0" : "+x"(result) : "x"(get(source)));                                          \
        put(destination, result);                                                                                \
    }
SSE_INTEGER(INTEGER, )

#define AES(_, name)                                                                                                \
    void helper_##name##_xmm_x86_64(env *registers, void *destination, const void *source)                       \
    {                                                                                                            \
        if (!host_has_aes) {                                                                                     \
            original.helper_##name##_xmm_x86_64(registers, destination, source);                                 \
            return;                                                                                              \
        }                                                                                                        \
        __m128i result = get(destination);                                                                       \
        __asm__(#name " %1, %0" : "+x"(result) : "x"(get(source)));                                              \
        put(destination, result);                                                                                \
    }
SSE_AES(AES, )

void helper_pclmulqdq_xmm_x86_64(env *registers, void *destination, const void *source, uint32_t immediate)
{
    __m128i result = get(destination);

    if (!host_has_pclmul) {
        original.helper_pclmulqdq_xmm_x86_64(registers, destination, source, immediate);
        return;
    }
    switch (immediate & 0x11) {
#define CASE(value)                                                                                              \
    case value: __asm__("pclmulqdq $" #value ", %1, %0" : "+x"(result) : "x"(get(source))); break;
        CASE(0x00) CASE(0x01) CASE(0x10) CASE(0x11)
#undef CASE
    }
    put(destination, result);
}

uint64_t helper_crc32_x86_64(uint32_t crc, uint64_t message, uint32_t bits)
{
    uint64_t result = crc;

    switch (bits) {
    case 8: __asm__("crc32b %b1, %k0" : "+r"(result) : "r"(message)); break;
    case 16: __asm__("crc32w %w1, %k0" : "+r"(result) : "r"(message)); break;
    case 32: __asm__("crc32l %k1, %k0" : "+r"(result) : "r"(message)); break;
    default: __asm__("crc32q %1, %0" : "+r"(result) : "r"(message)); break;
    }
    return result;
}

/* Between MMX and XMM registers: by the forms that leave MMX alone, because its registers are the x87's. */
#define FROM_MMX(name, mnemonic, whole)                                                                          \
    void helper_##name##_x86_64(env *registers, void *destination, const void *source)                           \
    {                                                                                                            \
        __m128i result;                                                                                          \
        BEGIN(registers);                                                                                        \
        __asm__ volatile(mnemonic " %1, %0" : "=x"(result) : "x"(_mm_loadl_epi64(source)));                      \
        END(registers);                                                                                          \
        if (whole)                                                                                               \
            put(destination, result);                                                                            \
        else                                                                                                     \
            _mm_storel_epi64(destination, result);                                                               \
    }
FROM_MMX(cvtpi2ps, "cvtdq2ps", false)
FROM_MMX(cvtpi2pd, "cvtdq2pd", true)

#define TO_MMX(name, mnemonic, load)                                                                             \
    void helper_##name##_x86_64(env *registers, void *destination, const void *source)                           \
    {                                                                                                            \
        __m128i result;                                                                                          \
        BEGIN(registers);                                                                                        \
        __asm__ volatile(mnemonic " %1, %0" : "=x"(result) : "x"(load(source)));                                 \
        END(registers);                                                                                          \
        _mm_storel_epi64(destination, result);                                                                   \
    }
TO_MMX(cvtps2pi, "cvtps2dq", _mm_loadl_epi64)
TO_MMX(cvttps2pi, "cvttps2dq", _mm_loadl_epi64)
TO_MMX(cvtpd2pi, "cvtpd2dq", get)
TO_MMX(cvttpd2pi, "cvttpd2dq", get)

#define FROM_INTEGER(_, name, type, number)                                                                      \
    static __attribute__((noinline)) void unmasked_##name(env *registers, void *destination, type value,         \
                                                          uintptr_t return_address)                              \
    {                                                                                                            \
        __m128i result = _mm_setzero_si128();                                                                    \
        unmask(registers);                                                                                       \
        __asm__ volatile("cvtsi2" #number " %1, %0" : "+x"(result) : "r"(value));                                \
        raise_unmasked(registers, return_address);                                                               \
        put_##number(destination, result);                                                                       \
    }                                                                                                            \
    void helper_##name##_x86_64(env *registers, void *destination, type value)                                   \
    {                                                                                                            \
        if (has_unmasked(registers)) {                                                                           \
            unmasked_##name(registers, destination, value, RETURN_ADDRESS);                                      \
            return;                                                                                              \
        }                                                                                                        \
        __m128i result = _mm_setzero_si128();                                                                    \
        __asm__ volatile("cvtsi2" #number " %1, %0" : "+x"(result) : "r"(value));                                \
        put_##number(destination, result);                                                                       \
    }
SSE_FROM_INTEGER(FROM_INTEGER, )

#define MNEMONIC_cvtss2sq "cvtss2si"
#define MNEMONIC_cvtsd2sq "cvtsd2si"
#define MNEMONIC_cvttss2sq "cvttss2si"
#define MNEMONIC_cvttsd2sq "cvttsd2si"
#define MNEMONIC_cvtss2si "cvtss2si"
#define MNEMONIC_cvtsd2si "cvtsd2si"
#define MNEMONIC_cvttss2si "cvttss2si"
#define MNEMONIC_cvttsd2si "cvttsd2si"
#define TO_INTEGER(_, name, type, number)                                                                        \
    type helper_##name##_x86_64(env *registers, const void *source)                                              \
    {                                                                                                            \
        type result;                                                                                             \
        BEGIN(registers);                                                                                        \
        __asm__ volatile(MNEMONIC_##name " %1, %0" : "=r"(result) : "x"(get_##number(source)));                  \
        END(registers);                                                                                          \
        return result;                                                                                           \
    }
SSE_TO_INTEGER(TO_INTEGER, )

#define COMPARE(_, name, number)                                                                                            \
    void helper_##name##_x86_64(env *registers, const void *left, const void *right)                             \
    {                                                                                                            \
        bool zero, parity, carry;                                                                                \
        BEGIN(registers);                                                                                        \
        __asm__ volatile(#name " %4, %3"                                                                         \
                         : "=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry)                                        \
                         : "x"(get_##number(left)), "x"(get_##number(right)));                                                     \
        END(registers);                                                                                          \
        ENV_CC_SRC(registers) = (zero ? ZERO_FLAG : 0) | (parity ? PARITY_FLAG : 0) | (carry ? CARRY_FLAG : 0);   \
    }
SSE_COMPARE(COMPARE, )

#define ROUND_CASE(mnemonic, immediate)                                                                          \
    case immediate:                                                                                              \
        __asm__ volatile(mnemonic " %2, %1, %0" : "+x"(result) : "x"(operand), "i"(immediate));                  \
        break;
#define ROUND_CASE_roundps(immediate) ROUND_CASE("roundps", immediate)
#define ROUND_CASE_roundpd(immediate) ROUND_CASE("roundpd", immediate)
#define ROUND_CASE_roundss(immediate) ROUND_CASE("roundss", immediate)
#define ROUND_CASE_roundsd(immediate) ROUND_CASE("roundsd", immediate)
#define ROUND(_, name, number)                                                                                   \
    void helper_##name##_xmm_x86_64(env *registers, void *destination, const void *source, uint32_t immediate)   \
    {                                                                                                            \
        __m128i result = get_##number(destination), operand = get_##number(source);                              \
        BEGIN(registers);                                                                                        \
        switch (immediate & 15) {                                                                                \
            IMMEDIATES_16(ROUND_CASE_##name, 0)                                                                  \
        }                                                                                                        \
        END(registers);                                                                                          \
        put_##number(destination, result);                                                                       \
    }
SSE_ROUND(ROUND, )

#define DOT_CASE(mnemonic, immediate) ROUND_CASE(mnemonic, immediate)
#define DOT_CASE_dpps(immediate) DOT_CASE("dpps", immediate)
#define DOT_CASE_dppd(immediate) DOT_CASE("dppd", immediate)
#define DOT(name)                                                                                                \
    void helper_##name##_xmm_x86_64(env *registers, void *destination, const void *source, uint32_t immediate)   \
    {                                                                                                            \
        __m128i result = get(destination), operand = get(source);                                                \
        BEGIN(registers);                                                                                        \
        switch (immediate & 255) {                                                                               \
            IMMEDIATES_256(DOT_CASE_##name)                                                                      \
        }                                                                                                        \
        END(registers);                                                                                          \
        put(destination, result);                                                                                \
    }
DOT(dpps)
DOT(dppd)

/* MXCSR. */

void update_mxcsr_status_x86_64(env *registers)
{
    /* Called after `ENV_MXCSR` was loaded: by LDMXCSR, FXRSTOR and a reset. QEMU's also changes how the x87
     * treats denormals, which is wrong. */
    struct machine *machine = machine_of(registers);

    if (machine == NULL)
        original.update_mxcsr_status_x86_64(registers);
    else if (machine->running)
        enter_mxcsr(registers);
}

void helper_ldmxcsr_x86_64(env *registers, uint32_t value)
{
    if (machine_of(registers) != NULL && (value & MXCSR_RESERVED))
        raise_exception(registers, GENERAL_PROTECTION, 0, RETURN_ADDRESS);
    original.helper_ldmxcsr_x86_64(registers, value);
}
