/* What is replaced in Unicorn, why, and what of Unicorn we call.
 *
 * libunicorn.so reaches its own functions through its dynamic symbol table. This library is loaded before it
 * with RTLD_GLOBAL, so a function here that bears the name of one of Unicorn's is called in its place. The
 * original is `original.NAME`. Each replacement hands engines that are not ours (no `CPU_MACHINE`) to the
 * original. */

#ifndef NITRO_TABLE_H
#define NITRO_TABLE_H

#include "layout.h"

#define REPLACED(X)                                                                                              \
    /* exceptions.c */                                                                                           \
    X(bool, x86_cpu_exec_interrupt_x86_64, (cpu *, int))                   /* vectors from us; stop wins */      \
    X(void, raise_interrupt_x86_64, (env *, int, int, int, int))           /* remembers where INT n began */     \
    X(void, raise_exception_err_x86_64, (env *, int, int))                 /* mends error codes of gates */      \
    X(void, qemu_system_reset_request, (uc *))                             /* a triple fault ends the machine */ \
    X(void, cpu_abort_x86_64, (cpu *, const char *, ...))                  /* ... and not the process */         \
    X(void, helper_ltr_x86_64, (env *, int))                               /* checks its descriptor */           \
    /* syscall.c */                                                                                              \
    X(void, helper_syscall_x86_64, (env *, int))                           /* Unicorn's does nothing */          \
    X(void, helper_sysenter_x86_64, (env *, int))                          /* Unicorn's does nothing */          \
    /* cpuid.c */                                                                                                \
    X(void, helper_cpuid_x86_64, (env *))                                  /* our identity */                    \
    /* io.c */                                                                                                   \
    X(uint64_t, helper_inb_x86_64, (env *, uint32_t))                      /* permission, our devices */         \
    X(uint64_t, helper_inw_x86_64, (env *, uint32_t))                                                            \
    X(uint64_t, helper_inl_x86_64, (env *, uint32_t))                                                            \
    X(void, helper_outb_x86_64, (env *, uint32_t, uint32_t))                                                     \
    X(void, helper_outw_x86_64, (env *, uint32_t, uint32_t))                                                     \
    X(void, helper_outl_x86_64, (env *, uint32_t, uint32_t))

#define CALLED(X)                                                                                                \
    X(int, uc_emu_start, (uc *, uint64_t, uint64_t, uint64_t, uint64_t))                                         \
    X(int, uc_emu_stop, (uc *))                                                                                  \
    X(int, uc_hook_add, (uc *, uint64_t *, int, void *, void *, uint64_t, uint64_t, ...))                        \
    X(int, uc_mmio_map, (uc *, uint64_t, uint64_t, void *, void *, void *, void *))                              \
    X(const char *, uc_strerror, (int))                                                                          \
    X(void, x86_cpu_do_interrupt_x86_64, (cpu *))                                                                \
    X(void, do_interrupt_x86_hardirq_x86_64, (env *, int, int))                                                  \
    X(void, cpu_loop_exit_x86_64, (cpu *))                                                                       \
    X(void, raise_exception_err_ra_x86_64, (env *, int, int, uintptr_t))                                         \
    X(uint32_t, helper_cc_compute_all_x86_64, (uint64_t, uint64_t, uint64_t, int))                               \
    X(uint32_t, cpu_lduw_mmuidx_ra_x86_64, (env *, uint64_t, int, uintptr_t))                                    \
    X(uint64_t, cpu_ldq_mmuidx_ra_x86_64, (env *, uint64_t, int, uintptr_t))

#define POINTER(result, name, parameters) result(*name) parameters;
struct originals {
    REPLACED(POINTER)
    CALLED(POINTER)
};
#undef POINTER
extern struct originals original;

#define DECLARED(result, name, parameters) __attribute__((visibility("default"))) result name parameters;
REPLACED(DECLARED)
#undef DECLARED

#endif
