/* The x87's state, and how one of its instructions runs on the host's.
 *
 * The host's x87 is at rest between two instructions of the guest's: empty, with the control word of FNINIT, and
 * with no flags that the guest has not, too. (Clearing them each time would cost more than most instructions; so
 * they are cleared where the guest's are.) An instruction takes the guest's control word there, masks included,
 * so that also an unmasked overflow has the result that it must have. No exception reaches the host, because
 * the flags are cleared before, and before another instruction waits for them.
 *
 * An exception that the guest has unmasked is raised by the *next* instruction that waits (`raise_pending`).
 * Unless it is an overflow, underflow or precision, the instruction that causes it changes nothing but the
 * status word (SDM vol. 1, "x87 FPU Exception Handling"): neither memory nor the stack. QEMU has parted the
 * instructions into helpers, so the rest of such an instruction is skipped (`skip_instruction`). */

#ifndef NITRO_X87_H
#define NITRO_X87_H

#include "sse.h"

#define INVALID 0x01
#define DENORMAL 0x02
#define DIVISION_BY_ZERO 0x04
#define PRECISION 0x20
#define EXCEPTIONS 0x3F
#define STACK_FAULT 0x41
#define SUMMARY 0x80
#define SUMMARY_AND_BUSY 0x8080
#define TOP 0x3800
#define C0 0x0100
#define C1 0x0200
#define C2 0x0400
#define C3 0x4000
#define ALL_CONDITIONS (C0 | C1 | C2 | C3)
#define COMPARED (C0 | C2 | C3)
#define CONTROL_RESET 0x037F
#define INDEFINITE ((struct x87){0xC000000000000000u, 0xFFFF})

#define ST(index) ENV_X87(registers, (ENV_FPSTT(registers) + (unsigned)(index)) & 7)
#define ST0 ST(0)
#define FT0 ENV_FT0(registers)

/* In the assembly of each instruction, after it: its status word, and no exception that is pending in the host. */
#define STATUS "\n\tfnstsw %[status]\n\ttestb %%al, %%al\n\tjns 7f\n\tfnclex\n7:\t"
#define LOAD_TWO "fldt %[second]\n\tfldt %[first]\n\t"

static inline void forget_flags(void)
{
    __asm__ volatile("fnclex");
}

static inline void begin(env *registers)
{
    if (ENV_FPUC(registers) == CONTROL_RESET)
        return;
    if (~ENV_FPUC(registers) & EXCEPTIONS)
        forget_flags();
    __asm__ volatile("fldcw %0" : : "m"(ENV_FPUC(registers)));
}

/* Let the host's x87 rest again, which an exception that was unmasked may leave with registers in use. */
static inline void rest(env *registers, uint16_t status)
{
    static const uint16_t reset = CONTROL_RESET;

    if (__builtin_expect(status & SUMMARY, 0))
        __asm__ volatile("fninit");
    else if (ENV_FPUC(registers) != CONTROL_RESET)
        __asm__ volatile("fldcw %0" : : "m"(reset));
}

/* `conditions` is what of C0 to C3 the instruction defines. */
static inline void note_status(env *registers, uint16_t status, uint16_t conditions)
{
    ENV_FPUS(registers) = (ENV_FPUS(registers) & ~conditions) | (status & (conditions | EXCEPTIONS));
}

static inline void end(env *registers, uint16_t status, uint16_t conditions)
{
    rest(registers, status);
    note_status(registers, status, conditions);
}

static inline uint16_t unmasked_of(env *registers, uint16_t status)
{
    return status & ~ENV_FPUC(registers) & EXCEPTIONS;
}

static inline bool is_empty(env *registers, int index)
{
    return ENV_FPTAGS(registers)[(ENV_FPSTT(registers) + (unsigned)index) & 7];
}

static inline bool is_nan(struct x87 value)
{
    return (value.exponent & 0x7FFF) == 0x7FFF && value.significand << 1 != 0;
}

static inline void set(env *registers, int index, struct x87 value)
{
    ST(index) = value;
    ENV_FPTAGS(registers)[(ENV_FPSTT(registers) + (unsigned)index) & 7] = 0;
}

static inline void push(env *registers, struct x87 value)
{
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) - 1) & 7;
    set(registers, 0, value);
}

static inline void pop(env *registers)
{
    ENV_FPTAGS(registers)[ENV_FPSTT(registers)] = 1;
    ENV_FPSTT(registers) = (ENV_FPSTT(registers) + 1) & 7;
}

/* End the guest's instruction here; whoever called the helper does not go on. */
_Noreturn void skip_instruction(env *registers, uintptr_t return_address);

/* Skip the rest if one of these flags is of an exception that is unmasked. */
static inline void skip_if_unmasked(env *registers, uint16_t status, uint16_t of_these, uintptr_t return_address)
{
    if (__builtin_expect(unmasked_of(registers, status) & of_these, 0))
        skip_instruction(registers, return_address);
}

#define BEFORE_OPERATION (INVALID | DENORMAL | DIVISION_BY_ZERO)

/* An operand that is empty, or a push onto a register that is not (SDM vol. 1, "Stack Overflow or Underflow
 * Exception"). Returns if the exception is masked: the result is the indefinite then. */
void stack_fault(env *registers, bool overflow, uintptr_t return_address);

/* Raise #MF if an exception is pending. */
void raise_pending(env *registers, uintptr_t return_address);

/* A whole register in memory, which may fault. */
struct x87 load_ten_bytes(env *registers, uint64_t address, uintptr_t return_address);
void store_ten_bytes(env *registers, uint64_t address, struct x87 value, uintptr_t return_address);

/* An MMX register was written. */
void finish_mmx(env *registers, int number);

/* FCMOV looks at its operands whether or not it moves one. */
void check_conditional_move(env *registers, int index, uintptr_t return_address);

/* Whether code of the guest's must look for pending exceptions is one of QEMU's flags of a block, so that code
 * that masks them all does not look. Tells whether that has begun just now. */
bool begin_to_look(env *registers);

#endif
