/* kvm-clock: the guest's system time, from a page that we write and its time stamp counter.
 *
 * The layout of both structures is the kernel's (Documentation/virt/kvm/x86/msr.rst). The rate of the counter is
 * measured, and no measurement is exact, so the page is written anew several times a second with a rate that
 * leads back to the host's monotonic clock. Time never jumps on the way, because a guest takes it as it is.
 *
 * No floating-point arithmetic here: the guest's rounding and flags are in the host's register. */

#include "clock.h"

#include <stdbool.h>
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
#define ATTEMPTS 10
#define PROMPT_TICKS 10000 /* some microseconds */

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

/* The host's counter and one of its clocks at the same moment. */
struct moment {
    uint64_t tsc;
    int64_t ns;
};

/* The host may hold us up between the looks at the two, for as long as it likes, so this looks again if it did. */
static struct moment look(clockid_t id)
{
    struct moment best = {0, 0};
    uint64_t best_ticks = UINT64_MAX;

    for (int attempt = 0; attempt < ATTEMPTS && best_ticks > PROMPT_TICKS; attempt++) {
        struct timespec now;
        uint64_t before = __rdtsc();
        clock_gettime(id, &now);
        uint64_t ticks = __rdtsc() - before;
        if (ticks < best_ticks) {
            best_ticks = ticks;
            best = (struct moment){before + ticks / 2, now.tv_sec * NS_PER_S + now.tv_nsec};
        }
    }
    return best;
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
    struct moment now = look(CLOCK_MONOTONIC);
    clock->first_tsc = now.tsc;
    clock->first_ns = now.ns;
    clock->offset_ns = -now.ns;
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
    struct moment now = look(CLOCK_MONOTONIC);
    uint64_t tsc = now.tsc + ENV_TSC_OFFSET(machine->registers);
    int64_t truth_ns = now.ns + clock->offset_ns;
    int64_t error_ns = clock->told ? truth_ns - told_at(clock, tsc) : 0;

    if (now.ns - clock->first_ns >= BASELINE_S * NS_PER_S)
        clock->multiplier = rate(now.tsc - clock->first_tsc, (uint64_t)(now.ns - clock->first_ns), clock->shift);
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
    struct clock *clock = &machine->clock;

    ENV_SYSTEM_TIME(machine->registers) = value;
    if (!(value & ENABLED))
        return;
    if (!clock->told)
        clock->awaits = LOOK_AT_ENABLING;
    refresh(machine);
}

/* A Linux guest reads the time of day early in its boot, and from then on counts timer ticks, of which there are
 * none before its timer runs, until it takes kvm-clock as its clock some 0.2 s later. What passed in between is
 * missing in its time of day. Nobody can tell it so, but the clock can jump ahead by as much.
 *
 * While it counts ticks, each one is armed for exactly one tick's length, because the guest sees no time pass in
 * between. So the first delay that differs shows that it has another clock now, which it took at some moment since
 * the last tick. When, the delay itself tells: it ends where the guest's monotonic clock is a multiple of a tick
 * (tick_init_jiffy_update). That clock began with the time since the guest enabled kvm-clock
 * (read_persistent_wall_and_boot_offset), grew by whole ticks, and has gone on like ours since the moment in
 * question, which is therefore known but for whole ticks. It is taken to lie in the first tick, because an interrupt
 * that comes late does not keep the guest from going on.
 *
 * All moments are system times of the guest, those at which it looked at the counter. When its stores and MSRs get
 * to us says less, because the host may hold us up in between. */
#define TICK_TOLERANCE 512 /* of a tick: a 512th, because the rate is corrected while it runs */
#define TICKS_MAX 20000
#define INEXACT_NS 20000 /* a little before the last tick is as good as one tick later, which leaves nobody behind */

/* What Linux is configured with, ticks per second. */
static const int64_t frequencies[] = {100, 250, 300, 1000};

static bool is_tick(int64_t delay_ns, int64_t tick_ns)
{
    int64_t difference_ns = delay_ns > tick_ns ? delay_ns - tick_ns : tick_ns - delay_ns;

    return difference_ns < tick_ns / TICK_TOLERANCE;
}

