#ifndef NITRO_CLOCK_H
#define NITRO_CLOCK_H

#include <stdint.h>

struct machine;

/* What a guest with kvm-clock was told, and what the host's clock says. Times are in nanoseconds. */
struct clock {
    uint64_t tsc_hz;
    int64_t offset_ns;                /* from the host's monotonic clock to the guest's system time */
    uint64_t first_tsc;               /* a long time ago, to measure the rate by */
    int64_t first_ns;
    uint64_t told_tsc;                /* what was told last: this time at this count, */
    int64_t told_ns;
    uint32_t multiplier;              /* and how it goes on from there */
    int8_t shift;
    uint8_t told;
    /* What tells how much time the guest has lost while its kernel counted ticks. All are system times. */
    uint64_t looked_tsc;              /* what the guest has read from its counter last, */
    uint64_t looked_before_tsc;       /* and before that */
    enum { NO_LOOK, LOOK_AT_ENABLING, LOOK_AT_DAY, LOOK_AT_OFFSET } awaits; /* what it reads it for next */
    int64_t enabled_ns;               /* when it enabled this clock, first */
    int64_t day_read_ns;              /* when it read the time of day */
    int64_t monotonic_ns;             /* where its monotonic clock began */
    uint8_t counts_ticks;             /* whether it has no better clock yet */
    int64_t tick_ns;                  /* the length of a tick */
    int64_t ticks;                    /* how many have been armed */
    int64_t armed_ns;                 /* when the last one was */
};

/* The guest's time stamp counter. */
uint64_t read_tsc(struct machine *machine);

/* The guest wrote MSR_KVM_SYSTEM_TIME or MSR_KVM_WALL_CLOCK. */
void write_system_time(struct machine *machine, uint64_t value);
void write_wall_clock(struct machine *machine, uint64_t value);

/* Called often, between blocks: tells the guest anew from time to time. */
void refresh_clock(struct machine *machine);

/* The guest has read its counter, and something is awaited of it. */
void note_look(struct machine *machine);

/* The guest armed its timer, to fire at this count. */
void watch_ticks(struct machine *machine, uint64_t deadline);

/* Before a run: goes on with what a restored guest was told in its former life. */
void resume_clock(struct machine *machine);

#endif
