/* CPUID: a table that accel/unicorn/identity.py fills. */

#include "machine.h"

#define STRUCTURED_FEATURES 7 /* the one leaf here whose subleaves differ */

/* Adds a leaf; false if there is no room. */
EXPORTED int nitro_add_leaf(struct machine *machine, const struct leaf *leaf)
{
    if (machine->leaf_count == LEAVES_MAX)
        return 0;
    machine->leaves[machine->leaf_count++] = *leaf;
    return 1;
}

void helper_cpuid_x86_64(env *registers)
{
    struct machine *machine = machine_of(registers);
    struct leaf found = {0, 0, 0, 0, 0};

    if (machine == NULL) {
        original.helper_cpuid_x86_64(registers);
        return;
    }
    uint64_t *general = ENV_REGS(registers);
    uint32_t number = (uint32_t)general[RAX], subleaf = (uint32_t)general[RCX];
    if (number != STRUCTURED_FEATURES || subleaf == 0) {
        for (int at = 0; at < machine->leaf_count; at++) {
            if (machine->leaves[at].number == number)
                found = machine->leaves[at];
        }
    }
    general[RAX] = found.eax;
    general[RBX] = found.ebx;
    general[RCX] = found.ecx;
    general[RDX] = found.edx;
}
