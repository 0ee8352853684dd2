/* An exception of the x87's that is unmasked comes with the next instruction that waits, and the one that caused it
 * has changed nothing. So it does from a state that was loaded with the exception in it. */

#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static sigjmp_buf after;

static void on_exception(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number == SIGFPE && info->si_code == FPE_FLTDIV)
        siglongjmp(after, 1);
    siglongjmp(after, 2);
}

static int raised(void (*cause)(void))
{
    int what = sigsetjmp(after, 1);

    if (what == 0)
        cause();
    __asm__ volatile("fninit");
    return what;
}

static void divide(void)
{
    volatile long double one = 1, zero = 0, result;

    feenableexcept(FE_DIVBYZERO);
    result = one / zero;
    (void)result;
}

static char state[512] __attribute__((aligned(16)));

static void load(void)
{
    static const unsigned short unmasked = 0x037B, pending = 0x0004;

    __asm__ volatile("fninit\n\tfxsave %0" : "=m"(state));
    memcpy(state, &unmasked, sizeof unmasked);
    memcpy(state + 2, &pending, sizeof pending);
    __asm__ volatile("fxrstor %0\n\tfwait" : : "m"(state));
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_exception, .sa_flags = SA_SIGINFO};

    sigaction(SIGFPE, &action, NULL);
    int first = raised(divide), second = raised(load);
    printf("long double: %d, loaded: %d\n", first, second);
    return first != 1 || second != 1;
}
