/* The x87's control, status and tag words, and exceptions that wait. */

#include <string.h>

#include "x87.h"
#include "refuse.h"

#define CONTROL_WRITABLE 0x1F3F
#define CONTROL_FIXED 0x0040
#define CR0_NE 0x20u
#define CR4_OSFXSR 0x200u
#define EFER_FFXSR 0x4000u
#define X87_EXCEPTION 16
#define TAG_VALID 0
#define TAG_ZERO 1
#define TAG_SPECIAL 2
#define TAG_EMPTY 3

void skip_instruction(env *registers, uintptr_t return_address)
{
    cpu *processor = CPU_OF(registers);
    struct instruction instruction;

    original.cpu_restore_state_x86_64(processor, return_address, true);
    uint64_t address = ENV_EIP(registers) + ENV_SEGMENT(registers, CS)->base;
    if (decode(&instruction, registers, address, ENV_HFLAGS(registers)))
        skip_operand(&instruction);
    finish_instruction(registers, instruction.next);
    CPU_EXCEPTION_INDEX(processor) = -1;
    original.cpu_loop_exit_x86_64(processor);
    __builtin_unreachable();
}

void stack_fault(env *registers, bool overflow, uintptr_t return_address)
{
    ENV_FPUS(registers) = (ENV_FPUS(registers) & ~C1) | STACK_FAULT | (overflow ? C1 : 0);
    skip_if_unmasked(registers, INVALID, INVALID, return_address);
}

/* Without CR0.NE it is an interrupt of the first PC's, which nobody has connected. */
void raise_pending(env *registers, uintptr_t return_address)
{
    if (unmasked_of(registers, ENV_FPUS(registers)) && (ENV_CR(registers, 0) & CR0_NE))
        raise_exception(registers, X87_EXCEPTION, 0, return_address);
}

void helper_fwait_x86_64(env *registers)
{
    raise_pending(registers, RETURN_ADDRESS);
}

bool begin_to_look(env *registers)
{
    uint32_t before = ENV_HFLAGS(registers);

    if (machine_of(registers) == NULL)
        return false;
    if (!unmasked_of(registers, EXCEPTIONS)) {
        ENV_HFLAGS(registers) = before & ~HFLAGS_X87_UNMASKED;
        return false;
    }
    ENV_HFLAGS(registers) = before | HFLAGS_X87_UNMASKED;
    return !(before & HFLAGS_X87_UNMASKED);
}

/* The block that is running was translated without a look, so it ends here. */
static void set_control(env *registers, uint16_t value, uintptr_t return_address)
{
    ENV_FPUC(registers) = (value & CONTROL_WRITABLE) | CONTROL_FIXED;
    if (begin_to_look(registers))
        skip_instruction(registers, return_address);
}

void helper_fldcw_x86_64(env *registers, uint32_t value)
{
    set_control(registers, (uint16_t)value, RETURN_ADDRESS);
}

static uint16_t read_status(env *registers)
{
    uint16_t status = (ENV_FPUS(registers) & ~(TOP | SUMMARY_AND_BUSY)) | (ENV_FPSTT(registers) & 7) << 11;

    return unmasked_of(registers, status) ? status | SUMMARY_AND_BUSY : status;
}

static void write_status(env *registers, uint16_t status)
{
    forget_flags();
    ENV_FPUS(registers) = status & ~(TOP | SUMMARY_AND_BUSY);
    ENV_FPSTT(registers) = (status & TOP) >> 11;
}

uint32_t helper_fnstsw_x86_64(env *registers)
{
    return read_status(registers);
}

void helper_fclex_x86_64(env *registers)
{
    forget_flags();
    ENV_FPUS(registers) &= ~(EXCEPTIONS | STACK_FAULT | SUMMARY_AND_BUSY);
}

void helper_fninit_x86_64(env *registers)
{
    write_status(registers, 0);
    memset(ENV_FPTAGS(registers), 1, 8);
    ENV_FPUC(registers) = CONTROL_RESET;
    begin_to_look(registers);
}

void helper_emms_x86_64(env *registers)
{
    ENV_FPSTT(registers) = 0;
    memset(ENV_FPTAGS(registers), 1, 8);
}

void finish_mmx(env *registers, int number)
{
    ENV_FPSTT(registers) = 0;
    memset(ENV_FPTAGS(registers), 0, 8);
    ENV_X87(registers, number).exponent = 0xFFFF;
}

/* The environment: control, status and tag word, and pointers to the last instruction, which are 0 here. */

static int tag_of(env *registers, int number)
{
    struct x87 value = ENV_X87(registers, number);
    int exponent = value.exponent & 0x7FFF;

    if (ENV_FPTAGS(registers)[number])
        return TAG_EMPTY;
    if (exponent == 0 && value.significand == 0)
        return TAG_ZERO;
    return exponent == 0 || exponent == 0x7FFF || !(value.significand >> 63) ? TAG_SPECIAL : TAG_VALID;
}

/* Returns where it ends. */
static uint64_t store_environment(env *registers, uint64_t address, bool wide, uintptr_t return_address)
{
    uint16_t words[7] = {ENV_FPUC(registers), read_status(registers), 0, 0, 0, 0, 0};

    for (int number = 0; number < 8; number++)
        words[2] |= (uint16_t)(tag_of(registers, number) << 2 * number);
    for (int at = 0; at < 7; at++) {
        uint32_t reserved = at < 3 || at == 6 ? 0xFFFF0000 : 0;
        if (wide)
            original.cpu_stl_data_ra_x86_64(registers, address + 4 * (unsigned)at, words[at] | reserved,
                                            return_address);
        else
            original.cpu_stw_data_ra_x86_64(registers, address + 2 * (unsigned)at, words[at], return_address);
    }
    return address + (wide ? 28 : 14);
}

