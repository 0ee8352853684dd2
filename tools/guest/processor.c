/* Work for the processor, of several kinds: says on the console when each begins and ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile double sink;

static void system_calls(void) {
    for (int i = 0; i < 2000000; i++) syscall(SYS_getppid);
}

static void next_instruction(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = next_instruction, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, 0);
    for (int i = 0; i < 60000; i++) asm volatile("ud2");
}

static void page_faults(void) {
    size_t size = 64 << 20;
    for (int round = 0; round < 4; round++) {
        char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(memory, size, MADV_NOHUGEPAGE);
        for (size_t at = 0; at < size; at += 4096) memory[at] = 1;
        munmap(memory, size);
    }
}

static void forks(void) {
    for (int i = 0; i < 600; i++) {
        pid_t child = fork();
        if (!child) _exit(0);
        waitpid(child, 0, 0);
    }
}

static void pipes(void) {
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back)) return;
    pid_t child = fork();
    if (!child) {
        for (;;)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1) _exit(0);
    }
    for (int i = 0; i < 20000; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) break;
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
}

static void floating_point(void) {
    double x = 0.5, sum = 0;
    for (int i = 1; i < 20000000; i++) {
        x = x * 1.0000001 + 1.0 / i;
        sum += sqrt(x);
    }
    sink = sum;
}

static void vectors(void) {
    static float a[4096], b[4096];
    for (int i = 0; i < 4096; i++) a[i] = i, b[i] = 1.0f / (i + 1);
    for (int round = 0; round < 25000; round++)
        for (int i = 0; i < 4096; i++) a[i] = a[i] * 0.999f + b[i];
    sink = a[7];
}

static void integers(void) {
    uint64_t x = 88172645463325252ull, sum = 0;
    for (int i = 0; i < 300000000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        sum += x & 0xff;
    }
    sink = (double)sum;
}

static void copies(void) {
    size_t size = 8 << 20;
    char *from = malloc(size), *to = malloc(size);
    memset(from, 1, size);
    for (int round = 0; round < 200; round++) {
        memcpy(to, from, size);
        from[round] = to[round + 1];
    }
    sink = to[5];
}

static int by_number(const void *first, const void *second) {
    uint32_t one = *(const uint32_t *)first, two = *(const uint32_t *)second;
    return (one > two) - (one < two);
}

static void calls(void) {
    static uint32_t numbers[200000];
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < 200000; i++) numbers[i] = (uint32_t)(i * 2654435761u) ^ (uint32_t)round;
        qsort(numbers, 200000, sizeof *numbers, by_number);
    }
    sink = numbers[3];
}

/* Only in an image with a Python. */
static void python(void) {
    char *const command[] = {"/usr/bin/python3", "/work.py", 0}, *const environment[] = {"PATH=/usr/bin:/bin", 0};
    pid_t child = fork();
    int status = 1;
    if (!child) {
        execve(command[0], command, environment);
        _exit(1);
    }
    waitpid(child, &status, 0);
    if (status) printf("python ended with %d\n", status);
}

#define WORK(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} WORKS[] = {
    WORK(system_calls), WORK(signals), WORK(page_faults), WORK(forks), WORK(pipes),
    WORK(floating_point), WORK(vectors), WORK(integers), WORK(copies), WORK(calls),
    WORK(python),
};

int main(void) {
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 1);
    setvbuf(stdout, 0, _IONBF, 0);
    for (size_t i = 0; i < sizeof WORKS / sizeof *WORKS; i++) {
        if (WORKS[i].run == python && access("/work.py", F_OK)) continue;
        printf("@begin %s\n", WORKS[i].name);
        WORKS[i].run();
        printf("@end %s\n", WORKS[i].name);
    }
    reboot(RB_AUTOBOOT);
    return 0;
}
