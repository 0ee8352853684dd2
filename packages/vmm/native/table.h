/* What is replaced in Unicorn, why, and what of Unicorn we call.
 *
 * libunicorn.so reaches its own functions through its dynamic symbol table. This library is loaded before it
 * with RTLD_GLOBAL, so a function here that bears the name of one of Unicorn's is called in its place. The
 * original is `original.NAME`. Each replacement hands engines that are not ours (no `CPU_MACHINE`) to the
 * original. */

#ifndef NITRO_TABLE_H
#define NITRO_TABLE_H

#include "layout.h"
#include "sse_list.h"
#include "x87_list.h"

#define TABLE_BINARY(X, name) X(void, helper_##name##_x86_64, (env *, void *, const void *))
#define TABLE_XMM(X, name) X(void, helper_##name##_xmm_x86_64, (env *, void *, const void *))
#define TABLE_INTEGER(X, name, mnemonic) TABLE_XMM(X, name)
#define TABLE_CONVERT(X, name, from, to) TABLE_BINARY(X, name)
#define TABLE_TO_INTEGER(X, name, type, number) X(type, helper_##name##_x86_64, (env *, const void *))
#define TABLE_FROM_INTEGER(X, name, type, number) X(void, helper_##name##_x86_64, (env *, void *, type))
#define TABLE_COMPARE(X, name, number) X(void, helper_##name##_x86_64, (env *, const void *, const void *))
#define TABLE_IMMEDIATE(X, name, number) X(void, helper_##name##_xmm_x86_64, (env *, void *, const void *, uint32_t))
#define TABLE_STRING(X, name) X(void, helper_##name##_xmm_x86_64, (env *, const void *, const void *, uint32_t))

