/* Makes, runs and stops machines. */

#include "x87.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ties a machine to an engine; NULL and a reason if its structures are not laid out as layout.h says. */
EXPORTED struct machine *nitro_attach(uc *engine, const struct board *board, const char **reason)
{
    cpu *processor = UC_CPU(engine);
    env *registers = CPU_ENV(processor);

    if ((char *)registers - (char *)processor != ENV_OFFSET)
        *reason = "CPUX86State is elsewhere in its processor";
    else if (CPU_ICOUNT_DECR(processor) != (char *)processor + ICOUNT_OFFSET)
        *reason = "icount_decr is elsewhere";
    else if (CPU_UC(processor) != engine || ENV_UC(registers) != engine)
        *reason = "the processor's engine is elsewhere";
    else if (CPU_MACHINE(processor) != NULL || CPU_EXCEPTION_INDEX(processor) != -1)
        *reason = "CPUState.opaque is not free";
    else if (CLASS_UNALIGNED_ACCESS(CPU_CLASS(processor)) != NULL)
        *reason = "CPUClass.do_unaligned_access is not free";
    else {
        struct machine *machine = calloc(1, sizeof *machine);
        if (machine == NULL) {
            *reason = "no memory";
            return NULL;
        }
        machine->engine = engine;
        machine->processor = processor;
        machine->registers = registers;
        machine->board = *board;
        machine->watched_page = NO_PAGE;
        CPU_MACHINE(processor) = machine;
        CLASS_UNALIGNED_ACCESS(CPU_CLASS(processor)) = (void *)on_unaligned_access;
        ENV_MXCSR(registers) = MXCSR_RESET;
        int error = hook_exceptions(machine);
        if (error == 0)
            return machine;
        *reason = original.uc_strerror(error);
        CPU_MACHINE(processor) = NULL;
        free(machine);
    }
    return NULL;
}

/* Before the engine is closed. */
EXPORTED void nitro_detach(struct machine *machine)
{
    CPU_MACHINE(machine->processor) = NULL;
    free_ram(machine);
    free(machine);
}

static int watched_ending(struct machine *machine)
{
    bool program = machine->at_program;

    machine->at_program = machine->at_page = 0;
    return program ? PROGRAM : PAGE;
}

/* Run the guest until it stops; says why. */
EXPORTED int nitro_run(struct machine *machine)
{
    if (machine->stop)
        return ASKED;
    if (machine->at_program || machine->at_page) /* a stop came together with it, and was told first */
        return watched_ending(machine);
    forget_regions(machine);
    resume_clock(machine);
    machine->running = 1;
    enter_floating_point(machine->registers);
    begin_to_look(machine->registers);
    int error = original.uc_emu_start(machine->engine, ENV_EIP(machine->registers), 0, 0, 0);
    leave_mxcsr(machine->registers);
    machine->running = 0;
    flush_console(machine);
    CPU_HALTED(machine->processor) = 0;
    if (machine->triple_fault)
        return TRIPLE_FAULT;
    if (machine->crash[0])
        return CRASHED;
    if (error != 0) {
        snprintf(machine->crash, sizeof machine->crash, "%s at %#llx", original.uc_strerror(error),
                 (unsigned long long)ENV_EIP(machine->registers));
        return CRASHED;
    }
    if (machine->stop)
        return ASKED;
    if (machine->at_program || machine->at_page)
        return watched_ending(machine);
    return ENV_EFLAGS(machine->registers) & FLAG_IF ? WAITING : HALTED;
}

/* Have the processor look at `interrupt_request` before its next block; from any thread.
 *
 * The processor clears LEAVE_BLOCK and then reads the request, without a barrier between the two. */
static void call_attention(struct machine *machine)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    LEAVE_BLOCK(machine->processor) = 0xFFFF;
}

/* Let `nitro_run` return soon, or at once when it is called; from any thread, until `nitro_forget_stop`. */
EXPORTED void nitro_stop(struct machine *machine)
{
    machine->stop = 1;
    __atomic_fetch_or(&CPU_INTERRUPT_REQUEST(machine->processor), REQUEST_STOP, __ATOMIC_SEQ_CST);
    call_attention(machine);
}

/* Run again; while no `nitro_run` goes on. */
EXPORTED void nitro_forget_stop(struct machine *machine)
{
    machine->stop = 0;
    __atomic_fetch_and(&CPU_INTERRUPT_REQUEST(machine->processor), ~REQUEST_STOP, __ATOMIC_SEQ_CST);
}

/* Interrupt the guest as soon as it allows it. */
EXPORTED void nitro_offer(struct machine *machine, uint32_t vector)
{
    machine->vector = vector;
    __atomic_fetch_or(&CPU_INTERRUPT_REQUEST(machine->processor), REQUEST_VIRQ, __ATOMIC_SEQ_CST);
    call_attention(machine);
}

EXPORTED void nitro_withdraw(struct machine *machine)
{
    __atomic_fetch_and(&CPU_INTERRUPT_REQUEST(machine->processor), ~REQUEST_VIRQ, __ATOMIC_SEQ_CST);
}

/* What ended the machine with CRASHED. */
EXPORTED const char *nitro_crash(const struct machine *machine)
{
    return machine->crash;
}
