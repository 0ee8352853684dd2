/* A few rare instructions, because QEMU's translation of them is wrong. They raise #UD there, and come here.
 *
 * - CMPXCHG of two 32-bit registers: the one that is not written must keep its upper half.
 * - LOOPE and LOOPNE: QEMU loses the flags of the instruction before them on one of the two ways.
 * - INT1: QEMU does not have it. */

#include "refuse.h"
#include "flags.h"

#define DEBUG_EXCEPTION 1

static bool is_loop(const struct instruction *instruction)
{
    return instruction->map == 0 && (instruction->opcode & 0xFE) == 0xE0;
}

static bool is_cmpxchg_of_registers(struct instruction instruction)
{
    return instruction.map == ESCAPE && instruction.opcode == 0xB1 && (instruction.flags & HFLAGS_CS64)
        && !(instruction.prefixes & PREFIX_DATA) && !(instruction.rex & REX_W)
        && !is_memory(read_code(&instruction));
}

bool is_emulated(struct instruction instruction)
{
    return is_loop(&instruction) || is_cmpxchg_of_registers(instruction);
}

/* The count is as wide as addresses are. */
static uint64_t count_mask(const struct instruction *instruction)
{
    bool other = instruction->prefixes & PREFIX_ADDRESS;

    if (instruction->flags & HFLAGS_CS64)
        return other ? UINT32_MAX : UINT64_MAX;
    return !(instruction->flags & HFLAGS_CS32) == other ? UINT32_MAX : UINT16_MAX;
}

static uint64_t target_mask(const struct instruction *instruction)
{
    bool other = instruction->prefixes & PREFIX_DATA;

    if (instruction->flags & HFLAGS_CS64)
        return UINT64_MAX;
    return !(instruction->flags & HFLAGS_CS32) == other ? UINT32_MAX : UINT16_MAX;
}

static void loop(struct instruction *instruction)
{
    env *registers = instruction->registers;
    int8_t distance = (int8_t)read_code(instruction);
    uint64_t mask = count_mask(instruction), *count = &ENV_REGS(registers)[RCX];
    uint64_t left = (*count - 1) & mask;
    bool while_zero = instruction->opcode & 1;
    bool zero = read_flags(registers) & FLAG_ZF;

    /* A 32-bit result clears the upper half in 64-bit mode; a 16-bit one leaves the rest. */
    *count = mask == UINT16_MAX ? (*count & ~mask) | left : left;
    if (left == 0 || zero != while_zero)
        return;
    uint64_t base = ENV_SEGMENT(registers, CS)->base;
    instruction->next = base + ((instruction->next + (uint64_t)distance - base) & target_mask(instruction));
}

static void compare_and_exchange(struct instruction *instruction)
{
    env *registers = instruction->registers;
    uint64_t *general = ENV_REGS(registers);
    uint8_t modrm = read_code(instruction);
    uint64_t *destination = &general[(modrm & 7) | (instruction->rex & REX_B ? 8 : 0)];
    uint32_t source = (uint32_t)general[modrm_reg(modrm) | (instruction->rex & REX_R ? 8 : 0)];
    uint32_t expected = (uint32_t)general[RAX], found = (uint32_t)*destination;

    set_flags_of_subtraction(registers, expected, found);
    if (expected == found)
        *destination = source;
    else
        general[RAX] = found;
}

void finish_instruction(env *registers, uint64_t end)
{
    uint64_t target = end - ENV_SEGMENT(registers, CS)->base;

    ENV_EIP(registers) = ENV_HFLAGS(registers) & HFLAGS_CS64 ? target : (uint32_t)target;
    ENV_HFLAGS(registers) &= ~HFLAGS_INHIBIT_IRQ;
    ENV_EFLAGS(registers) &= ~(uint64_t)FLAG_RF;
    if (ENV_EFLAGS(registers) & FLAG_TF)
        original.helper_single_step_x86_64(registers);
}

bool emulate(struct machine *machine)
{
    env *registers = machine->registers;
    struct instruction instruction;
    uint64_t address = ENV_EIP(registers) + ENV_SEGMENT(registers, CS)->base;
    uint32_t flags = ENV_HFLAGS(registers) | (uint32_t)(ENV_EFLAGS(registers) & FLAG_VM);

    if (ENV_EXCEPTION_IS_INT(registers) || !decode(&instruction, registers, address, flags))
        return false;
    if (instruction.map == 0 && instruction.opcode == 0xF1 && !(instruction.prefixes & PREFIX_LOCK)) {
        ENV_EIP(registers) = instruction.next - ENV_SEGMENT(registers, CS)->base;
        CPU_EXCEPTION_INDEX(machine->processor) = DEBUG_EXCEPTION;
        return false; /* to be delivered */
    }
    if ((instruction.prefixes & PREFIX_LOCK) || !is_emulated(instruction))
        return false;
    if (is_loop(&instruction))
        loop(&instruction);
    else
        compare_and_exchange(&instruction);
    CPU_EXCEPTION_INDEX(machine->processor) = -1;
    finish_instruction(registers, instruction.next);
    return true;
}
