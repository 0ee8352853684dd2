/* Exceptions, interrupts, and the ends of a machine.
 *
 * Unicorn calls a hook for an exception and then goes on as if nothing was. QEMU's own delivery is still there:
 * the hook calls it. Where delivery itself faults, QEMU leaves by a long jump into its main loop, which calls
 * the hook again with the next exception; double and triple faults come about as QEMU combines them. All frames
 * in between are C's, so the jump hurts nobody, whatever the guest has made of its tables and stacks. */

#include "machine.h"
#include "refuse.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define HOOK_INTERRUPT 1
#define HOOK_INVALID_INSTRUCTION (1 << 14)

_Noreturn void leave(struct machine *machine)
{
    original.uc_emu_stop(machine->engine);
    CPU_EXCEPTION_INDEX(machine->processor) = EXIT_INTERRUPT;
    original.cpu_loop_exit_x86_64(machine->processor);
    __builtin_unreachable();
}

_Noreturn void raise_exception(env *registers, int vector, int error_code, uintptr_t return_address)
{
    original.raise_exception_err_ra_x86_64(registers, vector, error_code, return_address);
    __builtin_unreachable();
}

/* An exception of a program's leaves SS empty, without its size. 64-bit code does not heed it, but QEMU would
 * translate the kernel's handlers once for each size. Whatever loads a segment computes it anew. */
static void forget_stack_size(env *registers)
{
    if (ENV_HFLAGS(registers) & HFLAGS_CS64)
        ENV_HFLAGS(registers) |= HFLAGS_SS32;
}

/* Deliver the exception that is pending. Each one ends in a handler, or at a triple fault, so after it is the
 * place to obey a stop: a guest that faults for ever never comes to where Unicorn looks for one. */
static void deliver(struct machine *machine)
{
    original.x86_cpu_do_interrupt_x86_64(machine->processor);
    forget_stack_size(machine->registers);
    CPU_EXCEPTION_INDEX(machine->processor) = -1;
    if (machine->stop)
        leave(machine);
}

static void on_exception(uc *engine, uint32_t vector, void *data)
{
    struct machine *machine = data;
    env *registers = machine->registers;

    (void)engine, (void)vector;
    /* Unicorn has moved RIP behind the INT instruction. A fault of its delivery belongs at the instruction;
     * where it returns to otherwise stands in `exception_next_eip`. */
    if (ENV_EXCEPTION_IS_INT(registers))
        ENV_EIP(registers) = machine->int_rip;
    deliver(machine);
}

static bool on_invalid_instruction(uc *engine, void *data)
{
    struct machine *machine = data;

    (void)engine;
    if (!emulate(machine))
        deliver(machine);
    else if (machine->stop)
        leave(machine);
    return true;
}

int hook_exceptions(struct machine *machine)
{
    uint64_t handle;
    int error = original.uc_hook_add(machine->engine, &handle, HOOK_INTERRUPT, (void *)on_exception, machine,
                                     (uint64_t)1, (uint64_t)0);
    if (error == 0)
        error = original.uc_hook_add(machine->engine, &handle, HOOK_INVALID_INSTRUCTION,
                                     (void *)on_invalid_instruction, machine, (uint64_t)1, (uint64_t)0);
    return error;
}

void raise_interrupt_x86_64(env *registers, int vector, int is_int, int error_code, int length)
{
    struct machine *machine = machine_of(registers);

    if (machine != NULL)
        machine->int_rip = ENV_EIP(registers);
    original.raise_interrupt_x86_64(registers, vector, is_int, error_code, length);
}

#define ERROR_IDT 2 /* the error code names a gate (SDM vol. 3A, "Error Code") */

/* In long mode QEMU names a gate by its offset in the table, where the index times 8 is due. */
void raise_exception_err_x86_64(env *registers, int vector, int error_code)
{
    if (machine_of(registers) != NULL && (ENV_HFLAGS(registers) & HFLAGS_LMA)
        && (vector == GENERAL_PROTECTION || vector == NOT_PRESENT) && (error_code & ERROR_IDT))
        error_code = (error_code - ERROR_IDT) / 2 + ERROR_IDT;
    original.raise_exception_err_x86_64(registers, vector, error_code);
}

/* Called by QEMU's main loop between blocks while a bit of `interrupt_request` is set. */
bool x86_cpu_exec_interrupt_x86_64(cpu *processor, int request)
{
    struct machine *machine = CPU_MACHINE(processor);

    if (machine == NULL)
        return original.x86_cpu_exec_interrupt_x86_64(processor, request);
    if (machine->stop || ((request & REQUEST_STOP) && stop_for_watcher(machine))) {
        original.uc_emu_stop(machine->engine);
        return true; /* the loop then forgets an exception index that an instruction may have left behind */
    }
    refresh_clock(machine);
    env *registers = machine->registers;
    if (!(request & REQUEST_VIRQ) || !(ENV_EFLAGS(registers) & FLAG_IF)
        || (ENV_HFLAGS(registers) & HFLAGS_INHIBIT_IRQ))
        return false;
    /* Accepted, and so no longer pending, even if delivery faults: otherwise it would fault for ever. */
    int vector = (int)machine->vector;
    __atomic_fetch_and(&CPU_INTERRUPT_REQUEST(processor), ~REQUEST_VIRQ, __ATOMIC_SEQ_CST);
    original.do_interrupt_x86_hardirq_x86_64(registers, vector, 1);
    forget_stack_size(registers);
    return true;
}

void qemu_system_reset_request(uc *engine)
{
    struct machine *machine = CPU_MACHINE(UC_CPU(engine));

    if (machine == NULL)
        original.qemu_system_reset_request(engine);
    else
        machine->triple_fault = 1; /* the caller leaves the loop */
}

/* QEMU gives up on the processor: the machine ends with a reason, and the process goes on. */
void cpu_abort_x86_64(cpu *processor, const char *format, ...)
{
    struct machine *machine = CPU_MACHINE(processor);
    va_list arguments;

    if (machine == NULL)
        abort();
    va_start(arguments, format);
    int length = vsnprintf(machine->crash, sizeof machine->crash, format, arguments);
    va_end(arguments);
    if (length >= 0 && length < (int)sizeof machine->crash)
        snprintf(machine->crash + length, sizeof machine->crash - length, " at %#llx",
                 (unsigned long long)ENV_EIP(machine->registers));
    leave(machine);
}

/* LTR of a null selector is a protection fault (SDM vol. 2A, "LTR"). QEMU takes it, and gives up at the next
 * change of privilege. */
void helper_ltr_x86_64(env *registers, int selector)
{
    if (machine_of(registers) != NULL && !(selector & 0xFFFC))
        raise_exception(registers, GENERAL_PROTECTION, 0, RETURN_ADDRESS);
    /* A jump and no call: QEMU's function finds the guest's instruction by its own return address. */
    original.helper_ltr_x86_64(registers, selector);
}
