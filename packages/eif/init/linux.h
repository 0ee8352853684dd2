/* What a freestanding program for x86-64 or aarch64 needs of Linux: system calls, their constants, text output.
 *
 * The numbers are Linux's user-space interface (arch/x86/entry/syscalls/syscall_64.tbl,
 * include/uapi/asm-generic/unistd.h and the rest of include/uapi) and never change. They stand here so that the build needs a compiler and a linker, and neither libc nor kernel
 * headers: the same compiler then makes the same bytes everywhere. */
#ifndef LINUX_H
#define LINUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
enum {
    SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_lseek = 8, SYS_mmap = 9,
    SYS_rt_sigprocmask = 14, SYS_ioctl = 16, SYS_dup2 = 33, SYS_nanosleep = 35, SYS_socket = 41,
    SYS_connect = 42, SYS_setsockopt = 54, SYS_fork = 57, SYS_execve = 59, SYS_exit = 60, SYS_wait4 = 61,
    SYS_uname = 63, SYS_chdir = 80, SYS_mkdir = 83, SYS_unlink = 87, SYS_symlink = 88, SYS_fchown = 93,
    SYS_setuid = 105, SYS_setgid = 106, SYS_setsid = 112, SYS_setgroups = 116, SYS_chroot = 161,
    SYS_mount = 165, SYS_umount2 = 166, SYS_reboot = 169, SYS_clock_gettime = 228, SYS_exit_group = 231,
    SYS_finit_module = 313,
};
#elif defined(__aarch64__)
enum {
    SYS_dup3 = 24, SYS_ioctl = 29, SYS_mkdirat = 34, SYS_unlinkat = 35, SYS_symlinkat = 36, SYS_umount2 = 39,
    SYS_mount = 40, SYS_chdir = 49, SYS_chroot = 51, SYS_fchown = 55, SYS_openat = 56, SYS_close = 57,
    SYS_lseek = 62, SYS_read = 63, SYS_write = 64, SYS_exit = 93, SYS_exit_group = 94, SYS_nanosleep = 101,
    SYS_clock_gettime = 113, SYS_rt_sigprocmask = 135, SYS_reboot = 142, SYS_setgid = 144, SYS_setuid = 146,
    SYS_setsid = 157, SYS_setgroups = 159, SYS_uname = 160, SYS_socket = 198, SYS_connect = 203,
    SYS_setsockopt = 208, SYS_clone = 220, SYS_execve = 221, SYS_mmap = 222, SYS_wait4 = 260,
    SYS_finit_module = 273,

    /* These are only on older architectures; `syscall6` makes of them what took their place. */
    SYS_open = 1000, SYS_mkdir, SYS_unlink, SYS_symlink, SYS_dup2, SYS_fork,
};
#else
#error "this program is for x86-64 and aarch64"
#endif

enum { O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CLOEXEC = 02000000 };
enum { SEEK_SET = 0, SEEK_END = 2 };

#if defined(__x86_64__)
static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#else
static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    enum { AT_FDCWD = -100, CHILD_SIGNAL = 17 };

    switch (number) {
    case SYS_open:
        return syscall6(SYS_openat, AT_FDCWD, a, b, c, 0, 0);
    case SYS_mkdir:
        return syscall6(SYS_mkdirat, AT_FDCWD, a, b, 0, 0, 0);
    case SYS_unlink:
        return syscall6(SYS_unlinkat, AT_FDCWD, a, 0, 0, 0, 0);
    case SYS_symlink:
        return syscall6(SYS_symlinkat, a, AT_FDCWD, b, 0, 0, 0);
    case SYS_dup2:
        return a == b ? a : syscall6(SYS_dup3, a, b, 0, 0, 0, 0); /* which refuses what is the same already */
    case SYS_fork:
        return syscall6(SYS_clone, CHILD_SIGNAL, 0, 0, 0, 0, 0);
    }

    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}
#endif

/* A negative result is -errno. */
#define SYSCALL_ARGS(_0, _1, _2, _3, _4, _5, _6, ...) \
    syscall6((long)(_0), (long)(_1), (long)(_2), (long)(_3), (long)(_4), (long)(_5), (long)(_6))
#define syscall(...) SYSCALL_ARGS(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* The compiler may call these two for plain C. */
void *memset(void *target, int value, size_t length)
{
    for (size_t i = 0; i < length; i++)
        ((volatile char *)target)[i] = (char)value;
    return target;
}

void *memcpy(void *target, const void *source, size_t length)
{
    for (size_t i = 0; i < length; i++)
        ((volatile char *)target)[i] = ((const char *)source)[i];
    return target;
}

static inline size_t length_of(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

static inline bool starts_with(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return false;
    return true;
}

static inline bool ends_with(const char *text, const char *suffix)
{
    size_t length = length_of(text), tail = length_of(suffix);

    return length >= tail && starts_with(text + length - tail, suffix);
}

/* A line being put together, cut off where it does not fit, so that it is written in one piece. */
struct line {
    size_t length;
    char text[512];
};

static inline void add(struct line *line, const char *text)
{
    while (*text && line->length < sizeof line->text - 1)
        line->text[line->length++] = *text++;
}

static inline void add_number(struct line *line, unsigned long number)
{
    char digits[24];
    size_t at = sizeof digits - 1;

    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    add(line, digits + at);
}

/* Every program here is a `main` that gets no arguments and returns its exit status. */
static int main(void);

__attribute__((used, noreturn)) static void start(void)
{
    syscall(SYS_exit_group, main());
    __builtin_unreachable();
}

#if defined(__x86_64__)
__asm__(".globl _start\n"
        "_start: xor %ebp, %ebp\n"
        "and $-16, %rsp\n"
        "call start\n");
#else
__asm__(".globl _start\n"
        "_start: mov x29, xzr\n"
        "mov x30, xzr\n"
        "bl start\n");
#endif

#endif
