/* CPUID: a table that accel/unicorn/identity.py fills. What it does not offer, the translator refuses with #UD,
 * and EFER and CR4 do not take. */

#include "machine.h"

#define STRUCTURED_FEATURES 7 /* the one leaf here whose subleaves differ */
#define REQUIRED_1_EDX 0x06000001u /* FPU, SSE and SSE2 */
#define LONG_MODE (1u << 29)

/* Adds a leaf; false if there is no room. */
EXPORTED int nitro_add_leaf(struct machine *machine, const struct leaf *leaf)
{
    if (machine->leaf_count == LEAVES_MAX)
        return 0;
    machine->leaves[machine->leaf_count++] = *leaf;
    return 1;
}

static const struct leaf *find(const struct machine *machine, uint32_t number)
{
    static const struct leaf empty;

    for (int at = 0; at < machine->leaf_count; at++) {
        if (machine->leaves[at].number == number)
            return &machine->leaves[at];
    }
    return &empty;
}

/* Has the processor be what the leaves say; after the last one. 0 if QEMU keeps its features elsewhere. */
EXPORTED int nitro_limit_features(struct machine *machine)
{
    const struct leaf *vendor = find(machine, 0), *basic = find(machine, 1);
    const struct leaf *structured = find(machine, STRUCTURED_FEATURES), *extended = find(machine, 0x80000001);
    uint64_t *words = ENV_FEATURES(machine->registers);
    uint64_t allowed[FEATURE_WORDS] = {
        [FEATURES_1_EDX] = basic->edx,
        [FEATURES_1_ECX] = basic->ecx,
        [FEATURES_7_EBX] = structured->ebx,
        [FEATURES_80000001_EDX] = extended->edx,
        [FEATURES_80000001_ECX] = extended->ecx,
    };

    if ((words[FEATURES_1_EDX] & REQUIRED_1_EDX) != REQUIRED_1_EDX || words[FEATURES_1_EDX] >> 32
        || !(words[FEATURES_80000001_EDX] & LONG_MODE))
        return 0;
    for (int at = 0; at < FEATURE_WORDS; at++)
        words[at] &= allowed[at];
    ENV_VENDOR(machine->registers)[0] = vendor->ebx;
    ENV_VENDOR(machine->registers)[1] = vendor->edx;
    ENV_VENDOR(machine->registers)[2] = vendor->ecx;
    return 1;
}

void helper_cpuid_x86_64(env *registers)
{
    struct machine *machine = machine_of(registers);

    if (machine == NULL) {
        original.helper_cpuid_x86_64(registers);
        return;
    }
    uint64_t *general = ENV_REGS(registers);
    uint32_t number = (uint32_t)general[RAX], subleaf = (uint32_t)general[RCX];
    bool other_subleaf = number == STRUCTURED_FEATURES && subleaf != 0;
    struct leaf found = other_subleaf ? (struct leaf){0} : *find(machine, number);
    general[RAX] = found.eax;
    general[RBX] = found.ebx;
    general[RCX] = found.ecx;
    general[RDX] = found.edx;
}
