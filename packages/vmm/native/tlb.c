/* How entries come into the software TLB, and what a write to CR3 leaves there.
 *
 * QEMU forgets everything with each write to CR3: the TLB, and where the translated code of an address is. A
 * processor keeps the translations of pages that are marked global (SDM vol. 3A, "Details of TLB Use"), which
 * are all pages of a kernel's own. Linux writes CR3 with each switch of the address space, and 10,000 times while
 * it boots, because it patches its text through an address space of its own. So the pages that are not global are
 * noted when they come into the kernel's table, and CR3 drops these. The user's table is dropped as a whole.
 *
 * The page tables are walked here, because QEMU looks for each of their entries through all layers of a
 * machine's memory. Whatever is not plain is left to QEMU: faults, other modes than long mode, page tables
 * outside RAM. */

#include "links.h"

#include <string.h>

#define ENTRY_PRESENT (1u << 0)
#define ENTRY_WRITABLE (1u << 1)
#define ENTRY_USER (1u << 2)
#define ENTRY_ACCESSED (1u << 5)
#define ENTRY_DIRTY (1u << 6)
#define ENTRY_LARGE (1u << 7)
#define ENTRY_GLOBAL (1u << 8)
#define ENTRY_NO_EXECUTE (1ull << 63)
#define ENTRY_ADDRESS 0x000000FFFFFFF000ull
#define ENTRY_RESERVED 0x000FFF0000000000ull /* QEMU's physical addresses have 40 bits */
#define LARGE_RESERVED(size) (((size) - 1) & ENTRY_ADDRESS & ~0x1000ull) /* but for PAT */

#define TABLE_BITS 9
#define LEVELS 4
#define LEVELS_LARGE_MAX 2 /* a page is 1 GiB at most */
#define ADDRESS_BITS 48

/* What an access is, and what a page may be used for, as QEMU counts them. */
enum { READ, WRITE, EXECUTE };
#define MAY(access) (1 << (access))

struct page {
    uint64_t physical, size;
    int may;
    bool global;
};

static uint64_t *table_entry(struct machine *machine, uint64_t physical)
{
    for (int at = 0; at < machine->ram_count; at++) {
        struct ram *ram = &machine->ram[at];
        if (physical - ram->address < ram->size)
            return (uint64_t *)(ram->host + (physical - ram->address));
    }
    return NULL;
}

static bool is_plain(env *registers)
{
    return (ENV_CR(registers, 0) & CR0_PG) && (ENV_HFLAGS(registers) & HFLAGS_LMA)
        && (ENV_CR(registers, 4) & (CR4_PAE | CR4_LA57 | CR4_PKE)) == CR4_PAE
        && !(ENV_HFLAGS(registers) & HFLAGS_SMM) && !(ENV_HFLAGS2(registers) & HFLAGS2_NPT);
}

/* Find the page of an address, as SDM vol. 3A, "4-Level Paging" says; false where that is QEMU's to do. Entries are
 * marked as used and written; where they must not be, false if one lacks its mark. */
static bool walk(struct machine *machine, uint64_t address, int access, int mode, bool marks_entries,
                 struct page *page)
{
    env *registers = machine->registers;
    uint64_t table = ENV_CR(registers, 3) & ENTRY_ADDRESS, rights = ENTRY_WRITABLE | ENTRY_USER;
    uint64_t reserved = ENTRY_RESERVED, barred = 0, entry, *place;
    int64_t sign = (int64_t)address >> (ADDRESS_BITS - 1);
    int level = LEVELS - 1;

