/* A program that is single-stepped over a system call goes on being stepped behind it. 64-bit code steps over
 * SYSCALL and INT 80h; 32-bit code over INT 80h and the kernel's own entry, which is SYSENTER or SYSCALL.
 *
 * It needs no C library and none of its headers, so that it is built for 32 bits with any compiler. Its exit code
 * says what went wrong. */

#include <stddef.h>

/* The auxiliary vector (getauxval(3)). */
#define AT_NULL 0
#define AT_SYSINFO 32

#define SIGTRAP 5
#define SA_SIGINFO 4 /* the frame that rt_sigreturn takes */
#define SA_RESTORER 0x04000000
#define TRAP_FLAG 0x100
#define STEPS_MIN 3 /* of the three NOPs behind each system call */

#ifdef __x86_64__
enum { WRITE = 1, SIGACTION = 13, SIGRETURN = 15, GETPID = 39, EXIT = 60 };
#define STACK "%%rsp"
#else
enum { EXIT = 1, WRITE = 4, GETPID = 20, SIGRETURN = 173, SIGACTION = 174 };
#define STACK "%%esp"
#endif

struct action {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask[8 / sizeof(long)];
};

static volatile long steps;
static void (*kernel_entry)(void);

static long call(long number, long first, long second, long third, long fourth)
{
    long result;
#ifdef __x86_64__
    register long r10 __asm__("r10") = fourth;
    __asm__ volatile("syscall"
                     : "=a"(result) : "0"(number), "D"(first), "S"(second), "d"(third), "r"(r10)
                     : "rcx", "r11", "memory");
#else
    __asm__ volatile("int $0x80"
                     : "=a"(result) : "0"(number), "b"(first), "c"(second), "d"(third), "S"(fourth) : "memory");
#endif
    return result;
}

static void on_step(int number)
{
    (void)number;
    steps++;
}

void restore(void);
#ifdef __x86_64__
__asm__("restore: mov $15, %eax\n\tsyscall");
#else
__asm__("restore: mov $173, %eax\n\tint $0x80");
#endif

/* Begin to step, do something, note how often it was stepped until then, and step over three NOPs. */
#define STEP(instruction, ...)                                                                                   \
    __asm__ volatile("pushf\n\torl %[flag], (" STACK ")\n\tpopf\n\t" instruction                                  \
                     "\n\tmov %[steps], %[before]\n\tnop\n\tnop\n\tnop\n\tpushf\n\tpop %[flags]\n\t"              \
                     "pushf\n\tandl %[others], (" STACK ")\n\tpopf"                                               \
                     : [before] "=&S"(before), [flags] "=&D"(flags), "=a"(result)                                 \
                     : [flag] "i"(TRAP_FLAG), [others] "i"(~TRAP_FLAG), [steps] "m"(steps), "2"((long)GETPID),    \
                       __VA_ARGS__                                                                                \
                     : "memory", "cc", "ecx", "edx" MORE)
#ifdef __x86_64__
#define MORE , "r8", "r9", "r10", "r11"
#else
#define MORE
#endif

static int complain(const char *text, long length)
{
    call(WRITE, 1, (long)text, length, 0);
    return 1;
}
#define COMPLAIN(text) complain(text "\n", sizeof text)

static int judge(long before, long flags, long result, long pid)
{
    if (result != pid)
        return COMPLAIN("the system call has another result");
    if (!(flags & TRAP_FLAG))
        return COMPLAIN("the trap flag is gone");
    if (steps - before < STEPS_MIN)
        return COMPLAIN("steps are missing");
    return 0;
}

static int check(void)
{
    struct action action = {on_step, SA_SIGINFO | SA_RESTORER, restore, {0}};
    long before, flags, result, pid = call(GETPID, 0, 0, 0, 0);
    int wrong = 0;

    call(SIGACTION, SIGTRAP, (long)&action, 0, 8);
#ifdef __x86_64__
    STEP("syscall", "b"(0));
    wrong |= judge(before, flags, result, pid);
#else
    STEP("int $0x80", "b"(0));
    wrong |= judge(before, flags, result, pid);
    if (kernel_entry == NULL)
        return COMPLAIN("the kernel names no entry");
    steps = 0;
    STEP("call *%%ebx", "b"(kernel_entry));
    wrong |= judge(before, flags, result, pid);
#endif
    return wrong;
}

__attribute__((used)) void begin(long *stack)
{
    long *at = stack + 1 + stack[0] + 1; /* argc, arguments and 0 */

    while (*at++ != 0) { /* the environment */
    }
    for (; at[0] != AT_NULL; at += 2)
        if (at[0] == AT_SYSINFO)
            kernel_entry = (void (*)(void))at[1];
    int wrong = check();
    if (!wrong)
        call(WRITE, 1, (long)"stepped\n", 8, 0);
    call(EXIT, wrong, 0, 0, 0);
}

#ifdef __x86_64__
__asm__(".globl _start\n_start: mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin");
#else
__asm__(".globl _start\n_start: mov %esp, %eax\n\tand $-16, %esp\n\tsub $12, %esp\n\tpush %eax\n\tcall begin");
#endif
