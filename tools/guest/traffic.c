/* Moves bytes over vsock as its parent orders on port 9001: a letter, and how often as 4 bytes, little-endian.
 *
 * t: reads a byte and answers it, so many times.
 * c: connects to the parent's port 9002 and closes, so many times.
 * a: accepts a connection at its own port 9003 and closes it at its end, so many times.
 * h: accepts one, answers one byte there and closes, so many times.
 * o: connects to the parent's port 9002 and writes so many MiB, 64 KiB at a time.
 * p: the same, 32 KiB at a time.
 * i: connects to the parent's port 9002 and reads to the end.
 *
 * After each order it answers one byte: the letter, or ! if something failed.
 *
 * As an enclave's application it finds its parent at CID 3. As a machine's first process it is not in an enclave,
 * so that what it talks to is the host, at CID 2, which is the only one that each vsock daemon knows. */
#include "linux.h"

enum { AF_VSOCK = 40, SOCK_STREAM = 1, PORT = 9001, PEER_PORT = 9002, OWN_PORT = 9003 };
enum { HOST_CID = 2, PARENT_CID = 3, ANY_CID = -1, BACKLOG = 128, CHUNK = 1 << 16, MIB = 1 << 20 };
enum { SYS_getpid = 39, SYS_accept = 43, SYS_bind = 49, SYS_listen = 50 };

struct sockaddr_vm {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t zero[4];
};

static uint8_t chunk[CHUNK];
static uint32_t parent_cid = PARENT_CID;

static long dial(uint32_t port)
{
    const struct sockaddr_vm parent = {.family = AF_VSOCK, .port = port, .cid = parent_cid};
    long stream = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);

    return syscall(SYS_connect, stream, &parent, sizeof parent) < 0 ? -1 : stream;
}

static bool echo(long stream)
{
    return syscall(SYS_read, stream, chunk, 1) == 1 && syscall(SYS_write, stream, chunk, 1) == 1;
}

static bool accept_one(long listener, bool asked)
{
    long stream = syscall(SYS_accept, listener, 0, 0);
    bool good = stream >= 0 && (asked ? echo(stream) : syscall(SYS_read, stream, chunk, 1) == 0);

    syscall(SYS_close, stream);
    return good;
}

static bool connect_one(void)
{
    long stream = dial(PEER_PORT);

    return stream >= 0 && syscall(SYS_close, stream) == 0;
}

static bool write_all(long stream, uint64_t bytes, long at_once)
{
    for (; bytes; bytes -= at_once)
        for (long at = 0; at < at_once;) {
            long written = syscall(SYS_write, stream, chunk + at, at_once - at);
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

    if (good && (order == 'o' || order == 'p'))
        good = write_all(stream, (uint64_t)count * MIB, order == 'o' ? CHUNK : CHUNK / 2);
    while (good && order == 'i' && length > 0)
        length = syscall(SYS_read, stream, chunk, CHUNK);
    syscall(SYS_close, stream);
    return good && length >= 0;
}

static bool obey(long control, long listener, uint8_t order, uint32_t count)
{
    bool good = true;

    if (order == 'o' || order == 'p' || order == 'i')
        return move(order, count);
    while (good && count--)
        good = order == 't' ? echo(control) : order == 'c' ? connect_one() : accept_one(listener, order == 'h');
    return good;
}

int main(void)
{
    const struct sockaddr_vm own = {.family = AF_VSOCK, .port = OWN_PORT, .cid = ANY_CID};
    struct {
        uint8_t letter, count[4];
    } order;
    long listener = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);

    if (syscall(SYS_getpid) == 1)
        parent_cid = HOST_CID;
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
