/* QEMU's software TLB, as its translated code reads it: one table for each kind of access. */

#ifndef NITRO_TLB_H
#define NITRO_TLB_H

#include "machine.h"

#define PAGE_SHIFT 12
#define PAGE_OFFSET 0xFFFull
#define ENTRY_SHIFT 6

/* The kernel's accesses with SMAP, the user's, the kernel's without. */
enum { KERNEL_WITH_SMAP, USER, KERNEL, MMU_MODES };
#define ALL_TLBS 7 /* one bit for each */
#define VICTIMS 8

/* Flags in an entry's addresses. */
#define TLB_INVALID 0x800u
#define TLB_NOTDIRTY 0x400u

/* Each of the first three is the page's address with flags, or all ones where the page may not be used so. */
struct entry {
    uint64_t read, write, code, physical, addend;
    uint64_t unused[3];
};
_Static_assert(sizeof(struct entry) == 1 << ENTRY_SHIFT, "QEMU's CPUTLBEntry");

#define TLB_DIRTY(e) FIELD(uint16_t, e, -0x890) /* one bit for each table that has had entries since it was emptied */
/* Where large pages have been since the table was emptied; an INVLPG there empties it. */
#define TLB_LARGE_ADDRESS(e, mode) FIELD(uint64_t, e, -0x870 + 0x2B8 * (mode))
#define TLB_LARGE_MASK(e, mode) FIELD(uint64_t, e, -0x868 + 0x2B8 * (mode))
#define TLB_USED(e, mode) FIELD(uint64_t, e, -0x850 + 0x2B8 * (mode)) /* entries */
#define TLB_VICTIMS(e, mode) ((struct entry *)&FIELD(char, e, -0x840 + 0x2B8 * (mode)))
#define TLB_MASK(e, mode) FIELD(uint64_t, e, -0x40 + 16 * (mode)) /* entries - 1, times their size */
#define TLB_TABLE(e, mode) FIELD(char *, e, -0x38 + 16 * (mode))

/* What the slow way of an access is told of it. */
#define MMU_MODE(operation) ((int)((operation) & 15))
#define DEMANDS_ALIGNMENT(operation) ((operation) & 0x700)

static inline struct entry *entry_of(env *registers, int mode, uint64_t address)
{
    uint64_t offset = address >> (PAGE_SHIFT - ENTRY_SHIFT) & TLB_MASK(registers, mode);

    return (struct entry *)(TLB_TABLE(registers, mode) + offset);
}

/* Frees an entry for stores, of the page at an address, of the flag that makes them slow; false if its page has code,
 * or the entry has other flags or is of another page. */
bool let_through(struct machine *machine, struct entry *entry, uint64_t address);

/* Where the page of an address is, if it is a global one with code for the kernel, and the guest has used it. */
bool find_global_code(struct machine *machine, uint64_t address, uint64_t *physical);

#endif
