/* One machine: an engine of Unicorn's, and what we keep for it. */

#ifndef NITRO_MACHINE_H
#define NITRO_MACHINE_H

#include <stddef.h>

#include "clock.h"
#include "console.h"
#include "layout.h"
#include "table.h"

/* Multiplied with it, numbers that are close together differ in their upper bits. */
#define HASH_FACTOR 0x9E3779B97F4A7C15ull

/* Why `nitro_run` returned; accel/unicorn/native_engine.py has the same numbers. HALTED is with interrupts off. */
enum ending { HALTED, WAITING, ASKED, TRIPLE_FAULT, CRASHED, PROGRAM, PAGE };

struct leaf {
    uint32_t number, eax, ebx, ecx, edx;
};

#define LEAVES_MAX 48

/* Physical addresses without RAM; RAM lies in two ranges at most, so there are three of these. */
#define HOLES_MAX 3

struct hole {
    struct machine *machine;
    uint64_t address;
};

/* Registers of 32 bits that can be read without anybody noticing, so that nobody has to be asked. */
#define WORDS_MAX 16

struct word {
    uint64_t address;
    const volatile uint32_t *value;
};

/* The board. Python's frames end before these return, so nothing of QEMU ever jumps over one. */
typedef uint64_t (*read_device)(uint64_t address, int size);
typedef void (*write_device)(uint64_t address, int size, uint64_t value);
/* Has the local APIC's timer interrupt in so many ticks of the time stamp counter; -1 disarms it. */
typedef void (*arm_deadline)(int64_t ticks);
typedef void (*write_bytes)(uint64_t port, const uint8_t *bytes, int count);

struct board {
    read_device read_port;
    write_device write_port;
    read_device read_memory;
    write_device write_memory;
    arm_deadline arm_timer;
    write_bytes write_bytes;
};

/* RAM comes in two stretches at most. */
#define RAM_MAX 2

struct ram {
    uint64_t address, size;
    char *host;
    uint64_t offset; /* of its first byte, as QEMU counts RAM, once that is known */
    bool offset_known;
    uint64_t *pages; /* code_pages.c */
};

/* What find_memory_mapping said of a page. */
#define REGIONS 64

struct region {
    uint64_t page;
    void *region;
};

/* Pages in the kernel's TLB that are not global; tlb.c. */
#define PASSING_MAX 64

struct passing {
    uint64_t pages[PASSING_MAX];
    int count;
    bool too_many; /* they are not all here */
    bool has_code; /* code may run in one of them */
};

/* Blocks by address; fetch.c. */
#define FOUND_BITS 12

struct found {
    const char *host; /* where in this process its code is */
    void *block;
};

/* Jumps into other pages; links.c. A full buffer of translated code has fewer. */
#define LINKS_MAX (1 << 18)
#define LINKED_PAGES_MAX 4095
#define LINKED_PLACES_BITS 13
#define LINKED_PLACES (1 << LINKED_PLACES_BITS)

struct link {
    void *block;   /* that jumps */
    unsigned next; /* link into the same page; 0: none */
};

struct linked_page {
    uint64_t address, physical;
    unsigned first; /* link into it; 0: none */
};

struct links { /* numbers begin with 1 */
    unsigned count, page_count;
    struct link all[LINKS_MAX + 1];
    struct linked_page pages[LINKED_PAGES_MAX + 1];
    uint16_t places[LINKED_PLACES]; /* of the pages, by address */
};

struct machine {
    uc *engine;
    cpu *processor;
    env *registers;
    struct board board;
    volatile uint32_t vector; /* of the interrupt that is offered while REQUEST_VIRQ is set */
    volatile uint8_t stop;    /* asked to stop; set until it is forgotten */
    uint8_t running;
    uint8_t triple_fault;
    uint8_t watches_programs; /* stop where a program is about to run */
    uint8_t had_programs;     /* code of programs was translated */
    uint8_t at_program;       /* stopped there, and nobody was told */
    uint8_t timer_was_armed;  /* the time stamp counter's deadline; see `watch_page` in programs.c */
    uint8_t at_page;          /* the watched page was touched, and nobody was told */
    uint64_t watched_page;    /* its number, or NO_PAGE */
    uint64_t int_rip; /* where the last software interrupt's instruction began */
    char crash[160];  /* why the machine cannot go on, or empty */
    int hole_count;
    struct hole holes[HOLES_MAX];
    int word_count; /* grows while the guest runs */
    struct word words[WORDS_MAX];
    struct clock clock;
    struct console console;
    int ram_count;
    struct ram ram[RAM_MAX];
    struct region regions[REGIONS];
    struct passing passing;
    struct found found[1 << FOUND_BITS];
    struct links links;
    int leaf_count;
    struct leaf leaves[LEAVES_MAX];
};

/* The machine that a processor belongs to; NULL for an engine that is not ours. */
static inline struct machine *machine_of(env *registers)
{
    return CPU_MACHINE(CPU_OF(registers));
}

/* Leave the loop of the processor from within it, to where `nitro_run` returns. Does not return. */
_Noreturn void leave(struct machine *machine);

/* Raise an exception at the instruction whose translation called the helper that has this return address;
 * 0 where RIP is right already. Does not return. */
_Noreturn void raise_exception(env *registers, int vector, int error_code, uintptr_t return_address);

/* Whether the host's processor has what sse.c needs. */
bool probe_sse(void);

/* Called by QEMU for an access that is not aligned as its translation demands. Does not return. */
void on_unaligned_access(cpu *processor, uint64_t address, int access, int mmu_index, uintptr_t return_address);

/* As `arm_deadline`. */
void arm_timer(struct machine *machine, int64_t ticks);

#define NO_PAGE UINT64_MAX

/* Between blocks, while REQUEST_STOP is set: whether to stop where somebody watches. */
bool stop_for_watcher(struct machine *machine);

/* The watched page is about to be touched. */
void touch_page(struct machine *machine);

/* The guest arms its timer. */
void note_timer(struct machine *machine);

/* All blocks go. */
void forget_blocks(struct machine *machine);

/* A byte of the guest's code. It may fault, as QEMU's own reading does. */
uint8_t read_code_byte(env *registers, uint64_t address);

void free_ram(struct machine *machine);

/* Mappings may have changed since the last run. */
void forget_regions(struct machine *machine);

/* Hooks the engine's exceptions; an error of Unicorn's or 0. */
int hook_exceptions(struct machine *machine);

#define RETURN_ADDRESS ((uintptr_t)__builtin_return_address(0))
#define EXPORTED __attribute__((visibility("default")))

#endif
