/* Which instructions wait for the x87: they raise the exceptions of those before them (SDM vol. 1, "x87 FPU
 * Exception Handling"). */

#include "x87.h"
#include "refuse.h"

/* FNENI, FNDISI, FNCLEX, FNINIT, FNSETPM, FNSTENV, FNSTCW, FNSAVE, FNSTSW do not. */
static bool is_control(uint8_t opcode, uint8_t modrm)
{
    int reg = modrm_reg(modrm);

    switch (opcode) {
    case 0xD9: return is_memory(modrm) && reg >= 6;
    case 0xDB: return !is_memory(modrm) && reg == 4;
    case 0xDD: return is_memory(modrm) && reg >= 6;
    case 0xDF: return modrm == 0xE0;
    default: return false;
    }
}

/* MMX's registers are the x87's. One bit for each opcode of a row of sixteen. */
static bool is_mmx(const struct instruction *instruction)
{
    static const uint16_t none[16] = {
        [0x2] = 0x3400,                 /* CVTPI2PS, CVTTPS2PI, CVTPS2PI */
        [0x6] = 0xCFFF, [0x7] = 0xC0FF, /* PUNPCKLBW ... EMMS, MOVD, MOVQ */
        [0xC] = 0x0030,                 /* PINSRW, PEXTRW */
        [0xD] = 0xFFBE, [0xE] = 0xFFBF, [0xF] = 0x7FFE,
    };
    static const uint16_t others[16] = {[0x2] = 0x3400}; /* CVTPI2PD, CVTTPD2PI, CVTPD2PI */
    uint8_t opcode = instruction->opcode;
    unsigned prefixes = instruction->prefixes & (PREFIX_DATA | PREFIX_REPZ | PREFIX_REPNZ);

    if (instruction->map == 0x38)
        return prefixes == 0 && (opcode < 0x0C || (opcode >= 0x1C && opcode < 0x1F));
    if (instruction->map == 0x3A)
        return prefixes == 0 && opcode == 0x0F;
    if (instruction->map != ESCAPE)
        return false;
    if (prefixes == 0)
        return none[opcode >> 4] >> (opcode & 15) & 1;
    if (prefixes == PREFIX_DATA)
        return others[opcode >> 4] >> (opcode & 15) & 1;
    return opcode == 0xD6; /* MOVQ2DQ, MOVDQ2Q */
}

/* The groups of shifts by an immediate, and stores, have it in ModRM's other field. */
int mmx_destination(struct instruction instruction)
{
    static const uint16_t other_destinations[16] = {
        [0x2] = 0x0400, [0x7] = 0x4080, /* CVTPI2PS; EMMS, MOVD */
        [0xC] = 0x0020, [0xD] = 0x0080, /* PEXTRW; PMOVMSKB */
        [0xE] = 0x0080, [0xF] = 0x0080, /* MOVNTQ; MASKMOVQ */
    };
    uint8_t opcode = instruction.opcode;

    if (!is_mmx(&instruction))
        return NO_MMX_REGISTER;
    if (instruction.map == ESCAPE
        && ((other_destinations[opcode >> 4] >> (opcode & 15) & 1)
            || (opcode == 0xD6 && (instruction.prefixes & PREFIX_REPZ)))) /* MOVQ2DQ */
        return NO_MMX_REGISTER;
    uint8_t modrm = read_code(&instruction);
    if (instruction.map != ESCAPE || !((opcode >= 0x71 && opcode <= 0x73) || opcode == 0x7F))
        return modrm_reg(modrm);
    return is_memory(modrm) ? NO_MMX_REGISTER : modrm & 7;
}

bool waits_for_x87(struct instruction instruction)
{
    if (instruction.map == 0 && (instruction.opcode & 0xF8) == 0xD8)
        return !is_control(instruction.opcode, read_code(&instruction));
    return is_mmx(&instruction); /* FWAIT looks by itself */
}
