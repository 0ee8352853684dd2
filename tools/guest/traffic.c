/* Moves bytes over vsock as its parent orders on port 9001: a letter, and how often as 4 bytes, little-endian.
 *
 * t: reads a byte and answers it, so many times.
 * c: connects to the parent's port 9002 and closes, so many times.
 * h: accepts a connection at its own port 9003, answers one byte there and closes, so many times.
 * o: connects to the parent's port 9002 and writes so many MiB.
 * i: connects to the parent's port 9002 and reads to the end.
 *
 * After each order it answers one byte: the letter, or ! if something failed. */
#include "linux.h"

enum { AF_VSOCK = 40, SOCK_STREAM = 1, PORT = 9001, PEER_PORT = 9002, OWN_PORT = 9003 };
enum { PARENT_CID = 3, ANY_CID = -1, BACKLOG = 128, CHUNK = 1 << 16, CHUNKS_PER_MIB = 16 };
enum { SYS_accept = 43, SYS_bind = 49, SYS_listen = 50 };

struct sockaddr_vm {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t zero[4];
};

static uint8_t chunk[CHUNK];

static long dial(uint32_t port)
{
    const struct sockaddr_vm parent = {.family = AF_VSOCK, .port = port, .cid = PARENT_CID};
    long stream = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);

    return syscall(SYS_connect, stream, &parent, sizeof parent) < 0 ? -1 : stream;
}

static bool echo(long stream)
{
    return syscall(SYS_read, stream, chunk, 1) == 1 && syscall(SYS_write, stream, chunk, 1) == 1;
}

static bool accept_one(long listener)
{
    long stream = syscall(SYS_accept, listener, 0, 0);
    bool good = stream >= 0 && echo(stream);

    syscall(SYS_close, stream);
    return good;
}

static bool connect_one(void)
{
    long stream = dial(PEER_PORT);

    return stream >= 0 && syscall(SYS_close, stream) == 0;
}

static bool write_mib(long stream, uint32_t count)
{
    for (uint64_t left = (uint64_t)count * CHUNKS_PER_MIB; left; left--)
        for (long at = 0; at < CHUNK;) {
            long written = syscall(SYS_write, stream, chunk + at, CHUNK - at);
            if (written <= 0)
                return false;
            at += written;
        }
    return true;
}

static bool move(uint8_t order, uint32_t count)
{
    long stream = dial(PEER_PORT), length = 1;
    bool good = stream >= 0;

    if (good && order == 'o')
        good = write_mib(stream, count);
    while (good && order == 'i' && length > 0)
        length = syscall(SYS_read, stream, chunk, CHUNK);
    syscall(SYS_close, stream);
    return good && length >= 0;
}

static bool obey(long control, long listener, uint8_t order, uint32_t count)
{
    bool good = true;

    if (order == 'o' || order == 'i')
        return move(order, count);
    while (good && count--)
        good = order == 't' ? echo(control) : order == 'c' ? connect_one() : accept_one(listener);
    return good;
}

int main(void)
{
    const struct sockaddr_vm own = {.family = AF_VSOCK, .port = OWN_PORT, .cid = ANY_CID};
    struct {
        uint8_t letter, count[4];
    } order;
    long listener = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);

    if (syscall(SYS_bind, listener, &own, sizeof own) < 0 || syscall(SYS_listen, listener, BACKLOG) < 0)
        return 1;
    long control = dial(PORT);
    while (syscall(SYS_read, control, &order, sizeof order) == sizeof order) {
        uint32_t count = 0;
        memcpy(&count, order.count, sizeof count);
        if (!obey(control, listener, order.letter, count))
            order.letter = '!';
        syscall(SYS_write, control, &order.letter, 1);
    }
    return 0;
}
