/* Stops the machine where a program of the guest's is about to run, and makes system calls in its name; or where
 * the guest has touched a page.
 *
 * The kernel comes to a program by IRET or SYSRET only. A look at every return while somebody watches would be
 * one behind the instruction; but QEMU's functions find the guest's instruction by their own return address, so
 * they are jumped to and never called. Therefore the look is put off to `x86_cpu_exec_interrupt`, which is next
 * before the program's first instruction. */

#include "tlb.h"

static void look_soon(env *registers)
{
    struct machine *machine = machine_of(registers);

    if (machine == NULL || !machine->watches_programs)
        return;
    __atomic_fetch_or(&CPU_INTERRUPT_REQUEST(machine->processor), REQUEST_STOP, __ATOMIC_SEQ_CST);
    LEAVE_BLOCK(machine->processor) = 0xFFFF;
}

void helper_iret_protected_x86_64(env *registers, int shift, int next_eip)
{
    look_soon(registers);
    original.helper_iret_protected_x86_64(registers, shift, next_eip);
}

void helper_sysret_x86_64(env *registers, int flags)
{
    look_soon(registers);
    original.helper_sysret_x86_64(registers, flags);
}

/* Have `nitro_run` return PROGRAM before an instruction of a 64-bit program; while it does not run. */
EXPORTED void nitro_watch_programs(struct machine *machine, int wanted)
{
    machine->watches_programs = (uint8_t)wanted;
    machine->at_program = 0;
}

/* Whether the processor is about to run an instruction of a 64-bit program. */
EXPORTED int nitro_is_at_program(const struct machine *machine)
{
    uint32_t hflags = ENV_HFLAGS(machine->registers);

    return (hflags & HFLAGS_CPL) == HFLAGS_CPL && (hflags & HFLAGS_CS64);
}

/* Have `nitro_run` return PAGE, once, soon after the guest has touched a page for which the processor had to look
 * up the translation; while it does not run. What is touched before the guest has armed its timer for the first
 * time is not counted, because Linux looks into its ramdisk early for microcode and tables. */
EXPORTED void nitro_watch_page(struct machine *machine, uint64_t address)
{
    machine->watched_page = address >> 12;
    machine->at_page = 0;
}

void note_timer(struct machine *machine)
{
    if (!machine->timer_was_armed && machine->watched_page != NO_PAGE) /* it may be in the TLB already */
        original.tlb_flush_by_mmuidx_x86_64(machine->processor, ALL_TLBS);
    machine->timer_was_armed = 1;
}

void touch_page(struct machine *machine)
{
    if (!machine->timer_was_armed)
        return;
    machine->watched_page = NO_PAGE;
    machine->at_page = 1;
    __atomic_fetch_or(&CPU_INTERRUPT_REQUEST(machine->processor), REQUEST_STOP, __ATOMIC_SEQ_CST);
    LEAVE_BLOCK(machine->processor) = 0xFFFF;
}

bool stop_for_watcher(struct machine *machine)
{
    if (machine->at_page)
        return true;
    if (!machine->watches_programs || !nitro_is_at_program(machine)) {
        __atomic_fetch_and(&CPU_INTERRUPT_REQUEST(machine->processor), ~REQUEST_STOP, __ATOMIC_SEQ_CST);
        if (machine->stop) /* asked for meanwhile */
            __atomic_fetch_or(&CPU_INTERRUPT_REQUEST(machine->processor), REQUEST_STOP, __ATOMIC_SEQ_CST);
        return false;
    }
    machine->at_program = 1;
    return true;
}

/* As if the program had executed SYSCALL, and its next instruction were the one at which it stands. False if
 * there is no program, or its kernel takes no system calls. */
EXPORTED int nitro_enter_system_call(struct machine *machine)
{
    if (!nitro_is_at_program(machine) || !(ENV_EFER(machine->registers) & EFER_SCE))
        return 0;
    helper_syscall_x86_64(machine->registers, 0);
    return 1;
}
