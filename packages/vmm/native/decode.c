#include "decode.h"

bool decode(struct instruction *instruction, env *registers, uint64_t address, uint32_t flags)
{
    *instruction = (struct instruction){.registers = registers, .flags = flags, .next = address};
    for (;;) {
        uint8_t byte = read_code(instruction);
        instruction->opcode_at = instruction->next - 1;
        if ((flags & HFLAGS_CS64) && (byte & 0xF0) == 0x40) {
            instruction->rex = byte;
        } else {
            switch (byte) {
            case 0x66: instruction->prefixes |= PREFIX_DATA; break;
            case 0x67: instruction->prefixes |= PREFIX_ADDRESS; break;
            case 0xF2: instruction->prefixes |= PREFIX_REPNZ; break;
            case 0xF3: instruction->prefixes |= PREFIX_REPZ; break;
            case 0xF0:
                instruction->prefixes |= PREFIX_LOCK;
                instruction->lock_at = instruction->opcode_at;
                break;
            case 0x26: case 0x2E: case 0x36: case 0x3E: break;
            case 0x64: case 0x65: instruction->prefixes |= PREFIX_FS_GS; break;
            default:
                instruction->opcode = byte;
                if (byte == ESCAPE) {
                    instruction->map = ESCAPE;
                    instruction->opcode = read_code(instruction);
                    if (instruction->opcode == 0x38 || instruction->opcode == 0x3A) {
                        instruction->map = instruction->opcode;
                        instruction->opcode = read_code(instruction);
                    }
                }
                return true;
            }
            instruction->rex = 0; /* it counts only right before the opcode */
        }
        if (instruction->next - address >= INSTRUCTION_BYTES_MAX)
            return false;
    }
}

void skip_operand(struct instruction *instruction)
{
    uint8_t modrm = read_code(instruction);
    bool short_addresses = !(instruction->flags & HFLAGS_CS64)
        && !(instruction->flags & HFLAGS_CS32) == !(instruction->prefixes & PREFIX_ADDRESS);
    int base = modrm & 7;

    if (!is_memory(modrm))
        return;
    if (short_addresses) {
        instruction->next += modrm >> 6 == 2 || (modrm >> 6 == 0 && base == 6) ? 2 : modrm >> 6;
        return;
    }
    if (base == 4)
        base = read_code(instruction) & 7; /* of the SIB byte */
    instruction->next += modrm >> 6 == 2 || (modrm >> 6 == 0 && base == 5) ? 4 : modrm >> 6;
}
