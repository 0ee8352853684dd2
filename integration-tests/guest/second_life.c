/* The init of an enclave that goes on from a saved machine: sends its parent what two enclaves must not share, and
 * what must be as if it had just booted. It is no child of anybody's, and does nothing about its random numbers.
 *
 * To port 7000, one section after the other, each a line "NAME LENGTH" and as many bytes. */

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define MIB (1 << 20)
#define HEARTBEAT_PORT 9000
#define REPORT_PORT 7000

static char bytes[MIB];

static int reach(unsigned port)
{
    struct sockaddr_vm parent = {.svm_family = AF_VSOCK, .svm_cid = 3, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&parent, sizeof parent) < 0) {
        perror("second_life: connect");
        return -1;
    }
    return fd;
}

static void tell(int fd, const char *name, const void *data, size_t length)
{
    dprintf(fd, "%s %zu\n", name, length);
    for (size_t done = 0; done < length;) {
        ssize_t sent = write(fd, (const char *)data + done, length - done);
        if (sent <= 0)
            return;
        done += sent;
    }
}

static unsigned long canary(void)
{
    unsigned long value;

    __asm__("mov %%fs:0x28, %0" : "=r"(value));
    return value;
}

static void tell_file(int fd, const char *name, const char *path, size_t length)
{
    int file = open(path, O_RDONLY);
    size_t got = 0;

    while (file >= 0 && got < length) {
        ssize_t read_now = read(file, bytes + got, length - got);
        if (read_now <= 0)
            break;
        got += read_now;
    }
    tell(fd, name, bytes, got);
    close(file);
}

/* What the kernel drew for this program, and the program for itself. */
static void tell_own(int fd, const char *prefix)
{
    char name[64];
    unsigned long guard = canary();

    snprintf(name, sizeof name, "%s-at-random", prefix);
    tell(fd, name, (const void *)getauxval(AT_RANDOM), 16);
    snprintf(name, sizeof name, "%s-canary", prefix);
    tell(fd, name, &guard, sizeof guard);
}

int main(int argc, char **argv)
{
    if (argc > 1) { /* a child */
        void *stack = &argc;
        tell_own(atoi(argv[1]), "child");
        tell(atoi(argv[1]), "child-stack", &stack, sizeof stack);
        return 0;
    }
    struct timespec now[2];
    clock_gettime(CLOCK_REALTIME, &now[0]);
    clock_gettime(CLOCK_MONOTONIC, &now[1]);
    char early[32];
    getrandom(early, sizeof early, 0);
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mknod("/urandom", S_IFCHR | 0600, makedev(1, 9));

    int heart = reach(HEARTBEAT_PORT);
    char beat = (char)0xB7;
    if (heart < 0 || write(heart, &beat, 1) != 1 || read(heart, &beat, 1) != 1)
        perror("second_life: heartbeat");
    close(heart);

    int fd = reach(REPORT_PORT);
    unsigned cid = 0;
    int vsock = open("/dev/vsock", O_RDONLY);
    ioctl(vsock, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid);
    tell(fd, "cid", &cid, sizeof cid);
    tell(fd, "clocks", now, sizeof now);
    tell(fd, "early", early, sizeof early);
    tell_own(fd, "init");
    for (int index = 0; index < 4; index++)
        getrandom(bytes + index * (MIB / 4), MIB / 4, 0);
    tell(fd, "getrandom", bytes, MIB);
    tell_file(fd, "urandom", "/urandom", MIB);
    tell_file(fd, "boot-id", "/proc/sys/kernel/random/boot_id", 36);
    tell_file(fd, "uuid", "/proc/sys/kernel/random/uuid", 36);
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    if (fork() == 0) {
        execl("/init", "/init", number, (char *)NULL);
        _exit(1);
    }
    wait(NULL);
    clock_gettime(CLOCK_REALTIME, &now[0]);
    clock_gettime(CLOCK_MONOTONIC, &now[1]);
    tell(fd, "later", now, sizeof now);
    int length = klogctl(3, bytes, sizeof bytes);
    tell(fd, "log", bytes, length < 0 ? 0 : length);
    shutdown(fd, SHUT_WR);
    read(fd, &beat, 1);
    reboot(RB_AUTOBOOT);
    return 0;
}
