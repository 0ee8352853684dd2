#ifndef NITRO_ALIGNMENT_H
#define NITRO_ALIGNMENT_H

#include "decode.h"

/* Whether an operand in memory must be aligned to 16 bytes, or the instruction raises #GP. */
bool demands_alignment(const struct instruction *instruction);

#endif
