/* Which pages of RAM hold translated code, and what follows for stores.
 *
 * A store to a page with code must go the slow way, where QEMU drops what was translated from the bytes that it
 * changes. The flag for it is in each entry of the software TLB (TLB_NOTDIRTY). Unicorn sets it for the virtual
 * page that the code was fetched from, and takes it away after the first store through any other mapping: code
 * written through a second mapping then stays stale. And it never takes it away where a page may be executed,
 * so most of a kernel's early stores go the slow way.
 *
 * Here a page's state is kept by its place in RAM, and this always holds: no entry for a page with code is free
 * of the flag, in any of the TLBs. New entries have it. `let_through` takes it away from an entry whose page has
 * no code, and notes the entry's address at the page. When code comes to the page (`protect`), the flag returns
 * to that entry; only where several addresses were noted are the TLBs searched. */

#include "links.h"

#include <stdlib.h>
#include <string.h>

/* A page's state: these flags, and the one address in the upper bits. */
#define HAS_CODE 1u
#define NOTED_ONE 2u
#define NOTED_SEVERAL 4u

/* Adds a stretch of RAM, before the first run; false if there is no memory or no room. */
EXPORTED int nitro_add_ram(struct machine *machine, uint64_t address, uint64_t size, char *host)
{
    if (machine->ram_count == RAM_MAX)
        return 0;
    struct ram *ram = &machine->ram[machine->ram_count];
    *ram = (struct ram){address, size, host, 0, false, calloc(size >> PAGE_SHIFT, sizeof *ram->pages)};
    if (ram->pages == NULL)
        return 0;
    machine->ram_count++;
    return 1;
}

void free_ram(struct machine *machine)
{
    for (int at = 0; at < machine->ram_count; at++)
        free(machine->ram[at].pages);
}

/* The state of the page at an address of the host; NULL if that is no RAM of the guest. */
static inline uint64_t *page_at(struct machine *machine, const char *host)
{
    for (int at = 0; at < machine->ram_count; at++) {
        struct ram *ram = &machine->ram[at];
        uint64_t offset = (uint64_t)(host - ram->host);
        if (offset < ram->size)
            return &ram->pages[offset >> PAGE_SHIFT];
    }
    return NULL;
}

/* The state of the page at an offset as QEMU counts RAM; NULL where that is not known, as there is no code. */
static uint64_t *page_at_offset(struct machine *machine, uint64_t ram_offset)
{
    for (int at = 0; at < machine->ram_count; at++) {
        struct ram *ram = &machine->ram[at];
        if (ram->offset_known && ram_offset - ram->offset < ram->size)
            return &ram->pages[(ram_offset - ram->offset) >> PAGE_SHIFT];
    }
    return NULL;
}

static inline char *host_of(const struct entry *entry)
{
    return (char *)((entry->write & ~PAGE_OFFSET) + entry->addend);
}

static void note(uint64_t *page, uint64_t address)
{
    if (*page & NOTED_SEVERAL)
        return;
    if (!(*page & NOTED_ONE))
        *page |= address | NOTED_ONE;
    else if ((*page & ~PAGE_OFFSET) != address)
        *page = (*page & HAS_CODE) | NOTED_SEVERAL;
}

bool let_through(struct machine *machine, struct entry *entry, uint64_t address)
{
    if (entry->write != (address | TLB_NOTDIRTY))
        return false;
    uint64_t *page = page_at(machine, host_of(entry));
    if (page == NULL || (*page & HAS_CODE))
        return false;
    note(page, address);
    entry->write = address;
    return true;
}

static void flag_if_of(struct machine *machine, struct entry *entry, const uint64_t *page)
{
    if (!(entry->write & PAGE_OFFSET) && page_at(machine, host_of(entry)) == page)
        entry->write |= TLB_NOTDIRTY;
}

/* Code comes to a page. */
static void protect(struct machine *machine, uint64_t *page)
{
    env *registers = machine->registers;

    if (*page & HAS_CODE)
        return;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        if (*page & NOTED_ONE) {
            flag_if_of(machine, entry_of(registers, mode, *page), page);
        } else if (*page & NOTED_SEVERAL) {
            struct entry *table = (struct entry *)TLB_TABLE(registers, mode);
            uint64_t count = (TLB_MASK(registers, mode) >> ENTRY_SHIFT) + 1;
            for (uint64_t at = 0; at < count; at++)
                flag_if_of(machine, &table[at], page);
        }
        if (*page & (NOTED_ONE | NOTED_SEVERAL)) {
            for (int at = 0; at < VICTIMS; at++)
                flag_if_of(machine, &TLB_VICTIMS(registers, mode)[at], page);
        }
    }
    *page = HAS_CODE;
}