    if (!is_plain(registers) || mode == KERNEL_WITH_SMAP || (sign != 0 && sign != -1))
        return false;
    if (!(ENV_EFER(registers) & EFER_NXE))
        reserved |= ENTRY_NO_EXECUTE;
    for (;; level--) {
        uint64_t index = address >> (PAGE_SHIFT + TABLE_BITS * level) & ((1 << TABLE_BITS) - 1);
        place = table_entry(machine, table + index * sizeof *place);
        if (place == NULL)
            return false;
        entry = *place;
        if (!(entry & ENTRY_PRESENT) || (entry & reserved))
            return false;
        rights &= entry;
        barred |= entry & ENTRY_NO_EXECUTE;
        if (level == 0)
            break;
        if (entry & ENTRY_LARGE) {
            if (level > LEVELS_LARGE_MAX)
                return false;
            break;
        }
        if (!(entry & ENTRY_ACCESSED)) {
            if (!marks_entries)
                return false;
            *place = entry | ENTRY_ACCESSED;
        }
        table = entry & ENTRY_ADDRESS;
    }
    page->size = 1ull << (PAGE_SHIFT + TABLE_BITS * level);
    if (level > 0 && (entry & LARGE_RESERVED(page->size)))
        return false;
    if (mode == USER && !(rights & ENTRY_USER))
        return false;
    page->may = MAY(READ);
    if ((rights & ENTRY_WRITABLE) || (mode != USER && !(ENV_CR(registers, 0) & CR0_WP)))
        page->may |= MAY(WRITE);
    if (!barred && (mode == USER || !(rights & ENTRY_USER) || !(ENV_CR(registers, 4) & CR4_SMEP)))
        page->may |= MAY(EXECUTE);
    if (!(page->may & MAY(access)))
        return false;
    uint64_t marks = ENTRY_ACCESSED | (access == WRITE ? ENTRY_DIRTY : 0);
    if (~entry & marks) {
        if (!marks_entries)
            return false;
        *place = entry |= marks;
    }
    if (!(entry & ENTRY_DIRTY))
        page->may &= ~MAY(WRITE); /* so that the first store comes here, too */
    page->physical = (entry & ENTRY_ADDRESS & ~(page->size - 1)) | (address & (page->size - 1) & ~PAGE_OFFSET);
    page->global = entry & ENTRY_GLOBAL;
    return true;
}

bool find_global_code(struct machine *machine, uint64_t address, uint64_t *physical)
{
    struct page page;

    if (!walk(machine, address, EXECUTE, KERNEL, false, &page) || !page.global)
        return false;
    *physical = page.physical;
    return true;
}

/* The next write to CR3 drops this page. */
static void note_passing(struct machine *machine, uint64_t address, bool executable)
{
    struct passing *passing = &machine->passing;

    if (passing->count < PASSING_MAX)
        passing->pages[passing->count++] = address;
    else
        passing->too_many = true;
    passing->has_code |= executable;
}

static bool is_of_page(const struct entry *entry, uint64_t address)
{
    uint64_t flags = PAGE_OFFSET & ~(uint64_t)TLB_INVALID; /* an invalid entry is none */

    return (entry->read & ~flags) == address || (entry->write & ~flags) == address
        || (entry->code & ~flags) == address;
}

/* An access found no entry. Returns when there is one; leaves with an exception otherwise. */
bool x86_cpu_tlb_fill_x86_64(cpu *processor, uint64_t address, int size, int access, int mode, bool probe,
                             uintptr_t return_address)
{
    struct machine *machine = CPU_MACHINE(processor);
    uint64_t start = address & ~PAGE_OFFSET;
    struct page page;

    if (machine != NULL && walk(machine, address, access, mode, true, &page)) {
        if (mode != USER && !page.global)
            note_passing(machine, start, page.may & MAY(EXECUTE));
        if (is_of_page(entry_of(machine->registers, mode, start), start))
            TLB_USED(machine->registers, mode)--; /* QEMU counts it again */
        original.tlb_set_page_with_attrs_x86_64(processor, start, page.physical, 0, page.may, mode, page.size);
        return true;
    }
    bool found = original.x86_cpu_tlb_fill_x86_64(processor, address, size, access, mode, probe, return_address);
    if (machine != NULL && found)
        machine->passing.too_many = true; /* who knows */
    return found;
}

