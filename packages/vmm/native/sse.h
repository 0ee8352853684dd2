/* How the guest's MXCSR lives in the host's. */

#ifndef NITRO_SSE_H
#define NITRO_SSE_H

#include <immintrin.h>

#include "machine.h"

#define MXCSR_FLAGS 0x3Fu
#define MXCSR_MASKS 0x1F80u
#define MXCSR_MASK_SHIFT 7
#define MXCSR_RESERVED 0xFFFF0000u
#define MXCSR_RESET 0x1F80u

/* Translated code writes registers in halves, and a processor cannot forward two stores to one load: so this
 * loads halves, too. */
static inline __m128i load_halves(const void *place)
{
    return _mm_castpd_si128(_mm_loadh_pd(_mm_load_sd(place), (const double *)place + 1));
}

/* While the guest runs, the host's register has its rounding, its treatment of denormals and its flags; no
 * exception is ever unmasked there. */
static inline void enter_mxcsr(env *registers)
{
    _mm_setcsr((ENV_MXCSR(registers) & ~MXCSR_RESERVED) | MXCSR_MASKS);
}

/* The guest goes on after code of others', which may have left flags in the x87. */
static inline void enter_floating_point(env *registers)
{
    __asm__ volatile("fninit");
    enter_mxcsr(registers);
}

/* Have `ENV_MXCSR` show the flags that were raised meanwhile. */
static inline void collect_mxcsr(env *registers)
{
    ENV_MXCSR(registers) |= _mm_getcsr() & MXCSR_FLAGS;
}

static inline void leave_mxcsr(env *registers)
{
    collect_mxcsr(registers);
    _mm_setcsr(MXCSR_RESET);
}

#endif
