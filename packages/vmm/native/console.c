/* The console's port, while it does nothing but print.
 *
 * A kernel prints a byte with two accesses: it reads the line status until the transmitter is empty, and writes
 * the byte. Our transmitter is always empty. While no interrupt is enabled, no input can arrive either, so once
 * the device has answered "transmitter empty, and nothing else", it will answer that again until another of its
 * registers is written (PC16550D, "UART Registers"). Until then these accesses are served here, and bytes are
 * handed on by the line, or with the next access to any device. */

#include "console.h"

#include "machine.h"

enum { DATA, INTERRUPT_ENABLE, LINE_CONTROL = 3, MODEM_CONTROL, LINE_STATUS, PORTS = 8 };

#define LINE_CONTROL_DLAB 0x80
#define MODEM_CONTROL_LOOPBACK 0x10
#define TRANSMITTER_EMPTY 0x60 /* holding register and shift register */

EXPORTED void nitro_set_console(struct machine *machine, uint32_t port)
{
    machine->console = (struct console){.port = port, .present = true};
}

static bool is_console(const struct console *console, uint32_t port, int size)
{
    return console->present && size == 1 && port - console->port < PORTS;
}

void flush_console(struct machine *machine)
{
    struct console *console = &machine->console;
    int count = console->count;

    if (count == 0)
        return;
    console->count = 0;
    print_bytes(machine, console->port, console->bytes, count);
}

bool write_console(struct machine *machine, uint32_t port, int size, uint32_t value)
{
    struct console *console = &machine->console;

    if (!is_console(console, port, size))
        return false;
    uint32_t number = port - console->port;
    if (number == DATA && console->plain) {
        console->bytes[console->count++] = (uint8_t)value;
        if (value == '\n' || console->count == CONSOLE_BYTES)
            flush_console(machine);
        return true;
    }
    console->plain = false;
    if (number == LINE_CONTROL) {
        console->line_control = (uint8_t)value;
        console->seen |= 1;
    } else if (number == MODEM_CONTROL) {
        console->modem_control = (uint8_t)value;
        console->seen |= 2;
    } else if (number == INTERRUPT_ENABLE && (console->seen & 1) && !(console->line_control & LINE_CONTROL_DLAB)) {
        console->interrupt_enable = (uint8_t)value;
        console->seen |= 4;
    }
    return false;
}

bool read_console(struct machine *machine, uint32_t port, int size, uint64_t *value)
{
    const struct console *console = &machine->console;

    if (!is_console(console, port, size) || port - console->port != LINE_STATUS || !console->plain)
        return false;
    *value = TRANSMITTER_EMPTY;
    return true;
}

/* The device itself was asked for its line status. */
void watch_console(struct machine *machine, uint32_t port, int size, uint64_t value)
{
    struct console *console = &machine->console;

    if (is_console(console, port, size) && port - console->port == LINE_STATUS)
        console->plain = value == TRANSMITTER_EMPTY && console->seen == 7 && console->interrupt_enable == 0
            && !(console->line_control & LINE_CONTROL_DLAB) && !(console->modem_control & MODEM_CONTROL_LOOPBACK);
}
