#ifndef NITRO_REFUSE_H
#define NITRO_REFUSE_H

#include "decode.h"

/* Whether the processor that CPUID describes answers this instruction with #UD, although QEMU would not. */
bool is_refused(struct instruction instruction);

/* Whether `emulate` executes it. */
bool is_emulated(struct instruction instruction);

/* Whether it raises the exceptions of x87 instructions before it. */
bool waits_for_x87(struct instruction instruction);

/* The MMX register that it writes. */
#define NO_MMX_REGISTER (-1)
int mmx_destination(struct instruction instruction);

/* Moves RIP to the end of an instruction, and does what an instruction's end does. Does not return if that is a
 * single step. */
void finish_instruction(env *registers, uint64_t end);

/* Executes the instruction at RIP, which raised #UD, if it is one of ours; false otherwise. */
bool emulate(struct machine *machine);

#endif
