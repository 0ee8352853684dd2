/* SYSCALL and SYSENTER (SDM vol. 2B), which Unicorn leaves to hooks. SYSRET, SYSEXIT and IRET are QEMU's. */

#include "flags.h"

#define CODE_FLAGS (SEGMENT_G | SEGMENT_P | SEGMENT_S | SEGMENT_CODE | SEGMENT_RW | SEGMENT_ACCESSED)
#define DATA_FLAGS (SEGMENT_G | SEGMENT_B | SEGMENT_P | SEGMENT_S | SEGMENT_RW | SEGMENT_ACCESSED)

/* Flat segments of the kernel's, whatever the descriptor tables say. */
static void enter_kernel_segments(env *registers, uint32_t selector)
{
    bool long_mode = ENV_HFLAGS(registers) & HFLAGS_LMA;

    *ENV_SEGMENT(registers, CS) = (struct segment){
        selector & 0xFFFC, 0, UINT32_MAX, CODE_FLAGS | (long_mode ? SEGMENT_L : SEGMENT_B)};
    *ENV_SEGMENT(registers, SS) = (struct segment){(selector & 0xFFFC) + 8, 0, UINT32_MAX, DATA_FLAGS};
    uint32_t hflags = ENV_HFLAGS(registers) & ~(HFLAGS_CPL | HFLAGS_ADDSEG | HFLAGS_CS64);
    hflags |= HFLAGS_CS32 | HFLAGS_SS32;
    if (long_mode)
        hflags |= HFLAGS_CS64;
    else if (ENV_SEGMENT(registers, DS)->base | ENV_SEGMENT(registers, ES)->base)
        hflags |= HFLAGS_ADDSEG;
    ENV_HFLAGS(registers) = hflags;
}

void helper_syscall_x86_64(env *registers, int length)
{
    if (machine_of(registers) == NULL) {
        original.helper_syscall_x86_64(registers, length);
        return;
    }
    if (!(ENV_EFER(registers) & EFER_SCE) || !(ENV_HFLAGS(registers) & HFLAGS_CS64))
        raise_exception(registers, INVALID_OPCODE, 0, 0);
    uint64_t flags = read_flags(registers);
    ENV_REGS(registers)[RCX] = ENV_EIP(registers) + (uint64_t)length;
    ENV_REGS(registers)[R11] = flags & ~(uint64_t)FLAG_RF;
    write_flags(registers, flags & ~(uint64_t)(uint32_t)ENV_FMASK(registers) & ~(uint64_t)FLAG_RF);
    enter_kernel_segments(registers, ENV_STAR(registers) >> 32 & 0xFFFF);
    ENV_EIP(registers) = ENV_LSTAR(registers);
}

void helper_sysenter_x86_64(env *registers, int length)
{
    if (machine_of(registers) == NULL) {
        original.helper_sysenter_x86_64(registers, length);
        return;
    }
    if (!(ENV_SYSENTER_CS(registers) & 0xFFFC))
        raise_exception(registers, GENERAL_PROTECTION, 0, RETURN_ADDRESS);
    ENV_EFLAGS(registers) &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
    enter_kernel_segments(registers, ENV_SYSENTER_CS(registers));
    ENV_REGS(registers)[RSP] = ENV_SYSENTER_ESP(registers);
    ENV_EIP(registers) = ENV_SYSENTER_EIP(registers);
}
