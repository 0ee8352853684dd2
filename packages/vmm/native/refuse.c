/* Instructions that must raise #UD, because CPUID does not offer them or because they are none. */

#include "refuse.h"

#define PREFIXES_66_F2_F3 (PREFIX_DATA | PREFIX_REPZ | PREFIX_REPNZ)

/* LOCK goes with these only, and only with an operand in memory (SDM vol. 2A, "LOCK"). */
static bool may_be_locked(struct instruction instruction)
{
    uint8_t opcode = instruction.opcode;
    unsigned groups = 0; /* one bit for each allowed value of ModRM's reg field */

    if (instruction.map == 0) {
        if (opcode < 0x38 && (opcode & 6) == 0)
            groups = 0xFF; /* ADD OR ADC SBB AND SUB XOR */
        else if (opcode == 0x80 || opcode == 0x81 || opcode == 0x83)
            groups = 0x7F; /* ... with an immediate, but not CMP */
        else if (opcode == 0x82 && !(instruction.flags & HFLAGS_CS64))
            groups = 0x7F;
        else if (opcode == 0x86 || opcode == 0x87)
            groups = 0xFF; /* XCHG */
        else if (opcode == 0xF6 || opcode == 0xF7)
            groups = 0x0C; /* NOT NEG */
        else if (opcode == 0xFE || opcode == 0xFF)
            groups = 0x03; /* INC DEC */
    } else if (instruction.map == ESCAPE) {
        switch (opcode) {
        case 0xAB: case 0xB3: case 0xBB: /* BTS BTR BTC */
        case 0xB0: case 0xB1:            /* CMPXCHG */
        case 0xC0: case 0xC1:            /* XADD */
            groups = 0xFF;
            break;
        case 0xBA: groups = 0xE0; break; /* BTS BTR BTC with an immediate */
        case 0xC7: groups = 0x02; break; /* CMPXCHG8B, CMPXCHG16B */
        }
    }
    if (groups == 0)
        return false;
    uint8_t modrm = read_code(&instruction);
    return is_memory(modrm) && (groups >> modrm_reg(modrm) & 1);
}

/* The two-byte map. */
static bool is_refused_escape(struct instruction instruction)
{
    unsigned prefixes = instruction.prefixes;
    uint8_t modrm;

    switch (instruction.opcode) {
    case 0x2B: return prefixes & (PREFIX_REPZ | PREFIX_REPNZ);   /* MOVNTSS, MOVNTSD: SSE4a */
    case 0x78: case 0x79: return prefixes & PREFIXES_66_F2_F3;   /* EXTRQ, INSERTQ: SSE4a */
    case 0xAE:
        if (!(prefixes & PREFIXES_66_F2_F3))
            return false;
        modrm = read_code(&instruction);
        return !is_memory(modrm) && modrm_reg(modrm) == 6; /* TPAUSE, UMONITOR, UMWAIT */
    case 0xC7:
        modrm = read_code(&instruction);
        return !is_memory(modrm) && modrm_reg(modrm) == 7; /* RDSEED, RDPID */
    default: return false;
    }
}

bool is_refused(struct instruction instruction)
{
    if ((instruction.prefixes & PREFIX_LOCK) && !may_be_locked(instruction))
        return true;
    if (instruction.map == ESCAPE)
        return is_refused_escape(instruction);
    if (instruction.map != 0)
        return false;
    switch (instruction.opcode) {
    case 0xC4: case 0xC5: /* VEX; in 32-bit code a memory operand makes it LES or LDS */
        if (instruction.flags & HFLAGS_CS64)
            return true;
        return (instruction.flags & HFLAGS_CS32) && !(instruction.flags & FLAG_VM)
            && !is_memory(read_code(&instruction));
    case 0x8F:            /* POP, or XOP */
    case 0xC6: case 0xC7: /* MOV, or XABORT and XBEGIN */
        return modrm_reg(read_code(&instruction)) != 0;
    default: return false;
    }
}