struct environment {
    uint16_t control, status, tags;
};

static uint64_t load_environment(env *registers, struct environment *image, uint64_t address, bool wide,
                                 uintptr_t return_address)
{
    uint16_t *words[] = {&image->control, &image->status, &image->tags};

    for (unsigned at = 0; at < 3; at++)
        *words[at] = (uint16_t)original.cpu_lduw_data_ra_x86_64(registers, address + (wide ? 4 : 2) * at,
                                                                 return_address);
    return address + (wide ? 28 : 14);
}

static void set_environment(env *registers, const struct environment *image)
{
    write_status(registers, image->status);
    for (int number = 0; number < 8; number++)
        ENV_FPTAGS(registers)[number] = (image->tags >> 2 * number & 3) == TAG_EMPTY;
}

void helper_fstenv_x86_64(env *registers, uint64_t address, int wide)
{
    store_environment(registers, address, wide, RETURN_ADDRESS);
    ENV_FPUC(registers) |= EXCEPTIONS;
    begin_to_look(registers);
}

void helper_fldenv_x86_64(env *registers, uint64_t address, int wide)
{
    struct environment image;

    load_environment(registers, &image, address, wide, RETURN_ADDRESS);
    set_environment(registers, &image);
    set_control(registers, image.control, RETURN_ADDRESS);
}

void helper_fsave_x86_64(env *registers, uint64_t address, int wide)
{
    address = store_environment(registers, address, wide, RETURN_ADDRESS);
    for (unsigned index = 0; index < 8; index++)
        store_ten_bytes(registers, address + 10 * index, ST(index), RETURN_ADDRESS);
    helper_fninit_x86_64(registers);
}

void helper_frstor_x86_64(env *registers, uint64_t address, int wide)
{
    struct environment image;
    struct x87 values[8];

    address = load_environment(registers, &image, address, wide, RETURN_ADDRESS);
    for (unsigned index = 0; index < 8; index++)
        values[index] = load_ten_bytes(registers, address + 10 * index, RETURN_ADDRESS);
    set_environment(registers, &image);
    for (unsigned index = 0; index < 8; index++)
        ST(index) = values[index];
    set_control(registers, image.control, RETURN_ADDRESS);
}

/* FXSAVE and FXRSTOR. */

void helper_fxsave_x86_64(env *registers, uint64_t address)
{
    if (unmasked_of(registers, ENV_FPUS(registers)))
        ENV_FPUS(registers) |= SUMMARY_AND_BUSY;
    else
        ENV_FPUS(registers) &= ~SUMMARY_AND_BUSY;
    if (machine_of(registers) != NULL)
        collect_mxcsr(registers);
    /* A jump and no call: QEMU's function finds the guest's instruction by its own return address. */
    original.helper_fxsave_x86_64(registers, address);
}

static bool leaves_xmm_alone(env *registers)
{
    return !(ENV_CR(registers, 4) & CR4_OSFXSR)
        || ((ENV_EFER(registers) & EFER_FFXSR) && (ENV_HFLAGS(registers) & (HFLAGS_LMA | HFLAGS_CPL)) == HFLAGS_LMA);
}

/* Memory is read before anything is changed, because it may fault, and so may a value. */
void helper_fxrstor_x86_64(env *registers, uint64_t address)
{
    struct {
        uint64_t low, high;
    } x87[8], xmm[16];
    uintptr_t here = RETURN_ADDRESS;

    if (address & 15)
        raise_exception(registers, GENERAL_PROTECTION, 0, here);
    uint16_t control = (uint16_t)original.cpu_lduw_data_ra_x86_64(registers, address, here);
    uint16_t status = (uint16_t)original.cpu_lduw_data_ra_x86_64(registers, address + 2, here);
    uint32_t valid = original.cpu_lduw_data_ra_x86_64(registers, address + 4, here);
    uint32_t mxcsr = original.cpu_ldl_data_ra_x86_64(registers, address + 24, here);
    unsigned count = leaves_xmm_alone(registers) ? 0 : ENV_HFLAGS(registers) & HFLAGS_CS64 ? 16 : 8;
    for (unsigned at = 0; at < 8; at++) {
        x87[at].low = original.cpu_ldq_data_ra_x86_64(registers, address + 32 + 16 * at, here);
        x87[at].high = original.cpu_lduw_data_ra_x86_64(registers, address + 40 + 16 * at, here);
    }
    for (unsigned at = 0; at < count; at++) {
        xmm[at].low = original.cpu_ldq_data_ra_x86_64(registers, address + 160 + 16 * at, here);
        xmm[at].high = original.cpu_ldq_data_ra_x86_64(registers, address + 168 + 16 * at, here);
    }
    if (ENV_CR(registers, 4) & CR4_OSFXSR) {
        if (mxcsr & MXCSR_RESERVED)
            raise_exception(registers, GENERAL_PROTECTION, 0, here);
        ENV_MXCSR(registers) = mxcsr;
        update_mxcsr_status_x86_64(registers);
    }
    for (unsigned at = 0; at < count; at++)
        memcpy(ENV_XMM(registers, at), &xmm[at], 16);
    write_status(registers, status);
    for (unsigned at = 0; at < 8; at++) {
        ST(at) = (struct x87){x87[at].low, (uint16_t)x87[at].high};
        ENV_FPTAGS(registers)[at] = !(valid >> at & 1);
    }
    set_control(registers, control, here);
}
