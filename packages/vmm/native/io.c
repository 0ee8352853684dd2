/* Ports and memory-mapped registers: the checks that Unicorn leaves out, and the way to the devices. */

#include "sse.h"

#define TSS_LIMIT_MIN 103
#define TSS_IO_MAP 0x66

/* QEMU's number of the address space that the kernel's own accesses use: with SMAP or without. */
static int kernel_mmu_index(env *registers)
{
    bool smap = ENV_HFLAGS(registers) & HFLAGS_SMAP;
    bool lifted = (ENV_HFLAGS(registers) & HFLAGS_CPL) < 3 && (ENV_EFLAGS(registers) & FLAG_AC);

    return smap && !lifted ? 0 : 2;
}

/* #GP unless IOPL or the TSS's bitmap allows the access (SDM vol. 1, "I/O Permission Bit Map"). */
static void check_permission(env *registers, uint32_t port, int size, uintptr_t return_address)
{
    uint64_t flags = ENV_EFLAGS(registers);
    const struct segment *tss = ENV_TR(registers);

    if (!(ENV_CR(registers, 0) & CR0_PE))
        return;
    if (!(flags & FLAG_VM) && (ENV_HFLAGS(registers) & HFLAGS_CPL) <= FLAGS_IOPL(flags))
        return;
    if ((tss->flags & SEGMENT_P) && TSS_32_BUSY_OR_NOT(tss->flags) && tss->limit >= TSS_LIMIT_MIN) {
        int mmu = kernel_mmu_index(registers);
        uint32_t at = original.cpu_lduw_mmuidx_ra_x86_64(registers, tss->base + TSS_IO_MAP, mmu, return_address);
        at += port >> 3;
        if (at + 1 <= tss->limit) { /* the processor always reads two bytes */
            uint32_t map = original.cpu_lduw_mmuidx_ra_x86_64(registers, tss->base + at, mmu, return_address);
            if (!(map >> (port & 7) & ((1u << size) - 1)))
                return;
        }
    }
    raise_exception(registers, GENERAL_PROTECTION, 0, return_address);
}

/* Python's arithmetic must neither see the guest's rounding nor leave flags behind. */
static uint64_t read_board(struct machine *machine, read_device read, uint64_t address, int size)
{
    flush_console(machine);
    leave_mxcsr(machine->registers);
    uint64_t value = read(address, size);
    enter_floating_point(machine->registers);
    return value;
}

static void write_board(struct machine *machine, write_device write, uint64_t address, int size, uint64_t value)
{
    flush_console(machine);
    leave_mxcsr(machine->registers);
    write(address, size, value);
    enter_floating_point(machine->registers);
}

void arm_timer(struct machine *machine, int64_t ticks)
{
    flush_console(machine);
    leave_mxcsr(machine->registers);
    machine->board.arm_timer(ticks);
    enter_floating_point(machine->registers);
}

void print_bytes(struct machine *machine, uint32_t port, const uint8_t *bytes, int count)
{
    leave_mxcsr(machine->registers);
    machine->board.write_bytes(port, bytes, count);
    if (machine->running)
        enter_floating_point(machine->registers);
}

static uint64_t in(struct machine *machine, uint32_t port, int size, uintptr_t return_address)
{
    uint64_t value;

    check_permission(machine->registers, port, size, return_address);
    if (!read_console(machine, port, size, &value)) {
        value = read_board(machine, machine->board.read_port, port, size);
        watch_console(machine, port, size, value);
    }
    return value;
}

static void out(struct machine *machine, uint32_t port, int size, uint32_t value, uintptr_t return_address)
{
    check_permission(machine->registers, port, size, return_address);
    if (!write_console(machine, port, size, value))
        write_board(machine, machine->board.write_port, port, size, value);
}

#define IN(letter, size, type)                                                                                   \
    uint64_t helper_in##letter##_x86_64(env *registers, uint32_t port)                                           \
    {                                                                                                            \
        struct machine *machine = machine_of(registers);                                                         \
        if (machine == NULL)                                                                                     \
            return original.helper_in##letter##_x86_64(registers, port);                                         \
        return (type)in(machine, port, size, RETURN_ADDRESS);                                                    \
    }
#define OUT(letter, size, type)                                                                                  \
    void helper_out##letter##_x86_64(env *registers, uint32_t port, uint32_t value)                              \
    {                                                                                                            \
        struct machine *machine = machine_of(registers);                                                         \
        if (machine == NULL)                                                                                     \
            original.helper_out##letter##_x86_64(registers, port, value);                                        \
        else                                                                                                     \
            out(machine, port, size, (type)value, RETURN_ADDRESS);                                               \
    }

IN(b, 1, uint8_t)
IN(w, 2, uint16_t)
IN(l, 4, uint32_t)
OUT(b, 1, uint8_t)
OUT(w, 2, uint16_t)
OUT(l, 4, uint32_t)

static uint64_t load(uc *engine, uint64_t offset, unsigned size, void *data)
{
    const struct hole *hole = data;
    struct machine *machine = hole->machine;
    uint64_t address = hole->address + offset;
    int count = size == 4 ? __atomic_load_n(&machine->word_count, __ATOMIC_ACQUIRE) : 0;

    (void)engine;
    for (int at = 0; at < count; at++)
        if (machine->words[at].address == address)
            return *machine->words[at].value;
    return read_board(machine, machine->board.read_memory, address, (int)size);
}

static void store(uc *engine, uint64_t offset, unsigned size, uint64_t value, void *data)
{
    const struct hole *hole = data;

    (void)engine;
    write_board(hole->machine, hole->machine->board.write_memory, hole->address + offset, (int)size, value);
}

/* Has the guest read four bytes at this physical address from `value`, which outlives the machine; one thread at
 * a time. Without room for one more it does nothing, and the board is asked as before. */
EXPORTED void nitro_share_word(struct machine *machine, uint64_t address, const uint32_t *value)
{
    if (machine->word_count == WORDS_MAX)
        return;
    machine->words[machine->word_count] = (struct word){address, value};
    __atomic_store_n(&machine->word_count, machine->word_count + 1, __ATOMIC_RELEASE);
}

/* Sends accesses to these physical addresses to the board; NULL, or what went wrong. */
EXPORTED const char *nitro_map_hole(struct machine *machine, uint64_t address, uint64_t size)
{
    if (machine->hole_count == HOLES_MAX)
        return "too many holes";
    struct hole *hole = &machine->holes[machine->hole_count++];
    hole->machine = machine;
    hole->address = address;
    int error = original.uc_mmio_map(machine->engine, address, size, (void *)load, hole, (void *)store, hole);
    return error == 0 ? NULL : original.uc_strerror(error);
}
