/* Repeated MOVS and STOS: as much as lies in one page is done at once.
 *
 * QEMU makes a loop of each, with a load and a store by way of the software TLB for every byte or word. Linux copies
 * and clears its pages with them. So the loop's beginning has a call to here. What is done here is a number of
 * rounds of the loop, and the registers say so. The loop does the rest: what lies in two pages, what goes down, what
 * is not in the TLB yet, devices, pages with code. It also raises the exceptions. */

#include "tlb.h"

#include <string.h>

#include "strings.h"

/* How many elements are left in the page from this address on. */
static uint64_t elements_in_page(uint64_t address, uint64_t size)
{
    return (PAGE_OFFSET + 1 - (address & PAGE_OFFSET)) / size;
}

static uint64_t least(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

static bool is_one_byte(uint64_t value, uint64_t size)
{
    uint64_t mask = size == 8 ? UINT64_MAX : (1ull << 8 * size) - 1;

    return (value & mask) == ((value & 0xFF) * 0x0101010101010101ull & mask);
}

static void store(char *target, uint64_t value, uint64_t size, uint64_t count)
{
    if (is_one_byte(value, size)) {
        memset(target, (int)(value & 0xFF), size * count);
        return;
    }
    for (uint64_t at = 0; at < count; at++)
        memcpy(target + at * size, &value, size);
}

/* Upwards one after the other: where the target begins within the source, each element comes from what was stored
 * before. */
static void move(char *target, const char *source, uint64_t size, uint64_t count)
{
    if ((uintptr_t)(target - source) >= size * count) {
        memmove(target, source, size * count);
        return;
    }
    for (uint64_t at = 0; at < count; at++)
        memmove(target + at * size, source + at * size, size);
}

void repeat_string(env *registers, int operation)
{
    struct machine *machine = machine_of(registers);
    uint64_t *general = ENV_REGS(registers), size = (uint64_t)(operation & STRING_SIZE), count = general[RCX];
    uint64_t source = general[RSI], target = general[RDI];
    int mode = (ENV_HFLAGS(registers) & HFLAGS_CPL) == 3 ? USER : KERNEL;

    if (count == 0 || ENV_DF(registers) != 1 || (ENV_HFLAGS(registers) & HFLAGS_SMAP))
        return;
    struct entry *to = entry_of(registers, mode, target);
    if (to->write != (target & ~PAGE_OFFSET) && !let_through(machine, to, target & ~PAGE_OFFSET))
        return;
    count = least(count, elements_in_page(target, size));
    if (operation & STRING_STORES) {
        store((char *)target + to->addend, general[RAX], size, count);
    } else {
        const struct entry *from = entry_of(registers, mode, source);
        if (from->read != (source & ~PAGE_OFFSET))
            return;
        count = least(count, elements_in_page(source, size));
        move((char *)target + to->addend, (const char *)source + from->addend, size, count);
        general[RSI] = source + size * count;
    }
    general[RDI] = target + size * count;
    general[RCX] -= count;
}
