/* Tells its parent, on port 9001, what this enclave's clock says. Each byte that comes is a question:
 *
 * t: what time is it? The answer is 8 bytes, nanoseconds since 1970.
 * a: the time of an attestation document, milliseconds since 1970, and then what time it is, as for t.
 * s: which clock does the kernel use? The answer is a line.
 *
 * Numbers are little-endian. */
#include "linux.h"

enum { AF_VSOCK = 40, SOCK_STREAM = 1, PORT = 9001, PARENT_CID = 3, CLOCK_REALTIME = 0 };
static const unsigned long NSM_IOCTL = 0xC0200A00;

struct sockaddr_vm {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t zero[4];
};

struct message {
    const void *request;
    uint64_t request_length;
    void *response;
    uint64_t response_length;
};

static uint8_t response[0x3000];

static uint64_t now_ns(void)
{
    int64_t now[2] = {0, 0};

    syscall(SYS_clock_gettime, CLOCK_REALTIME, now);
    return (uint64_t)now[0] * 1000000000 + (uint64_t)now[1];
}

/* 0 where there is no document. */
static uint64_t attested_ms(int device)
{
    static const char request[] = "\xa1\x6b" "Attestation" "\xa3\x69user_data\xf6\x65nonce\xf6\x6apublic_key\xf6";
    static const char key[] = "\x69timestamp\x1b";
    struct message message = {request, sizeof request - 1, response, sizeof response};
    uint64_t ms = 0;

    if (syscall(SYS_ioctl, device, NSM_IOCTL, &message) < 0)
        return 0;
    for (size_t at = 0; at + sizeof key - 1 + 8 <= message.response_length; at++)
        if (starts_with((const char *)response + at, key)) {
            for (size_t byte = 0; byte < 8; byte++)
                ms = ms << 8 | response[at + sizeof key - 1 + byte];
            return ms;
        }
    return 0;
}

static long clock_source(char *line, size_t size)
{
    static const char path[] = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    long file = syscall(SYS_open, path, O_RDONLY);
    long length = file < 0 ? file : syscall(SYS_read, file, line, size);

    if (length <= 0) {
        line[0] = '\n';
        return 1;
    }
    return length;
}

int main(void)
{
    const struct sockaddr_vm parent = {.family = AF_VSOCK, .port = PORT, .cid = PARENT_CID};
    long device = syscall(SYS_open, "/dev/nsm", O_RDWR);
    long stream = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);
    char question, line[64];

    if (syscall(SYS_connect, stream, &parent, sizeof parent) < 0)
        return 1;
    while (syscall(SYS_read, stream, &question, 1) == 1) {
        uint64_t times[2] = {0, 0};

        if (question == 's') {
            syscall(SYS_write, stream, line, clock_source(line, sizeof line));
        } else if (question == 'a') {
            times[0] = attested_ms((int)device);
            times[1] = now_ns();
            syscall(SYS_write, stream, times, sizeof times);
        } else {
            times[0] = now_ns();
            syscall(SYS_write, stream, times, sizeof times[0]);
        }
    }
    return 0;
}
