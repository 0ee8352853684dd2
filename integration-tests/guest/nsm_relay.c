/* Relays between the host and /dev/nsm, so that a test on the host asks the guest's driver through vsock.
 *
 * It connects to CID 3, port 5001. Each request and each reply has its length in front, two bytes, the low one
 * first; a reply of no bytes means that the driver refused the request. */
#include "linux.h"

enum { AF_VSOCK = 40, SOCK_STREAM = 1, REQUEST_BYTES_MAX = 0xffff, RESPONSE_BYTES_MAX = 0x3000 };

static const unsigned long NSM_IOCTL = 0xC0200A00;

struct sockaddr_vm {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t flags, zero[3];
};

struct message {
    const void *request;
    uint64_t request_length;
    void *response;
    uint64_t response_length;
};

static uint8_t request[REQUEST_BYTES_MAX], response[2 + RESPONSE_BYTES_MAX];

static bool read_all(long stream, uint8_t *target, size_t length)
{
    while (length) {
        long count = syscall(SYS_read, stream, target, length);

        if (count <= 0)
            return false;
        target += count;
        length -= (size_t)count;
    }
    return true;
}

static bool write_all(long stream, const uint8_t *source, size_t length)
{
    while (length) {
        long count = syscall(SYS_write, stream, source, length);

        if (count <= 0)
            return false;
        source += count;
        length -= (size_t)count;
    }
    return true;
}

int main(void)
{
    const struct sockaddr_vm host = {.family = AF_VSOCK, .port = 5001, .cid = 3};
    long device = syscall(SYS_open, "/dev/nsm", O_RDWR);
    long stream = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0);
    uint16_t length;

    if (device < 0 || stream < 0 || syscall(SYS_connect, stream, &host, sizeof host) < 0)
        return 1;
    while (read_all(stream, (uint8_t *)&length, sizeof length)) {
        struct message message = {request, length, response + 2, RESPONSE_BYTES_MAX};

        if (!read_all(stream, request, length))
            return 1;
        if (syscall(SYS_ioctl, device, NSM_IOCTL, &message) < 0)
            message.response_length = 0;
        response[0] = (uint8_t)message.response_length;
        response[1] = (uint8_t)(message.response_length >> 8);
        if (!write_all(stream, response, 2 + message.response_length))
            return 1;
    }
    return 0;
}
