/* Repeated MOVS and STOS. */

#ifndef NITRO_STRINGS_H
#define NITRO_STRINGS_H

#include "machine.h"

#define STRING_SIZE 0xF    /* of an element, bytes */
#define STRING_STORES 0x10 /* STOS, not MOVS */

/* Do rounds of a repeated instruction: as many as can be done at once, or none. It never faults. */
void repeat_string(env *registers, int operation);

#endif
