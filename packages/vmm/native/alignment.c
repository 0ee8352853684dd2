/* Which SSE operands in memory must be aligned. */

#include "alignment.h"

/* One bit for each opcode of a row of sixteen. */
static bool in_rows(const uint16_t rows[16], uint8_t opcode)
{
    return rows[opcode >> 4] >> (opcode & 15) & 1;
}

/* Whether an operand in memory must be aligned (SDM vol. 2, "Exceptions Type" 1, 2 and 4 of the legacy forms).
 * Not so those that load less than 16 bytes, and MOVUPS, MOVUPD, MOVDQU, LDDQU, PCMPxSTRx. */
bool demands_alignment(const struct instruction *instruction)
{
    static const uint16_t none[16] = {
        [0x1] = 0x0030,                 /* UNPCKxPS */
        [0x2] = 0x0B00,                 /* MOVAPS, MOVNTPS */
        [0x5] = 0xFBFE & ~0x0400,       /* SQRTPS ... MAXPS without CVTPS2PD */
        [0xC] = 0x0044,                 /* CMPPS, SHUFPS */
    };
    static const uint16_t data[16] = {
        [0x1] = 0x0030,                 /* UNPCKxPD */
        [0x2] = 0x3B00,                 /* MOVAPD, MOVNTPD, CVTxPD2PI */
        [0x5] = 0xFFF2,                 /* SQRTPD, ANDPD ... MAXPD */
        [0x6] = 0xBFFF,                 /* PUNPCKxxx ... MOVDQA, without MOVD */
        [0x7] = 0xB071,                 /* PSHUFD, PCMPEQx, HADDPD, HSUBPD, MOVDQA */
        [0xC] = 0x0044,                 /* CMPPD, SHUFPD */
        [0xD] = 0xFFBF, [0xE] = 0xFFFF, /* without MOVQ */
        [0xF] = 0x7F7E,                 /* without MASKMOVDQU */
    };
    static const uint16_t repz[16] = {
        [0x1] = 0x0044,                 /* MOVSLDUP, MOVSHDUP */
        [0x5] = 0x0800,                 /* CVTTPS2DQ */
        [0x7] = 0x0001,                 /* PSHUFHW */
    };
    static const uint16_t repnz[16] = {
        [0x7] = 0x3001,                 /* PSHUFLW, HADDPS, HSUBPS */
        [0xD] = 0x0001,                 /* ADDSUBPS */
        [0xE] = 0x0040,                 /* CVTPD2DQ */
    };
    static const uint16_t data_38[16] = {
        [0x0] = 0x0FFF,                 /* SSSE3 */
        [0x1] = 0x70B1,                 /* PBLENDVB, BLENDVPx, PTEST, PABSx */
        [0x2] = 0x0F00,                 /* PMULDQ, PCMPEQQ, MOVNTDQA, PACKUSDW */
        [0x3] = 0xFF80,                 /* PCMPGTQ, PMINx, PMAXx */
        [0x4] = 0x0003,                 /* PMULLD, PHMINPOSUW */
        [0xD] = 0xF800,                 /* AES */
    };
    static const uint16_t data_3a[16] = {
        [0x0] = 0xF300,                 /* ROUNDPx, BLENDPx, PBLENDW, PALIGNR */
        [0x4] = 0x0017,                 /* DPPx, MPSADBW, PCLMULQDQ */
        [0xD] = 0x8000,                 /* AESKEYGENASSIST */
    };
    uint8_t opcode = instruction->opcode;

    switch (instruction->map) {
    case 0x0F:
        if (instruction->prefixes & PREFIX_DATA)
            return in_rows(data, opcode);
        if (instruction->prefixes & PREFIX_REPZ)
            return in_rows(repz, opcode);
        return in_rows(instruction->prefixes & PREFIX_REPNZ ? repnz : none, opcode);
    case 0x38: return (instruction->prefixes & PREFIX_DATA) && in_rows(data_38, opcode);
    case 0x3A: return (instruction->prefixes & PREFIX_DATA) && in_rows(data_3a, opcode);
    default: return false;
    }
}
