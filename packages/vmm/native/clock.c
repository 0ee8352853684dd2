/* kvm-clock: the guest's system time, from a page that we write and its time stamp counter.
 *
 * The layout of both structures is the kernel's (Documentation/virt/kvm/x86/msr.rst). The rate of the counter is
 * measured, and no measurement is exact, so the page is written anew several times a second with a rate that
 * leads back to the host's monotonic clock. Time never jumps on the way, because a guest takes it as it is.
 *
 * No floating-point arithmetic here: the guest's rounding and flags are in the host's register. */

#include "clock.h"

#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "machine.h"

#define NS_PER_S 1000000000ll
#define ENABLED 1u
#define FLAG_STABLE 1u
#define REFRESHES_PER_S 4
#define BASELINE_S 1 /* a rate measured over less is worse than the one that CPUID tells */
#define STEP_NS 10000000ll  /* the guest's time jumps forward by more than this, as after a suspend of the host */
#define SLEW_NS_MAX 1000000ll /* per second */

struct system_time {
    uint32_t version, unused;
    uint64_t tsc;
    uint64_t ns;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags;
    uint8_t unused_too[2];
};
_Static_assert(sizeof(struct system_time) == 32, "pvclock_vcpu_time_info");

struct wall_clock {
    uint32_t version, s, ns;
};

