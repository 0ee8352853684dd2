/* The first process of a test guest: takes orders over vsock and does to vsock what programs do.
 *
 * It loads the modules that /modules/order names, connects to port 9999 of the host (CID 2) and then reads one
 * order per line, answering each with one line: "ok ...", or the name of the error and how long it took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { HOST = 2, CONTROL_PORT = 9999, BLOCK = 1 << 20 };

static uint8_t block[BLOCK];
static uint32_t table[8][256];
static FILE *control;
static struct timespec began;

static void crc_setup(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
        table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 255];
}

/* The CRC-32 of zlib, eight bytes at a time. */
static uint32_t crc(uint32_t c, const uint8_t *p, size_t n)
{
    c = ~c;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        w ^= c;
        c = table[7][w & 255] ^ table[6][w >> 8 & 255] ^ table[5][w >> 16 & 255] ^ table[4][w >> 24 & 255]
          ^ table[3][w >> 32 & 255] ^ table[2][w >> 40 & 255] ^ table[1][w >> 48 & 255] ^ table[0][w >> 56];
    }
    for (; n; n--) c = c >> 8 ^ table[0][(c ^ *p++) & 255];
    return ~c;
}

static int elapsed_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (t.tv_sec - began.tv_sec) * 1000 + (t.tv_nsec - began.tv_nsec) / 1000000;
}

static void answer_error(const char *where)
{
    fprintf(control, "%s %s after %d ms\n", strerrorname_np(errno), where, elapsed_ms());
}

static int dial_type(int cid, int port, int type)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
    int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (void *)&address, sizeof address)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int dial(int cid, int port) { return dial_type(cid, port, SOCK_STREAM); }

static int listen_on_type(int port, int type)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
    int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (void *)&address, sizeof address) || listen(fd, 1024)) return -1;
    return fd;
}

static int write_all(int fd, const void *data, size_t length)
{
    for (const char *p = data; length;) {
        ssize_t n = write(fd, p, length);
        if (n < 0) return -1;
        p += n, length -= n;
    }
    return 0;
}

/* Echoes on every connection until its end, in one process; half-closes when the peer does. */
static void serve_echo(int listener)
{
    static struct pollfd fds[2048];
    int count = 1;
    fds[0] = (struct pollfd){ listener, POLLIN, 0 };
    for (;;) {
        poll(fds, count, -1);
        if (fds[0].revents && count < 2048) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0) fds[count++] = (struct pollfd){ fd, POLLIN, 0 };
        }
        for (int i = 1; i < count; i++) {
            if (!fds[i].revents) continue;
            ssize_t n = read(fds[i].fd, block, 65536);
            if (n > 0 && !write_all(fds[i].fd, block, n)) continue;
            close(fds[i].fd);
            fds[i--] = fds[--count];
        }
    }
}

/* Reads to the end of one connection, then tells what came, on the half that is still open. */
static void serve_sink(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        uint64_t total = 0;
        uint32_t sum = 0;
        ssize_t n;
        while ((n = read(fd, block, BLOCK)) > 0) sum = crc(sum, block, n), total += n;
        if (n == 0) {
            char line[64];
            write_all(fd, line, sprintf(line, "%08x %llu", sum, (unsigned long long)total));
        }
        close(fd);
    }
}

/* A packet is echoed as it came: boundaries are kept. */
static void serve_packets(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        ssize_t n;
        while ((n = recv(fd, block, BLOCK, 0)) > 0 && send(fd, block, n, MSG_EOR) == n) {}
        close(fd);
    }
}

static void serve(int port, int type, void (*with)(int))
{
    int listener = listen_on_type(port, type);
    if (listener < 0) {
        answer_error("listen");
        return;
    }
    pid_t child = fork();
    if (!child) {
        fclose(control);
        with(listener);
    }
    close(listener);
    fprintf(control, "ok %d\n", child);
}

/* Writes so many bytes, says that there are no more, and compares what the other side made of them. */
static void order_send(int cid, int port, uint64_t bytes, uint32_t chunk)
{
    int fd = dial(cid, port);
    if (fd < 0) {
        answer_error("connect");
        return;
    }
    uint32_t sum = 0;
    for (uint64_t sent = 0, number = 0; sent < bytes; number++) {
        memcpy(block, &number, sizeof number);
        uint32_t length = bytes - sent < chunk ? bytes - sent : chunk;
        sum = crc(sum, block, length);
        if (write_all(fd, block, length)) {
            answer_error("write");
            close(fd);
            return;
        }
        sent += length;
    }
    shutdown(fd, SHUT_WR);
    char expected[64], got[64] = "";
    sprintf(expected, "%08x %llu", sum, (unsigned long long)bytes);
    for (size_t have = 0; have < sizeof got - 1;) {
        ssize_t n = read(fd, got + have, sizeof got - 1 - have);
        if (n <= 0) break;
        have += n;
    }
    int took = elapsed_ms();
    close(fd);
    fprintf(control, "%s %s, told %s, %d ms\n", strcmp(expected, got) ? "differs" : "ok", expected, got, took);
}

static void order_connect(int cid, int port)
{
    int fd = dial(cid, port);
    if (fd < 0) {
        answer_error("connect");
        return;
    }
    int took = elapsed_ms();
    close(fd);
    fprintf(control, "ok after %d ms\n", took);
}