#define TABLE_X87(X, name) X(void, helper_##name##_x86_64, (env *))
#define TABLE_X87_ST0(X, name) X(void, helper_##name##_ST0_x86_64, (env *))
#define TABLE_X87_CONDITIONS(X, name, conditions) TABLE_X87(X, name)
#define TABLE_X87_SIGN(X, name, new_sign) TABLE_X87_ST0(X, name)
#define TABLE_X87_COMPARE(X, name, mnemonic) TABLE_X87(X, name)
#define TABLE_X87_STN(X, name, mnemonic) X(void, helper_##name##_x86_64, (env *, int))
#define TABLE_X87_LOAD(X, name, mnemonic, type) X(void, helper_##name##_x86_64, (env *, type))
#define TABLE_X87_STORE(X, name, mnemonic, type) X(type, helper_##name##_x86_64, (env *))

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
    /* programs.c */                                                                                             \
    X(void, helper_iret_protected_x86_64, (env *, int, int))               /* a return to a program */           \
    X(void, helper_sysret_x86_64, (env *, int))                                                                  \
    /* cpuid.c */                                                                                                \
    X(void, helper_cpuid_x86_64, (env *))                                  /* our identity */                    \
    /* msr.c */                                                                                                  \
    X(void, helper_rdmsr_x86_64, (env *))                                  /* kvm-clock, TSC deadline */         \
    X(void, helper_wrmsr_x86_64, (env *))                                                                        \
    X(void, helper_rdtsc_x86_64, (env *))                                  /* remembers what it told */          \
    X(void, helper_rdtscp_x86_64, (env *))                                                                       \
    /* io.c */                                                                                                   \
    X(uint64_t, helper_inb_x86_64, (env *, uint32_t))                      /* permission, our devices */         \
    X(uint64_t, helper_inw_x86_64, (env *, uint32_t))                                                            \
    X(uint64_t, helper_inl_x86_64, (env *, uint32_t))                                                            \
    X(void, helper_outb_x86_64, (env *, uint32_t, uint32_t))                                                     \
    X(void, helper_outw_x86_64, (env *, uint32_t, uint32_t))                                                     \
    X(void, helper_outl_x86_64, (env *, uint32_t, uint32_t))                                                     \
    /* tlb.c */                                                                                                  \
    X(bool, x86_cpu_tlb_fill_x86_64, (cpu *, uint64_t, int, int, int, bool, uintptr_t)) /* a quick walk */       \
    X(void, cpu_x86_update_cr3_x86_64, (env *, uint64_t))                  /* global pages stay */               \
    X(void, helper_invlpg_x86_64, (env *, uint64_t))                                                             \
    X(uint64_t, helper_ret_ldub_mmu_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                              \
    X(uint64_t, helper_le_lduw_mmu_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                               \
    X(uint64_t, helper_le_ldul_mmu_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                               \
    X(uint64_t, helper_le_ldq_mmu_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                                \
    /* fetch.c: quick ways to code */                                                                            \
    X(uint32_t, cpu_lduw_code_x86_64, (env *, uint64_t))                                                         \
    X(uint32_t, cpu_ldl_code_x86_64, (env *, uint64_t))                                                          \
    X(uint64_t, cpu_ldq_code_x86_64, (env *, uint64_t))                                                          \
    X(uint64_t, get_page_addr_code_x86_64, (env *, uint64_t))                                                    \
    X(void *, helper_lookup_tb_ptr_x86_64, (env *))                                                              \
    X(void *, tb_htable_lookup_x86_64, (cpu *, uint64_t, uint64_t, uint32_t, uint32_t))                          \
    /* code_pages.c: code written through another mapping, and the speed of stores */                            \
    X(void, tlb_reset_dirty_by_vaddr_x86_64, (cpu *, uint64_t, uint64_t))                                        \
    X(void, tlb_unprotect_code_x86_64, (uc *, uint64_t))                                                         \
    X(void, tb_flush_x86_64, (cpu *))                                                                            \
    X(void, tlb_set_dirty_x86_64, (cpu *, uint64_t))                                                             \
    X(void, tb_invalidate_phys_page_fast_x86_64, (uc *, void *, uint64_t, int, uintptr_t))                       \
    X(void, helper_ret_stb_mmu_x86_64, (env *, uint64_t, uint8_t, uint32_t, uintptr_t))                          \
    X(void, helper_le_stw_mmu_x86_64, (env *, uint64_t, uint16_t, uint32_t, uintptr_t))                          \
    X(void, helper_le_stl_mmu_x86_64, (env *, uint64_t, uint32_t, uint32_t, uintptr_t))                          \
    X(void, helper_le_stq_mmu_x86_64, (env *, uint64_t, uint64_t, uint32_t, uintptr_t))                          \
    X(void *, find_memory_mapping_x86_64, (uc *, uint64_t))                                                      \
    /* links.c */                                                                                                \
    X(void, cpu_x86_update_cr0_x86_64, (env *, uint32_t))                                                        \
    X(void, cpu_x86_update_cr4_x86_64, (env *, uint32_t))                                                        \
    /* translate.c */                                                                                            \
    X(void, translator_loop_x86_64, (const void *, void *, cpu *, void *, int)) /* sees each instruction first */ \
    X(void, tcg_optimize_x86_64, (void *))                                 /* not for code that runs once */     \
    X(uint32_t, cpu_ldub_code_x86_64, (env *, uint64_t))                   /* UD2 for what is refused */         \
    X(void, tcg_gen_qemu_ld_i64_x86_64, (void *, void *, void *, uint64_t, int)) /* alignment of SSE operands */ \
    X(void, tcg_gen_qemu_st_i64_x86_64, (void *, void *, void *, uint64_t, int))                                 \
    X(void, helper_stgi_x86_64, (env *))                                   /* of SVM: stands for STMXCSR */      \
    X(void, helper_clgi_x86_64, (env *))                                   /* of SVM: looks for an exception of the x87 */\
    X(void, helper_vmload_x86_64, (env *, int))                            /* of SVM: looks at the operands of FCMOV */\
    X(void, helper_vmsave_x86_64, (env *, int))                            /* of SVM: follows a write to an MMX register */\
    X(void, helper_invlpga_x86_64, (env *, int))                           /* of SVM: repeated MOVS and STOS */   \
    X(void, helper_check_exit_request_x86_64, (uc *, uint32_t))            /* inline instead of a call */        \
    X(void, tcg_gen_callN_x86_64, (void *, void *, void *, int, void **))                                        \
    X(void, tcg_gen_exit_tb_x86_64, (void *, void *, unsigned))                                                  \
    X(void, tcg_gen_goto_tb_x86_64, (void *, unsigned))                    /* straight into another page */      \
    X(void, tcg_gen_lookup_and_goto_ptr_x86_64, (void *))                                                        \
    /* x87_state.c, x87_stack.c, x87.c: the host's own instructions, stack faults, exceptions */                 \
    X(uint32_t, helper_fnstsw_x86_64, (env *))                                                                   \
    X(void, helper_fclex_x86_64, (env *))                                                                        \
    X(void, helper_fninit_x86_64, (env *))                                                                       \
    X(void, helper_fwait_x86_64, (env *))                                                                        \
    X(void, helper_fstenv_x86_64, (env *, uint64_t, int))                                                        \
    X(void, helper_fldenv_x86_64, (env *, uint64_t, int))                                                        \
    X(void, helper_fsave_x86_64, (env *, uint64_t, int))                                                         \
    X(void, helper_frstor_x86_64, (env *, uint64_t, int))                                                        \
    X(void, helper_fxsave_x86_64, (env *, uint64_t))                                                             \
    X(void, helper_fxrstor_x86_64, (env *, uint64_t))                                                            \
    X87_ARITHMETIC(TABLE_X87_COMPARE, X)                                                                         \
    X87_ARITHMETIC_STN(TABLE_X87_STN, X)                                                                         \
    X87_UNARY(TABLE_X87_CONDITIONS, X)                                                                           \
    X87_BINARY(TABLE_X87_CONDITIONS, X)                                                                          \
    X87_POPPING(TABLE_X87, X)                                                                                    \
    X87_PUSHING(TABLE_X87_CONDITIONS, X)                                                                         \
    X87_LOAD(TABLE_X87_LOAD, X)                                                                                  \
    X87_STORE(TABLE_X87_STORE, X)                                                                                \
    X87_COMPARE_FLAGS(TABLE_X87_COMPARE, X)                                                                      \
    X87_CONSTANTS(TABLE_X87_ST0, X)                                                                              \
    X87_SIGNS(TABLE_X87_SIGN, X)                                                                                 \
    X(void, helper_fpush_x86_64, (env *))                                                                        \
    X(void, helper_fldt_ST0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_fstt_ST0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_fbld_ST0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_fbst_ST0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_fmov_STN_ST0_x86_64, (env *, int))                                                            \
    X(void, helper_fxchg_ST0_STN_x86_64, (env *, int))                                                           \
    X(void, helper_fxam_ST0_x86_64, (env *))                                                                     \
    X(void, helper_fincstp_x86_64, (env *))                                                                      \
    X(void, helper_fdecstp_x86_64, (env *))                                                                      \
    X(void, helper_flds_ST0_x86_64, (env *, uint32_t))                                                           \
    X(void, helper_fldl_ST0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_flds_FT0_x86_64, (env *, uint32_t))                                                           \
    X(void, helper_fldl_FT0_x86_64, (env *, uint64_t))                                                           \
    X(void, helper_fmov_ST0_STN_x86_64, (env *, int))                                                            \
    X(void, helper_fldcw_x86_64, (env *, uint32_t))                                                              \
    X(void, helper_emms_x86_64, (env *))                                                                         \
    X(void, helper_fmov_FT0_STN_x86_64, (env *, int))                                                            \
    X(void, helper_fildl_FT0_x86_64, (env *, int32_t))                                                           \
    X(void, helper_fldz_FT0_x86_64, (env *))                                                                     \
    X87_COMPARE(TABLE_X87_COMPARE, X)                                                                            \
    /* sse.c and string_compare.c: the host's own instructions */                                                \
    X(void, update_mxcsr_status_x86_64, (env *))                                                                 \
    X(void, helper_ldmxcsr_x86_64, (env *, uint32_t))                                                            \
    X(uint64_t, helper_crc32_x86_64, (uint32_t, uint64_t, uint32_t))                                             \
    X(void, helper_pclmulqdq_xmm_x86_64, (env *, void *, const void *, uint32_t))                                \
    X(void, helper_dpps_xmm_x86_64, (env *, void *, const void *, uint32_t))                                     \
    X(void, helper_dppd_xmm_x86_64, (env *, void *, const void *, uint32_t))                                     \
    SSE_FLOAT(TABLE_BINARY, X)                                                                                   \
    SSE_DOUBLE(TABLE_BINARY, X)                                                                                  \
    SSE_SINGLE(TABLE_BINARY, X)                                                                                  \
    SSE_CONVERT(TABLE_CONVERT, X)                                                                                \
    SSE_MMX(TABLE_BINARY, X)                                                                                     \
    SSE_INTEGER(TABLE_INTEGER, X)                                                                                \
    SSE_AES(TABLE_XMM, X)                                                                                        \
    SSE_TO_INTEGER(TABLE_TO_INTEGER, X)                                                                          \
    SSE_FROM_INTEGER(TABLE_FROM_INTEGER, X)                                                                      \
    SSE_COMPARE(TABLE_COMPARE, X)                                                                                \
    SSE_ROUND(TABLE_IMMEDIATE, X)                                                                                \
    SSE_STRING(TABLE_STRING, X)

#define CALLED(X)                                                                                                \
    X(int, uc_emu_start, (uc *, uint64_t, uint64_t, uint64_t, uint64_t))                                         \
    X(int, uc_emu_stop, (uc *))                                                                                  \
    X(int, uc_hook_add, (uc *, uint64_t *, int, void *, void *, uint64_t, uint64_t, ...))                        \
    X(int, uc_mmio_map, (uc *, uint64_t, uint64_t, void *, void *, void *, void *))                              \
    X(const char *, uc_strerror, (int))                                                                          \
    X(void, tlb_flush_by_mmuidx_x86_64, (cpu *, uint16_t))                                                       \
    X(void, tlb_set_page_with_attrs_x86_64, (cpu *, uint64_t, uint64_t, uint32_t, int, int, uint64_t))           \
    X(void, x86_cpu_do_interrupt_x86_64, (cpu *))                                                                \
    X(void, do_interrupt_x86_hardirq_x86_64, (env *, int, int))                                                  \
    X(void, tb_phys_invalidate_x86_64, (void *, void *, uint64_t))                                               \
    X(void, cpu_loop_exit_x86_64, (cpu *))                                                                       \
    X(void, raise_exception_err_ra_x86_64, (env *, int, int, uintptr_t))                                         \
    X(uint32_t, helper_cc_compute_all_x86_64, (uint64_t, uint64_t, uint64_t, int))                               \
    X(void, helper_single_step_x86_64, (env *))                                                                  \
    X(void *, tcg_temp_new_internal_x86_64, (void *, int, bool))                                                 \
    X(void, tcg_temp_free_internal_x86_64, (void *, void *))                                                     \
    X(void, tcg_gen_addi_i64_x86_64, (void *, void *, void *, int64_t))                                          \
    X(void, tcg_gen_ext32u_i64_x86_64, (void *, void *, void *))                                                 \
    X(void, tcg_gen_movcond_i64_x86_64, (void *, int, void *, void *, void *, void *, void *))                   \
    X(void, tcg_gen_op1_x86_64, (void *, int, uint64_t))                                                         \
    X(void, tcg_gen_op2_x86_64, (void *, int, uint64_t, uint64_t))                                               \
    X(void, tcg_gen_op3_x86_64, (void *, int, uint64_t, uint64_t, uint64_t))                                     \
    X(void, tcg_op_remove_x86_64, (void *, void *))                                                              \
    X(void *, gen_new_label_x86_64, (void *))                                                                    \
    X(void, tcg_gen_brcondi_i32_x86_64, (void *, int, void *, int32_t, void *))                                  \
    X(uint64_t, get_page_addr_code_hostp_x86_64, (env *, uint64_t, void **))                                     \
    X(uint32_t, cpu_lduw_mmuidx_ra_x86_64, (env *, uint64_t, int, uintptr_t))                                    \
    X(uint64_t, cpu_ldq_mmuidx_ra_x86_64, (env *, uint64_t, int, uintptr_t))                                     \
    X(uint32_t, cpu_lduw_data_ra_x86_64, (env *, uint64_t, uintptr_t))                                           \
    X(uint32_t, cpu_ldl_data_ra_x86_64, (env *, uint64_t, uintptr_t))                                            \
    X(uint64_t, cpu_ldq_data_ra_x86_64, (env *, uint64_t, uintptr_t))                                            \
    X(void, cpu_stw_data_ra_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                                      \
    X(void, cpu_stl_data_ra_x86_64, (env *, uint64_t, uint32_t, uintptr_t))                                      \
    X(void, cpu_stq_data_ra_x86_64, (env *, uint64_t, uint64_t, uintptr_t))                                      \
    X(bool, cpu_restore_state_x86_64, (cpu *, uintptr_t, bool))                                                  \
    X(uintptr_t, tcg_const_i32_x86_64, (void *, int32_t))

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