static int64_t read_clock(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

uint64_t read_tsc(struct machine *machine)
{
    return __rdtsc() + ENV_TSC_OFFSET(machine->registers);
}

/* The host's counter, which the guest's is, but for an offset. */
EXPORTED uint64_t nitro_read_host_tsc(void)
{
    return __rdtsc();
}

/* How the guest computes. */
static int64_t scale(uint64_t ticks, uint32_t multiplier, int shift)
{
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    return (int64_t)((unsigned __int128)ticks * multiplier >> 32);
}

static int64_t told_at(const struct clock *clock, uint64_t tsc)
{
    return clock->told_ns + scale(tsc - clock->told_tsc, clock->multiplier, clock->shift);
}

/* The multiplier that makes `ns` of `ticks`, near enough to 2**32 to lose nothing. */
static uint32_t rate(uint64_t ticks, uint64_t ns, int shift)
{
    unsigned __int128 shifted = shift < 0 ? (unsigned __int128)ticks >> -shift : (unsigned __int128)ticks << shift;
    unsigned __int128 multiplier = ((unsigned __int128)ns << 32) / (shifted ? shifted : 1);

    return multiplier > UINT32_MAX ? UINT32_MAX : (uint32_t)multiplier;
}

EXPORTED void nitro_set_tsc_frequency(struct machine *machine, uint64_t tsc_hz)
{
    struct clock *clock = &machine->clock;

    *clock = (struct clock){.tsc_hz = tsc_hz};
    /* 2**shift ticks of the shifted counter are a little more than one nanosecond. */
    while (tsc_hz >> -clock->shift > 2 * NS_PER_S)
        clock->shift--;
    while (tsc_hz << clock->shift <= NS_PER_S)
        clock->shift++;
    clock->multiplier = rate(tsc_hz, NS_PER_S, clock->shift);
    clock->first_tsc = __rdtsc();
    clock->first_ns = read_clock(CLOCK_MONOTONIC);
    clock->offset_ns = -clock->first_ns;
}

static char *place(struct machine *machine, uint64_t address, uint64_t size)
{
    for (int at = 0; at < machine->ram_count; at++) {
        struct ram *ram = &machine->ram[at];
        if (address >= ram->address && address - ram->address <= ram->size - size)
            return ram->host + (address - ram->address);
    }
    return NULL;
}

/* The guest stands still, so it sees the structure before or after. */
static void tell(struct machine *machine)
{
    struct clock *clock = &machine->clock;
    struct system_time time;
    char *where = place(machine, ENV_SYSTEM_TIME(machine->registers) & ~(uint64_t)ENABLED, sizeof time);

    if (where == NULL)
        return;
    memcpy(&time, where, sizeof time);
    time.version = (time.version | 1) + 1;
    time.tsc = clock->told_tsc;
    time.ns = (uint64_t)clock->told_ns;
    time.multiplier = clock->multiplier;
    time.shift = clock->shift;
    time.flags = FLAG_STABLE;
    memcpy(where, &time, sizeof time);
}

static void refresh(struct machine *machine)
{
    struct clock *clock = &machine->clock;
    int64_t now_ns = read_clock(CLOCK_MONOTONIC);
    uint64_t host_tsc = __rdtsc(), tsc = host_tsc + ENV_TSC_OFFSET(machine->registers);
    int64_t truth_ns = now_ns + clock->offset_ns;
    int64_t error_ns = clock->told ? truth_ns - told_at(clock, tsc) : 0;

    if (now_ns - clock->first_ns >= BASELINE_S * NS_PER_S)
        clock->multiplier = rate(host_tsc - clock->first_tsc, (uint64_t)(now_ns - clock->first_ns), clock->shift);
    else
        clock->multiplier = rate(clock->tsc_hz, NS_PER_S, clock->shift);
    if (!clock->told || error_ns > STEP_NS)
        error_ns = 0;
    else
        truth_ns -= error_ns; /* go on from what was told */
    if (error_ns > SLEW_NS_MAX)
        error_ns = SLEW_NS_MAX;
    if (error_ns < -SLEW_NS_MAX)
        error_ns = -SLEW_NS_MAX;
    clock->multiplier += (int64_t)clock->multiplier * error_ns / NS_PER_S;
    clock->told_tsc = tsc;
    clock->told_ns = truth_ns;
    clock->told = 1;
    tell(machine);
}

void write_system_time(struct machine *machine, uint64_t value)
{
    ENV_SYSTEM_TIME(machine->registers) = value;
    if (value & ENABLED)
        refresh(machine);
}

/* A Linux guest reads the time of day early in its boot, and from then on counts timer ticks, of which there are
 * none before its timer runs, until it takes kvm-clock as its clock some 0.2 s later. What passed in between is
 * missing in its time of day. Nobody can tell it so, but the clock can jump ahead by as much.
 *
 * While it counts ticks, each one is armed for exactly one tick's length, because the guest sees no time pass in
 * between. So the first delay that differs shows that it has another clock now. It took it at some moment within
 * the last tick. */
#define TICK_TOLERANCE 256 /* of a tick: a 256th */
#define TICKS_MAX 20000

void watch_ticks(struct machine *machine, uint64_t counts)
{
    struct clock *clock = &machine->clock;
    int64_t now_ns, delay_ns, difference_ns;

    if (clock->day_read_ns == 0)
        return;
    now_ns = read_clock(CLOCK_MONOTONIC);
    delay_ns = scale(counts, clock->multiplier, clock->shift);
    if (clock->tick_ns == 0)
        clock->tick_ns = delay_ns;
    difference_ns = delay_ns > clock->tick_ns ? delay_ns - clock->tick_ns : clock->tick_ns - delay_ns;
    if (difference_ns < clock->tick_ns / TICK_TOLERANCE && clock->ticks < TICKS_MAX) {
        clock->lost_ns = now_ns - clock->day_read_ns - clock->ticks * clock->tick_ns;
        clock->ticks++;
        return;
    }
    if (clock->ticks > 1 && clock->ticks < TICKS_MAX && clock->lost_ns > 0) {
        clock->offset_ns += clock->lost_ns + clock->tick_ns / 2;
        clock->told = 0; /* the jump */
        refresh(machine);
    }
    clock->day_read_ns = 0;
}

/* The time of day at system time 0. */
void write_wall_clock(struct machine *machine, uint64_t value)
{
    struct wall_clock wall;
    char *where = place(machine, value, sizeof wall);

    ENV_WALL_CLOCK(machine->registers) = value;
    if (where == NULL)
        return;
    int64_t system_ns = machine->clock.told ? told_at(&machine->clock, read_tsc(machine))
                                            : read_clock(CLOCK_MONOTONIC) + machine->clock.offset_ns;
    int64_t start_ns = read_clock(CLOCK_REALTIME) - system_ns;
    memcpy(&wall, where, sizeof wall);
    wall.version = (wall.version | 1) + 1;
    wall.s = (uint32_t)(start_ns / NS_PER_S);
    wall.ns = (uint32_t)(start_ns % NS_PER_S);
    memcpy(where, &wall, sizeof wall);
    machine->clock.day_read_ns = read_clock(CLOCK_MONOTONIC);
    machine->clock.tick_ns = machine->clock.ticks = machine->clock.lost_ns = 0;
}

void refresh_clock(struct machine *machine)
{
    struct clock *clock = &machine->clock;

    if ((ENV_SYSTEM_TIME(machine->registers) & ENABLED)
        && read_tsc(machine) - clock->told_tsc > clock->tsc_hz / REFRESHES_PER_S)
        refresh(machine);
}

void resume_clock(struct machine *machine)
{
    struct clock *clock = &machine->clock;
    struct system_time time;
    uint64_t value = ENV_SYSTEM_TIME(machine->registers);
    const char *where;

    if (clock->told || !(value & ENABLED) || (where = place(machine, value & ~(uint64_t)ENABLED, sizeof time)) == NULL)
        return;
    memcpy(&time, where, sizeof time);
    if (time.shift < -31 || time.shift > 31)
        return; /* the guest has written there */
    clock->told_tsc = time.tsc;
    clock->told_ns = (int64_t)time.ns;
    clock->multiplier = time.multiplier;
    int8_t shift = clock->shift;
    clock->shift = time.shift;
    clock->offset_ns = told_at(clock, read_tsc(machine)) - read_clock(CLOCK_MONOTONIC);
    clock->shift = shift;
    refresh(machine);
}