/* All at once, then a word and its echo on each. */
static void order_many(int cid, int port, int count)
{
    static int fds[4096];
    int opened = 0, good = 0;
    for (; opened < count && opened < 4096; opened++)
        if ((fds[opened] = dial(cid, port)) < 0) break;
    for (int i = 0; i < opened; i++) {
        char word[32], echo[32];
        int length = sprintf(word, "connection %d", i);
        if (write(fds[i], word, length) == length && recv(fds[i], echo, length, MSG_WAITALL) == length)
            good += !memcmp(word, echo, length);
    }
    for (int i = 0; i < opened; i++) close(fds[i]);
    fprintf(control, "ok %d of %d, %d ms\n", good, opened, elapsed_ms());
}

/* One after the other: connect, a word and its echo, close. */
static void order_sequence(int cid, int port, int count)
{
    int good = 0;
    for (int i = 0; i < count; i++) {
        char echo[4];
        int fd = dial(cid, port);
        if (fd < 0) break;
        good += write(fd, "word", 4) == 4 && recv(fd, echo, 4, MSG_WAITALL) == 4;
        close(fd);
    }
    fprintf(control, "ok %d of %d, %d ms\n", good, count, elapsed_ms());
}

/* Reads the end of a connection first, then writes: what a half-close by the host must allow. */
static void order_read_then_write(int cid, int port)
{
    int fd = dial(cid, port);
    if (fd < 0) {
        answer_error("connect");
        return;
    }
    ssize_t n, total = 0;
    while ((n = read(fd, block, BLOCK)) > 0) total += n;
    if (n < 0) answer_error("read");
    else if (write_all(fd, "after the end", 13)) answer_error("write");
    else fprintf(control, "ok %zd\n", total);
    close(fd);
}

static void order_packets(int cid, int port, int count)
{
    int fd = dial_type(cid, port, SOCK_SEQPACKET), good = 0;
    if (fd < 0) {
        answer_error("connect");
        return;
    }
    for (int i = 0; i < count; i++) {
        char packet[600];
        memset(packet, 'a' + i % 26, sizeof packet);
        ssize_t length = 1 + i % 500;
        good += send(fd, packet, length, 0) == length && recv(fd, block, BLOCK, 0) == length && block[0] == packet[0];
    }
    close(fd);
    fprintf(control, "ok %d of %d\n", good, count);
}

static void obey(char *line)
{
    char order[32] = "";
    long long a[4] = { 0 };
    sscanf(line, "%31s %lli %lli %lli %lli", order, &a[0], &a[1], &a[2], &a[3]);
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (!strcmp(order, "echo")) serve(a[0], SOCK_STREAM, serve_echo);
    else if (!strcmp(order, "sink")) serve(a[0], SOCK_STREAM, serve_sink);
    else if (!strcmp(order, "echo-packets")) serve(a[0], SOCK_SEQPACKET, serve_packets);
    else if (!strcmp(order, "send")) order_send(a[0], a[1], a[2], a[3]);
    else if (!strcmp(order, "connect")) order_connect(a[0], a[1]);
    else if (!strcmp(order, "many")) order_many(a[0], a[1], a[2]);
    else if (!strcmp(order, "sequence")) order_sequence(a[0], a[1], a[2]);
    else if (!strcmp(order, "read-then-write")) order_read_then_write(a[0], a[1]);
    else if (!strcmp(order, "packets")) order_packets(a[0], a[1], a[2]);
    else if (!strcmp(order, "cid")) {
        unsigned int cid = 0;
        int fd = open("/dev/vsock", O_RDONLY);
        ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid);
        close(fd);
        fprintf(control, "ok %u\n", cid);
    } else if (!strcmp(order, "stop")) {
        sync();
        reboot(a[0] ? RB_AUTOBOOT : RB_POWER_OFF);
    } else fprintf(control, "unknown order %s\n", order);
}

static void load_modules(void)
{
    char name[128], path[256];
    FILE *order = fopen("/modules/order", "r");
    while (order && fscanf(order, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s", name);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) printf("agent: %s: %s\n", name, strerror(errno));
        close(fd);
    }
}

int main(void)
{
    mkdir("/dev", 0755), mkdir("/proc", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; i < 3 && console >= 0; i++) dup2(console, i);
    setvbuf(stdout, NULL, _IONBF, 0);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files = { 4096, 4096 };
    setrlimit(RLIMIT_NOFILE, &files);
    crc_setup();
    for (int i = 0; i < BLOCK; i++) block[i] = i * 131 + (i >> 9);
    load_modules();
    printf("agent: up\n");
    for (;;) {
        int fd = dial(HOST, CONTROL_PORT);
        if (fd < 0) {
            struct timespec pause = { 0, 100000000 };
            nanosleep(&pause, NULL);
            continue;
        }
        FILE *orders = fdopen(dup(fd), "r");
        control = fdopen(fd, "w");
        char line[256];
        while (fgets(line, sizeof line, orders)) obey(line), fflush(control);
        fclose(orders);
        fclose(control);
        printf("agent: the host has gone\n");
    }
}
