#ifndef NITRO_CONSOLE_H
#define NITRO_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

struct machine;

#define CONSOLE_BYTES 256

struct console {
    uint32_t port; /* the first of its eight */
    bool present;
    bool plain;    /* it only prints, and its line status never changes */
    uint8_t seen;  /* which of the three below were written: only then they are known */
    uint8_t line_control, modem_control, interrupt_enable;
    int count;     /* of bytes that wait */
    uint8_t bytes[CONSOLE_BYTES];
};

/* Hands on the bytes that wait. */
void flush_console(struct machine *machine);

/* Serve an access without the device; false if the device must be asked. */
bool write_console(struct machine *machine, uint32_t port, int size, uint32_t value);
bool read_console(struct machine *machine, uint32_t port, int size, uint64_t *value);

/* The device was asked, and answered this. */
void watch_console(struct machine *machine, uint32_t port, int size, uint64_t value);

/* Writes bytes to a port of the board, one after the other. */
void print_bytes(struct machine *machine, uint32_t port, const uint8_t *bytes, int count);

#endif
