/* Jumps of a kernel that lead from one page straight into another.
 *
 * QEMU links a block to the next one only within a page. A page may be mapped elsewhere at any time, and then the
 * jump would still lead to what was translated from the old one. So each call of a function in another page looks
 * for its block, which is a good part of a kernel's time.
 *
 * A processor may go on with what it knows of a global page until it is told to forget that: by INVLPG, or by a
 * change of CR0 or CR4 (SDM vol. 3A, "Operations that Invalidate TLBs and Paging-Structure Caches"). A kernel's code
 * lies in such pages. So jumps to them are linked, too, and each of these events looks whether the pages are still
 * where they were. If one is not, the blocks that jump there go, and are translated anew when they are needed.
 *
 * Only the upper half of the address space counts, where kernels are. So an INVLPG for a program's page costs no
 * more than before. */

#include "links.h"

#include <string.h>

#define REGION_SHIFT 30 /* the largest page has 1 GiB, and INVLPG drops all of it */
#define EVERYWHERE UINT64_MAX
#define WHOLE_BLOCK UINT64_MAX /* for QEMU: it goes from its page's list, too */

static bool in_upper_half(uint64_t address)
{
    return (int64_t)address < 0;
}

/* The number of a page's entry, which is made if need be; 0 if there is no room. */
static unsigned number_of(struct links *links, uint64_t page)
{
    uint64_t place = (page >> PAGE_SHIFT) * HASH_FACTOR >> (64 - LINKED_PLACES_BITS);

    for (; links->places[place] != 0; place = (place + 1) % LINKED_PLACES) {
        if (links->pages[links->places[place]].address == page)
            return links->places[place];
    }
    if (links->page_count == LINKED_PAGES_MAX)
        return 0;
    links->places[place] = (uint16_t)++links->page_count;
    links->pages[links->page_count].address = page;
    return links->page_count;
}

unsigned linked_page(struct machine *machine, uint32_t flags, uint64_t address)
{
    struct links *links = &machine->links;
    uint64_t physical;

    if (!in_upper_half(address) || (flags & (HFLAGS_CS64 | HFLAGS_CPL)) != HFLAGS_CS64
        || links->count > LINKS_MAX - 2 /* a block has two ways out */ || !find_global_code(machine, address, &physical))
        return 0;
    unsigned number = number_of(links, address & ~PAGE_OFFSET);
    if (number == 0)
        return 0;
    struct linked_page *page = &links->pages[number];
    if (page->first == 0)
        page->physical = physical;
    /* Otherwise the guest has changed its tables, and has yet to say so. */
    return page->physical == physical ? number : 0;
}

void note_link(struct machine *machine, void *block, unsigned number)
{
    struct links *links = &machine->links;
    struct linked_page *page = &links->pages[number];

    links->all[++links->count] = (struct link){block, page->first};
    page->first = links->count;
}

static void check_page(struct machine *machine, struct linked_page *page)
{
    const struct links *links = &machine->links;
    uint64_t physical;

    if (find_global_code(machine, page->address, &physical) && physical == page->physical)
        return;
    for (unsigned at = page->first; at != 0; at = links->all[at].next) {
        void *block = links->all[at].block;
        if (!(BLOCK_OPTIONS(block) & BLOCK_INVALID))
            original.tb_phys_invalidate_x86_64(UC_TCG(machine->engine), block, WHOLE_BLOCK);
    }
    page->first = 0;
}

/* Look whether pages are still where they were: those in the same gigabyte as an address, or all. */
static void check_pages(struct machine *machine, uint64_t address)
{
    struct links *links = &machine->links;

    for (unsigned number = 1; number <= links->page_count; number++) {
        struct linked_page *page = &links->pages[number];
        if (page->first != 0 && (address == EVERYWHERE || (page->address ^ address) >> REGION_SHIFT == 0))
            check_page(machine, page);
    }
}

void forget_links(struct machine *machine)
{
    struct links *links = &machine->links;

    memset(links->pages, 0, (links->page_count + 1) * sizeof *links->pages);
    memset(links->places, 0, sizeof links->places);
    links->page_count = links->count = 0;
}

void check_links_at(struct machine *machine, uint64_t address)
{
    if (in_upper_half(address))
        check_pages(machine, address);
}

/* Global pages stay, if there are any. */
void check_links(struct machine *machine)
{
    if (!(ENV_CR(machine->registers, 4) & CR4_PGE))
        check_pages(machine, EVERYWHERE);
}

void cpu_x86_update_cr0_x86_64(env *registers, uint32_t value)
{
    struct machine *machine = machine_of(registers);

    original.cpu_x86_update_cr0_x86_64(registers, value);
    if (machine != NULL)
        check_pages(machine, EVERYWHERE);
}

void cpu_x86_update_cr4_x86_64(env *registers, uint32_t value)
{
    struct machine *machine = machine_of(registers);

    original.cpu_x86_update_cr4_x86_64(registers, value);
    if (machine != NULL)
        check_pages(machine, EVERYWHERE);
}