void note_look(struct machine *machine)
{
    struct clock *clock = &machine->clock;
    int64_t now_ns = told_at(clock, clock->looked_tsc);

    switch (clock->awaits) {
    case LOOK_AT_ENABLING: /* kvm_sched_clock_init: from here it counts the time since it was enabled */
        clock->enabled_ns = now_ns;
        clock->awaits = NO_LOOK;
        break;
    case LOOK_AT_DAY: /* pvclock_read_wallclock: the time of day */
        clock->day_read_ns = now_ns;
        clock->awaits = LOOK_AT_OFFSET;
        break;
    case LOOK_AT_OFFSET: /* local_clock: the monotonic clock's beginning */
        clock->monotonic_ns = now_ns - clock->enabled_ns;
        clock->counts_ticks = 1;
        clock->awaits = NO_LOOK;
        break;
    default:
        break;
    }
}

/* How long after the last tick the guest took its new clock, by which it then asked for the time. */
static int64_t counted_on_ns(const struct clock *clock, int64_t asked_ns, int64_t delay_ns)
{
    int64_t since_ns = asked_ns + delay_ns + clock->monotonic_ns - clock->armed_ns - INEXACT_NS;

    return (since_ns % clock->tick_ns + clock->tick_ns) % clock->tick_ns + INEXACT_NS;
}

static void make_up(struct machine *machine, int64_t took_ns)
{
    struct clock *clock = &machine->clock;
    /* The first tick was armed before any had passed. */
    int64_t lost_ns = took_ns - clock->day_read_ns - (clock->ticks - 1) * clock->tick_ns;

    if (clock->ticks > 1 && lost_ns > 0) {
        clock->offset_ns += lost_ns;
        clock->told = 0; /* the jump */
        refresh(machine);
    }
}

void watch_ticks(struct machine *machine, uint64_t deadline)
{
    struct clock *clock = &machine->clock;
    int64_t asked_ns, delay_ns;

    if (!clock->counts_ticks || deadline < clock->looked_tsc)
        return;
    /* It looked at the time first, to know how long to wait, and then at the counter, to add so much. */
    asked_ns = told_at(clock, clock->looked_before_tsc);
    delay_ns = scale(deadline - clock->looked_tsc, clock->multiplier, clock->shift);
    for (size_t at = 0; clock->ticks == 0 && at < sizeof frequencies / sizeof *frequencies; at++)
        if (is_tick(delay_ns, NS_PER_S / frequencies[at]))
            clock->tick_ns = NS_PER_S / frequencies[at];
    if (is_tick(delay_ns, clock->tick_ns) && clock->ticks < TICKS_MAX) {
        clock->armed_ns = told_at(clock, clock->looked_tsc);
        clock->ticks++;
        return;
    }
    if (clock->ticks > 0)
        make_up(machine, clock->armed_ns + counted_on_ns(clock, asked_ns, delay_ns));
    clock->counts_ticks = 0;
}

/* The time of day at system time 0. */
void write_wall_clock(struct machine *machine, uint64_t value)
{
    struct clock *clock = &machine->clock;
    struct wall_clock wall;
    char *where = place(machine, value, sizeof wall);

    ENV_WALL_CLOCK(machine->registers) = value;
    if (where == NULL)
        return;
    struct moment now = look(CLOCK_REALTIME);
    int64_t system_ns = clock->told ? told_at(clock, now.tsc + ENV_TSC_OFFSET(machine->registers))
                                    : look(CLOCK_MONOTONIC).ns + clock->offset_ns;
    int64_t start_ns = now.ns - system_ns;
    memcpy(&wall, where, sizeof wall);
    wall.version = (wall.version | 1) + 1;
    wall.s = (uint32_t)(start_ns / NS_PER_S);
    wall.ns = (uint32_t)(start_ns % NS_PER_S);
    memcpy(where, &wall, sizeof wall);
    clock->awaits = LOOK_AT_DAY;
    clock->counts_ticks = 0;
    clock->tick_ns = clock->ticks = 0;
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
    struct moment now = look(CLOCK_MONOTONIC);
    clock->offset_ns = told_at(clock, now.tsc + ENV_TSC_OFFSET(machine->registers)) - now.ns;
    clock->shift = shift;
    refresh(machine);
}
