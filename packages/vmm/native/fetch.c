/* Where code is: its bytes, for the translator, and what was translated from it.
 *
 * QEMU has this for each byte that it reads by way of all layers of a machine's memory. Here the software TLB
 * tells where the page is, and only what is not plain is left to QEMU: a page that is not in the TLB or no RAM,
 * and what lies in two pages. */

#include "tlb.h"

#include <string.h>

#define BLOCK_ADDRESS(b) FIELD(uint64_t, b, 0)
#define BLOCK_TRACED(b) FIELD(uint32_t, b, 28)
#define BLOCK_CODE(b) FIELD(void *, b, 32)
#define BLOCK_SECOND_PAGE(b) FIELD(uint64_t, b, 80)
#define BLOCK_BYTES 192 /* behind which its code begins, where the host's cache has lines of 64 bytes */
#define CPU_TRACED(c) FIELD(uint32_t, c, 33160)
#define CPU_CLUSTER(c) FIELD(uint32_t, c, 33172)
#define NO_SECOND_PAGE UINT64_MAX
#define OPTIONS_MASK 0xFF0EFFFFu /* of a block's; those that make it invalid are among them */

#define BLOCK_FLAGS_OF_EFLAGS 0x73100u /* AC VM RF IOPL TF */

/* Where in QEMU's table of what ran last the block of an address is. A page has 64 places there, which QEMU empties
 * when the page goes. Which of them is our own affair: QEMU scatters the blocks of a function, and here they are
 * side by side, because each line of the table has to come from far away when other code has run meanwhile. */
static inline unsigned place_in_cache(uint64_t address)
{
    uint64_t mixed = address ^ address >> 6;

    return (unsigned)(mixed >> 6 & 0xFC0) | (address >> 3 & 0x3F);
}

static inline bool is_block(cpu *processor, void *block, uint64_t address, uint64_t base, uint32_t flags,
                            uint32_t options)
{
    return block != NULL && BLOCK_ADDRESS(block) == address && BLOCK_BASE(block) == base
        && BLOCK_FLAGS(block) == flags && (BLOCK_OPTIONS(block) & OPTIONS_MASK) == options
        && BLOCK_TRACED(block) == CPU_TRACED(processor);
}

static __attribute__((noinline, cold)) void *code_elsewhere(void *block)
{
    return BLOCK_CODE(block);
}

/* The translated code of a block. It is computed, because to read where it is the processor would have to wait for
 * the block, whereas it checks the block while it fetches the code already. The compiler must not find out that both
 * are the same where this returns, or it would return what it has read. */
static inline void *code_of(void *block)
{
    char *code = (char *)block + BLOCK_BYTES, *expected = code;

    __asm__("" : "+r"(expected));
    return BLOCK_CODE(block) == expected ? code : code_elsewhere(block);
}

/* The bytes of code at an address, if they are at hand. */
static inline const char *code_at(env *registers, uint64_t address, size_t size)
{
    uint32_t hflags = ENV_HFLAGS(registers);

    if (hflags & HFLAGS_SMAP)
        return NULL;
    const struct entry *entry = entry_of(registers, (hflags & HFLAGS_CPL) == 3 ? USER : KERNEL, address);
    if (entry->code != (address & ~PAGE_OFFSET) || (address & PAGE_OFFSET) > PAGE_OFFSET + 1 - size)
        return NULL;
    return (const char *)(address + entry->addend);
}

uint8_t read_code_byte(env *registers, uint64_t address)
{
    const char *code = code_at(registers, address, 1);

    return code == NULL ? (uint8_t)original.cpu_ldub_code_x86_64(registers, address) : (uint8_t)*code;
}

#define READ_CODE(name, type, result)                                                                            \
    result cpu_##name##_code_x86_64(env *registers, uint64_t address)                                            \
    {                                                                                                            \
        const char *code = machine_of(registers) == NULL ? NULL : code_at(registers, address, sizeof(type));     \
        type value;                                                                                              \
        if (code == NULL)                                                                                        \
            return original.cpu_##name##_code_x86_64(registers, address);                                        \
        memcpy(&value, code, sizeof value);                                                                      \
        return value;                                                                                            \
    }
READ_CODE(lduw, uint16_t, uint32_t)
READ_CODE(ldl, uint32_t, uint32_t)
READ_CODE(ldq, uint64_t, uint64_t)

/* The offset of the byte as QEMU counts RAM, or all ones where it is no RAM. */
uint64_t get_page_addr_code_x86_64(env *registers, uint64_t address)
{
    struct machine *machine = machine_of(registers);
    const char *host = machine == NULL ? NULL : code_at(registers, address, 1);

    for (int at = 0; host != NULL && at < machine->ram_count; at++) {
        const struct ram *ram = &machine->ram[at];
        uint64_t offset = (uint64_t)(host - ram->host);
        if (offset < ram->size && ram->offset_known)
            return ram->offset + offset;
    }
    return original.get_page_addr_code_x86_64(registers, address);
}

/* Where a block goes on that ends with an indirect jump, or with one to another page. */
void *helper_lookup_tb_ptr_x86_64(env *registers)
{
    cpu *processor = CPU_OF(registers);

    if (machine_of(registers) == NULL)
        return original.helper_lookup_tb_ptr_x86_64(registers);
    uint64_t base = ENV_SEGMENT(registers, CS)->base, address = ENV_EIP(registers) + base;
    uint32_t flags = ENV_HFLAGS(registers) | (ENV_EFLAGS(registers) & BLOCK_FLAGS_OF_EFLAGS);
    uint32_t options = CPU_CLUSTER(processor) << 24;
    void **known = &((void **)CPU_CODE_CACHE(processor))[place_in_cache(address)];
    void *block = *known;
    if (!is_block(processor, block, address, base, flags, options)) {
        block = tb_htable_lookup_x86_64(processor, address, base, flags, options);
        if (block == NULL)
            return TCG_EPILOGUE(UC_TCG(CPU_UC(processor)));
        *known = block;
    }
    if (LEAVE_BLOCK(processor)) /* translate.c counts on this look */
        return TCG_EPILOGUE(UC_TCG(CPU_UC(processor)));
    return code_of(block);
}

/* Called where QEMU's small table, which it empties often, does not tell the block of an address. A block that was
 * found before is the right one still if the address is in the same page of RAM: whatever is written there makes
 * the block invalid, and it stays in memory until all blocks go. */
void *tb_htable_lookup_x86_64(cpu *processor, uint64_t address, uint64_t base, uint32_t flags, uint32_t options)
{
    struct machine *machine = CPU_MACHINE(processor);
    const char *host = machine == NULL ? NULL : code_at(machine->registers, address, 1);

    if (host == NULL)
        return original.tb_htable_lookup_x86_64(processor, address, base, flags, options);
    struct found *found = &machine->found[address * HASH_FACTOR >> (64 - FOUND_BITS)];
    void *block = found->block;
    if (found->host == host && is_block(processor, block, address, base, flags, options))
        return block;
    block = original.tb_htable_lookup_x86_64(processor, address, base, flags, options);
    if (block != NULL && BLOCK_SECOND_PAGE(block) == NO_SECOND_PAGE)
        *found = (struct found){host, block};
    return block;
}

void forget_blocks(struct machine *machine)
{
    memset(machine->found, 0, sizeof machine->found);
}
