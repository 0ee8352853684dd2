/* Jumps from one page straight into another. */

#ifndef NITRO_LINKS_H
#define NITRO_LINKS_H

#include "tlb.h"

/* Whether a block of these flags may be linked to the one at an address in another page: the number of the linked
 * page, or 0. */
unsigned linked_page(struct machine *machine, uint32_t flags, uint64_t address);

/* Such a block was translated. */
void note_link(struct machine *machine, void *block, unsigned number);

/* After an INVLPG. */
void check_links_at(struct machine *machine, uint64_t address);

/* After a write to CR3. */
void check_links(struct machine *machine);

/* All blocks go. */
void forget_links(struct machine *machine);

#endif
