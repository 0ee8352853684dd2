/* Model-specific registers that Unicorn does not have (SDM vol. 4; kvm-clock's: see clock.c). All others are
 * QEMU's; unknown ones read 0 and take nothing. */

#include "machine.h"

#define MSR_TSC 0x10
#define MSR_KVM_WALL_CLOCK_OLD 0x11
#define MSR_KVM_SYSTEM_TIME_OLD 0x12
#define MSR_APIC_BASE 0x1B
#define MSR_TSC_ADJUST 0x3B
#define MSR_MISC_ENABLE 0x1A0
#define MSR_TSC_DEADLINE 0x6E0
#define MSR_KVM_WALL_CLOCK 0x4B564D00
#define MSR_KVM_SYSTEM_TIME 0x4B564D01

/* Linux takes ERMS for broken without the first; the others say that there is neither BTS nor PEBS. */
#define MISC_FAST_STRINGS (1u << 0)
#define MISC_NO_TRACES (1u << 11 | 1u << 12)

#define APIC_BASE 0xFEE00000u
#define APIC_BOOT_PROCESSOR (1u << 8)
#define APIC_ENABLED (1u << 11)

static bool read_msr(struct machine *machine, uint32_t number, uint64_t *value)
{
    env *registers = machine->registers;

    switch (number) {
    case MSR_TSC: *value = read_tsc(machine); return true;
    case MSR_APIC_BASE: *value = APIC_BASE | APIC_BOOT_PROCESSOR | APIC_ENABLED; return true;
    case MSR_MISC_ENABLE: *value = MISC_FAST_STRINGS | MISC_NO_TRACES; return true;
    case MSR_TSC_ADJUST: *value = ENV_TSC_ADJUST(registers); return true;
    case MSR_TSC_DEADLINE: /* 0 once it has come */
        *value = read_tsc(machine) < ENV_TSC_DEADLINE(registers) ? ENV_TSC_DEADLINE(registers) : 0;
        return true;
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_OLD: *value = ENV_WALL_CLOCK(registers); return true;
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_OLD: *value = ENV_SYSTEM_TIME(registers); return true;
    default: return false;
    }
}

/* Writing the counter moves TSC_ADJUST, and the other way round (SDM vol. 3B, "IA32_TSC_ADJUST MSR"). */
static void adjust_tsc(env *registers, uint64_t difference)
{
    ENV_TSC_OFFSET(registers) += difference;
    ENV_TSC_ADJUST(registers) += difference;
}

static bool write_msr(struct machine *machine, uint32_t number, uint64_t value)
{
    env *registers = machine->registers;
    int64_t ticks;

    switch (number) {
    case MSR_TSC: adjust_tsc(registers, value - read_tsc(machine)); return true;
    case MSR_APIC_BASE: return true; /* it stays where it is */
    case MSR_MISC_ENABLE: return true;
    case MSR_TSC_ADJUST: adjust_tsc(registers, value - ENV_TSC_ADJUST(registers)); return true;
    case MSR_TSC_DEADLINE:
        ENV_TSC_DEADLINE(registers) = value;
        if (value != 0)
            watch_ticks(machine, value);
        ticks = (int64_t)(value - read_tsc(machine));
        if (value != 0)
            note_timer(machine);
        arm_timer(machine, value == 0 ? -1 : ticks > 0 ? ticks : 0);
        return true;
    case MSR_KVM_WALL_CLOCK: case MSR_KVM_WALL_CLOCK_OLD: write_wall_clock(machine, value); return true;
    case MSR_KVM_SYSTEM_TIME: case MSR_KVM_SYSTEM_TIME_OLD: write_system_time(machine, value); return true;
    default: return false;
    }
}

void helper_rdmsr_x86_64(env *registers)
{
    struct machine *machine = machine_of(registers);
    uint64_t *general = ENV_REGS(registers), value;

    if (machine == NULL || !read_msr(machine, (uint32_t)general[RCX], &value)) {
        original.helper_rdmsr_x86_64(registers);
        return;
    }
    general[RAX] = (uint32_t)value;
    general[RDX] = value >> 32;
}

void helper_wrmsr_x86_64(env *registers)
{
    struct machine *machine = machine_of(registers);
    const uint64_t *general = ENV_REGS(registers);
    uint64_t value = (uint32_t)general[RAX] | general[RDX] << 32;

    if (machine == NULL || !write_msr(machine, (uint32_t)general[RCX], value))
        original.helper_wrmsr_x86_64(registers);
}

/* Remembers what the guest read from its counter. */
static void note(env *registers)
{
    struct machine *machine = machine_of(registers);
    const uint64_t *general = ENV_REGS(registers);

    if (machine == NULL)
        return;
    machine->clock.looked_before_tsc = machine->clock.looked_tsc;
    machine->clock.looked_tsc = (uint32_t)general[RAX] | general[RDX] << 32;
    if (machine->clock.awaits != NO_LOOK)
        note_look(machine);
}

void helper_rdtsc_x86_64(env *registers)
{
    original.helper_rdtsc_x86_64(registers);
    note(registers);
}

void helper_rdtscp_x86_64(env *registers)
{
    original.helper_rdtscp_x86_64(registers);
    note(registers);
}