/* Called when a block was translated from `length` bytes at `start`. */
void tlb_reset_dirty_by_vaddr_x86_64(cpu *processor, uint64_t start, uint64_t length)
{
    struct machine *machine = CPU_MACHINE(processor);

    if (machine == NULL || machine->ram_count == 0) {
        original.tlb_reset_dirty_by_vaddr_x86_64(processor, start, length);
        return;
    }
    uint64_t last = (start + (length ? length - 1 : 0)) & ~PAGE_OFFSET;
    for (uint64_t address = start & ~PAGE_OFFSET;; address += PAGE_OFFSET + 1) {
        char *host = NULL;
        uint64_t offset = original.get_page_addr_code_hostp_x86_64(machine->registers, address, (void **)&host);
        for (int at = 0; host != NULL && at < machine->ram_count; at++) {
            struct ram *ram = &machine->ram[at];
            if ((uint64_t)(host - ram->host) < ram->size && !ram->offset_known) {
                ram->offset = offset - (uint64_t)(host - ram->host);
                ram->offset_known = true;
            }
        }
        uint64_t *page = host == NULL ? NULL : page_at(machine, host);
        if (page != NULL)
            protect(machine, page);
        if (address == last)
            break;
    }
}

/* The last code of a page has gone. */
void tlb_unprotect_code_x86_64(uc *engine, uint64_t ram_offset)
{
    struct machine *machine = CPU_MACHINE(UC_CPU(engine));
    uint64_t *page = machine == NULL ? NULL : page_at_offset(machine, ram_offset);

    if (page != NULL)
        *page &= ~(uint64_t)HAS_CODE;
    original.tlb_unprotect_code_x86_64(engine, ram_offset);
}

/* All code goes. */
void tb_flush_x86_64(cpu *processor)
{
    struct machine *machine = CPU_MACHINE(processor);

    original.tb_flush_x86_64(processor);
    if (machine == NULL)
        return;
    forget_blocks(machine);
    forget_links(machine);
    for (int at = 0; at < machine->ram_count; at++) {
        for (uint64_t page = 0; page < machine->ram[at].size >> PAGE_SHIFT; page++)
            machine->ram[at].pages[page] &= ~(uint64_t)HAS_CODE;
    }
}

/* Called after a store that went the slow way. */
void tlb_set_dirty_x86_64(cpu *processor, uint64_t address)
{
    struct machine *machine = CPU_MACHINE(processor);

    if (machine == NULL || machine->ram_count == 0) {
        original.tlb_set_dirty_x86_64(processor, address);
        return;
    }
    address &= ~PAGE_OFFSET;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        let_through(machine, entry_of(machine->registers, mode, address), address);
        for (int at = 0; at < VICTIMS; at++)
            let_through(machine, &TLB_VICTIMS(machine->registers, mode)[at], address);
    }
}

/* Called for each store that goes the slow way. */
void tb_invalidate_phys_page_fast_x86_64(uc *engine, void *pages, uint64_t ram_offset, int length,
                                         uintptr_t return_address)
{
    struct machine *machine = CPU_MACHINE(UC_CPU(engine));
    const uint64_t *page = machine == NULL ? NULL : page_at_offset(machine, ram_offset);

    if (page == NULL || (*page & HAS_CODE))
        original.tb_invalidate_phys_page_fast_x86_64(engine, pages, ram_offset, length, return_address);
}

/* The slow way itself. A store that is slow for the flag alone, to a page without code, is done here; the next one
 * of translated code will be fast. QEMU's own functions always come here, as for the frame of an exception. */
#define STORE(name, type)                                                                                        \
    void helper_##name##_mmu_x86_64(env *registers, uint64_t address, type value, uint32_t operation,            \
                                    uintptr_t return_address)                                                    \
    {                                                                                                            \
        struct machine *machine = machine_of(registers);                                                         \
        if (machine != NULL && !DEMANDS_ALIGNMENT(operation)                                                     \
            && (address & PAGE_OFFSET) <= PAGE_OFFSET + 1 - sizeof value) {                                      \
            struct entry *entry = entry_of(registers, MMU_MODE(operation), address);                             \
            uint64_t start = address & ~PAGE_OFFSET;                                                             \
            if (entry->write == start || let_through(machine, entry, start)) {                                   \
                memcpy((char *)address + entry->addend, &value, sizeof value);                                   \
                return;                                                                                          \
            }                                                                                                    \
        }                                                                                                        \
        original.helper_##name##_mmu_x86_64(registers, address, value, operation, return_address);               \
    }
STORE(ret_stb, uint8_t)
STORE(le_stw, uint16_t)
STORE(le_stl, uint32_t)
STORE(le_stq, uint64_t)

/* Which region of Unicorn's a physical address belongs to: asked at every access that goes the slow way. */
void *find_memory_mapping_x86_64(uc *engine, uint64_t address)
{
    struct machine *machine = UC_CPU(engine) == NULL ? NULL : CPU_MACHINE(UC_CPU(engine));

    if (machine == NULL || !machine->running)
        return original.find_memory_mapping_x86_64(engine, address);
    uint64_t page = address >> PAGE_SHIFT;
    if (page == machine->watched_page)
        touch_page(machine);
    struct region *known = &machine->regions[page % REGIONS];
    if (known->region == NULL || known->page != page)
        *known = (struct region){page, original.find_memory_mapping_x86_64(engine, address)};
    return known->region;
}

void forget_regions(struct machine *machine)
{
    memset(machine->regions, 0, sizeof machine->regions);
}
