#ifndef NITRO_REFUSE_H
#define NITRO_REFUSE_H

#include "decode.h"

/* Whether the processor that CPUID describes answers this instruction with #UD, although QEMU would not. */
bool is_refused(struct instruction instruction);

/* Whether `emulate` executes it. */
bool is_emulated(struct instruction instruction);

/* Executes the instruction at RIP, which raised #UD, if it is one of ours; false otherwise. */
bool emulate(struct machine *machine);

#endif
