/* The beginning of an instruction: prefixes and opcode (SDM vol. 2A, "Instruction Format"). */

#ifndef NITRO_DECODE_H
#define NITRO_DECODE_H

#include "machine.h"

#define PREFIX_DATA 0x01u
#define PREFIX_REPZ 0x02u
#define PREFIX_REPNZ 0x04u
#define PREFIX_LOCK 0x08u
#define PREFIX_ADDRESS 0x10u
#define PREFIX_FS_GS 0x20u
#define REX_W 8u
#define REX_R 4u
#define REX_B 1u
#define INSTRUCTION_BYTES_MAX 15
#define ESCAPE 0x0F

struct instruction {
    env *registers;
    uint32_t flags;     /* QEMU's, of the mode that the code runs in */
    uint64_t lock_at;   /* the address of the last LOCK prefix */
    uint64_t opcode_at; /* the address of the first byte behind the prefixes */
    uint64_t next;      /* the address of the next byte to be read */
    unsigned prefixes;
    uint8_t rex;
    uint8_t map;        /* 0x0F, 0x38 or 0x3A; 0 for the one-byte map */
    uint8_t opcode;
};

/* Reads the next byte. It may fault, as QEMU's own reading does, if it lies on a page that is not there. */
static inline uint8_t read_code(struct instruction *instruction)
{
    return read_code_byte(instruction->registers, instruction->next++);
}

/* Reads prefixes and opcode; false if there are too many prefixes. Reads no byte behind the opcode. */
bool decode(struct instruction *instruction, env *registers, uint64_t address, uint32_t flags);

/* Reads the rest of an instruction that has a ModRM byte and no immediate: ModRM, SIB and displacement. */
void skip_operand(struct instruction *instruction);

static inline int modrm_reg(uint8_t modrm)
{
    return modrm >> 3 & 7;
}

static inline bool is_memory(uint8_t modrm)
{
    return modrm < 0xC0;
}

#endif