static void drop(env *registers, uint64_t address)
{
    struct entry *entry = entry_of(registers, KERNEL, address);

    if (is_of_page(entry, address)) {
        memset(entry, 0xFF, sizeof *entry);
        TLB_USED(registers, KERNEL)--;
    }
}

/* Whether there is so little room in the kernel's table that it should grow, which it does when it is emptied. */
static bool is_crowded(env *registers)
{
    return TLB_USED(registers, KERNEL) * 10 > ((TLB_MASK(registers, KERNEL) >> ENTRY_SHIFT) + 1) * 7;
}

static void drop_passing(struct machine *machine)
{
    env *registers = machine->registers;
    struct passing *passing = &machine->passing;

    for (int at = 0; at < passing->count; at++)
        drop(registers, passing->pages[at]);
    if (passing->count > 0)
        memset(TLB_VICTIMS(registers, KERNEL), 0xFF, VICTIMS * sizeof(struct entry));
    /* The user's accesses, and the kernel's with SMAP. It forgets where code is, too. */
    uint16_t others = TLB_DIRTY(registers) & ~(1u << KERNEL);
    if (others != 0)
        original.tlb_flush_by_mmuidx_x86_64(machine->processor, others);
    else if (passing->has_code)
        memset(CPU_CODE_CACHE(machine->processor), 0, CODE_CACHE_BYTES);
}

void cpu_x86_update_cr3_x86_64(env *registers, uint64_t value)
{
    struct machine *machine = machine_of(registers);
    uint64_t needed = CR4_PGE | CR4_PAE;

    if (machine == NULL || !machine->running || !(ENV_CR(registers, 0) & CR0_PG)
        || (ENV_CR(registers, 4) & needed) != needed || machine->passing.too_many || is_crowded(registers)) {
        original.cpu_x86_update_cr3_x86_64(registers, value);
    } else {
        ENV_CR(registers, 3) = value;
        drop_passing(machine);
    }
    if (machine != NULL) {
        machine->passing.count = 0;
        machine->passing.too_many = machine->passing.has_code = false;
        check_links(machine);
    }
}

static bool may_be_of_large_page(env *registers, uint64_t address)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        if ((address & TLB_LARGE_MASK(registers, mode)) == TLB_LARGE_ADDRESS(registers, mode))
            return true;
    }
    return false;
}

/* INVLPG drops the whole of a large page. QEMU forgets where the code is of the one small page at the address only. */
void helper_invlpg_x86_64(env *registers, uint64_t address)
{
    struct machine *machine = machine_of(registers);
    bool drops_more = machine != NULL && may_be_of_large_page(registers, address);

    original.helper_invlpg_x86_64(registers, address);
    if (drops_more)
        memset(CPU_CODE_CACHE(machine->processor), 0, CODE_CACHE_BYTES);
    if (machine != NULL)
        check_links_at(machine, address);
}

/* The slow way of a load. QEMU's own functions always take it, as IRET does for its frame. */
#define LOAD(name, type)                                                                                         \
    uint64_t helper_##name##_mmu_x86_64(env *registers, uint64_t address, uint32_t operation,                    \
                                        uintptr_t return_address)                                                \
    {                                                                                                            \
        const struct entry *entry = entry_of(registers, MMU_MODE(operation), address);                           \
        type value;                                                                                              \
        if (machine_of(registers) != NULL && entry->read == (address & ~PAGE_OFFSET)                             \
            && !DEMANDS_ALIGNMENT(operation) && (address & PAGE_OFFSET) <= PAGE_OFFSET + 1 - sizeof value) {     \
            memcpy(&value, (char *)address + entry->addend, sizeof value);                                       \
            return value;                                                                                        \
        }                                                                                                        \
        return original.helper_##name##_mmu_x86_64(registers, address, operation, return_address);               \
    }
LOAD(ret_ldub, uint8_t)
LOAD(le_lduw, uint16_t)
LOAD(le_ldul, uint32_t)
LOAD(le_ldq, uint64_t)
