/*
 * /dev/nsm for programs that run without an enclave: a library for LD_PRELOAD.
 *
 * open("/dev/nsm") returns an empty file in memory if `nsm serve` answers (at the path in NITRO_NSM_SOCKET). The
 * driver's one ioctl on it (linux/nsm.h: NSM_IOCTL_RAW, 0xC0200A00) sends the request and receives the reply, each
 * with its length before it, in 32 bits, big-endian.
 *
 * Each ioctl makes a connection of its own. That costs some 20 microseconds, and in return threads, children after
 * fork() and duplicated descriptors need no lock: none of them can read another's reply. The file only marks the
 * device, also where its descriptor was duplicated or inherited; and it can be sought in, which some languages want
 * of a file that is both read and written.
 *
 * Errors are those of Linux's driver: EMSGSIZE for a request that is too long, EFAULT for missing memory, and a
 * reply that does not fit is cut. Without a server, open() fails with ENOENT, as without the device.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#define DEVICE "/dev/nsm"
#define NSM_IOCTL 0xC0200A00UL
#define REQUEST_BYTES_MAX 0x1000
#define REPLY_BYTES_MAX 0x3000
#define TIMEOUT_S 120 /* as the driver waits for the device */
#define MARK "nitro-nsm-device"

/* struct nsm_raw of linux/nsm.h */
struct message {
    uint64_t request, request_bytes, reply, reply_bytes;
};

/* The library's own errno must not be what the program sees after a success. */
#define KEEPING_ERRNO(statement) do { int kept = errno; statement; errno = kept; } while (0)

static const char *server_path(void)
{
    const char *path = getenv("NITRO_NSM_SOCKET");
    return path != NULL && strlen(path) < sizeof(((struct sockaddr_un *)0)->sun_path) ? path : NULL;
}

/* A connection to the server; -1 and errno without one. */
static int connected(int flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = TIMEOUT_S};
    const char *path = server_path();
    int fd;

    if (path == NULL) {
        errno = ENOENT;
        return -1;
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno == EINTR)
            continue;
        KEEPING_ERRNO(close(fd));
        if (errno == ECONNREFUSED)
            errno = ENOENT; /* the file of a server that is gone is no device either */
        return -1;
    }
    return fd;
}

static int send_all(int fd, const void *data, size_t count)
{
    const char *next = data;
    while (count > 0) {
        ssize_t sent = send(fd, next, count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        next += sent;
        count -= (size_t)sent;
    }
    return 0;
}

static int receive_all(int fd, void *data, size_t count)
{
    char *next = data;
    while (count > 0) {
        ssize_t received = recv(fd, next, count, 0);
        if (received < 0 && errno == EINTR)
            continue;
        if (received <= 0)
            return -1;
        next += received;
        count -= (size_t)received;
    }
    return 0;
}

/* Carry one request over a connection; the length of the reply, or -1. */
static long carry(int fd, const void *request, uint32_t request_bytes, char *reply)
{
    unsigned char head[4] = {request_bytes >> 24, request_bytes >> 16, request_bytes >> 8, request_bytes};
    uint32_t reply_bytes;

    if (send_all(fd, head, sizeof head) || send_all(fd, request, request_bytes) ||
        receive_all(fd, head, sizeof head))
        return -1;
    reply_bytes = (uint32_t)head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
    if (reply_bytes > REPLY_BYTES_MAX || receive_all(fd, reply, reply_bytes))
        return -1;
    return reply_bytes;
}

/* What open() makes of the device: an empty file in memory, by whose name ioctl() knows it. */
static int opened(int flags)
{
    int fd = connected(O_CLOEXEC);

    if (fd < 0)
        return -1;
    close(fd);
    return memfd_create(MARK, flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
}

/* Whether a descriptor is what open() made of the device. */
static int is_device(int fd)
{
    static const char mark[] = "/memfd:" MARK;
    char link[32], target[sizeof mark];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    KEEPING_ERRNO(length = readlink(link, target, sizeof target));
    return length >= (ssize_t)(sizeof mark - 1) && memcmp(target, mark, sizeof mark - 1) == 0;
}

static int device_ioctl(struct message *message)
{
    char reply[REPLY_BYTES_MAX];
    long reply_bytes;
    int fd;

    if (message == NULL || message->request == 0 || message->reply == 0) {
        errno = EFAULT;
        return -1;
    }
    if (message->request_bytes > REQUEST_BYTES_MAX) {
        errno = EMSGSIZE;
        return -1;
    }
    fd = connected(O_CLOEXEC);
    if (fd < 0) {
        errno = ENODEV;
        return -1;
    }
    reply_bytes = carry(fd, (void *)(uintptr_t)message->request, (uint32_t)message->request_bytes, reply);
    close(fd);
    if (reply_bytes < 0) {
        errno = ETIMEDOUT;
        return -1;
    }
    if ((uint64_t)reply_bytes < message->reply_bytes)
        message->reply_bytes = (uint64_t)reply_bytes;
    memcpy((void *)(uintptr_t)message->reply, reply, message->reply_bytes);
    return 0;
}

/* The function of the C library that ours stands in front of. */
static void *original(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static int is_path(const char *path)
{
    return path != NULL && strcmp(path, DEVICE) == 0;
}

/* The mode is there only for a file that may have to be made. */
#define MODE_OF(flags, mode)                        \
    do {                                            \
        if ((flags) & (O_CREAT | __O_TMPFILE)) {    \
            va_list arguments;                      \
            va_start(arguments, flags);             \
            mode = va_arg(arguments, mode_t);       \
            va_end(arguments);                      \
        }                                           \
    } while (0)

#ifndef __O_TMPFILE
#define __O_TMPFILE 0
#endif

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...)                              \
    {                                                                       \
        mode_t mode = 0;                                                    \
        if (is_path(path))                                                  \
            return opened(flags);                                           \
        MODE_OF(flags, mode);                                               \
        return ((int (*)(const char *, int, ...))original(#name))(path, flags, mode); \
    }

#define OPENAT(name)                                                        \
    int name(int directory, const char *path, int flags, ...)               \
    {                                                                       \
        mode_t mode = 0;                                                    \
        if (is_path(path))                                                  \
            return opened(flags);                                           \
        MODE_OF(flags, mode);                                               \
        return ((int (*)(int, const char *, int, ...))original(#name))(directory, path, flags, mode); \
    }

/* Programs that were compiled with large files, or with -D_FORTIFY_SOURCE, call the other names. */
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int __open_2(const char *path, int flags)
{
    return open(path, flags);
}

int __open64_2(const char *path, int flags)
{
    return open64(path, flags);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    /* Some languages have the number as a negative int, which arrives with its upper half filled with ones. */
    if ((uint32_t)request == NSM_IOCTL && is_device(fd))
        return device_ioctl(argument);
    return ((int (*)(int, unsigned long, ...))original("ioctl"))(fd, request, argument);
}
