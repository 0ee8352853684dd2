/* Where the fields are that we use of Unicorn's and QEMU's structures.
 *
 * Unicorn keeps these structures to itself. The numbers are those of the wheel of Unicorn 2.1.4 for Linux on
 * x86-64; `nitro_attach` proves the pointers among them before it uses one, and accel/unicorn/private.py
 * proves the registers by writing them through Unicorn's public interface. */

#ifndef NITRO_LAYOUT_H
#define NITRO_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct env env; /* CPUX86State: the guest's registers */
typedef struct cpu cpu; /* CPUState: what every emulated processor has */
typedef struct uc uc;   /* struct uc_struct: the engine */

#define FIELD(type, base, offset) (*(type *)((char *)(base) + (offset)))

/* struct uc_struct */
#define UC_CPU(u) FIELD(cpu *, u, 440)

#define UC_TCG(u) FIELD(char *, u, 768)
#define UC_NO_EXIT_REQUEST(u) FIELD(uint8_t, u, 2034) /* 0 while a debugger steps; see accel/unicorn/debug.py */

/* TCGContext: temporaries are offsets into it */
#define TCG_TEMPORARIES(t) FIELD(int32_t, t, 48) /* how many the block has so far, globals included */
#define TCG_EPILOGUE(t) FIELD(void *, t, 152) /* where a block goes to leave for the main loop */
#define TCG_LAST_OPERATION(t) (**(void ***)(FIELD(char *, t, 0x7390) + 8))
#define OPERATION_BEFORE(o) (**(void ***)(FIELD(char *, o, 16) + 8))
#define OPERATION_NUMBER(o) FIELD(uint8_t, o, 0)
#define OPERATION_ARGUMENT(o, at) FIELD(uint64_t, o, 24 + 8 * (at))
#define TCG_ENV(t) ((void *)((t) + FIELD(uint64_t, t, 0x98F0)))
#define TCG_RAX(t) FIELD(void *, t, 0x9998)
#define TCG_VALUE(t, temporary) ((void *)((char *)(temporary) - (t)))

/* TranslationBlock, DisasContextBase, TranslatorOps */
#define BLOCK_BASE(b) FIELD(uint64_t, b, 8) /* of CS */
#define BLOCK_FLAGS(b) FIELD(uint32_t, b, 16)
#define BLOCK_OPTIONS(b) FIELD(uint32_t, b, 24)
#define BLOCK_INVALID (1u << 18) /* among its options */
#define DISASSEMBLY_BLOCK(d) FIELD(void *, d, 0)
#define DISASSEMBLY_NEXT(d) FIELD(uint64_t, d, 16)
#define DISASSEMBLY_INSTRUCTIONS(d) FIELD(int32_t, d, 28) /* so far, with this one */
#define DISASSEMBLY_INSTRUCTIONS_MAX(d) FIELD(int32_t, d, 32)
enum { TRANSLATE_INSTRUCTION = 4, TRANSLATOR_OPERATIONS = 7 };

/* CPUState */
#define CPU_EXIT_REQUEST(c) FIELD(volatile uint8_t, c, 21)
#define CPU_INTERRUPT_REQUEST(c) FIELD(volatile uint32_t, c, 28)
#define CPU_ENV(c) FIELD(env *, c, 296)
#define CPU_ICOUNT_DECR(c) FIELD(char *, c, 304)
#define CPU_CODE_CACHE(c) (&FIELD(char, c, 312)) /* tb_jmp_cache: translated code by address */
#define CODE_CACHE_BYTES 0x8000
#define CPU_MACHINE(c) FIELD(struct machine *, c, 33136) /* `opaque`, which Unicorn does not use */
#define CPU_HALTED(c) FIELD(uint32_t, c, 33176)
#define CPU_EXCEPTION_INDEX(c) FIELD(int32_t, c, 33184)
#define CPU_UC(c) FIELD(uc *, c, 33192)
#define CPU_CLASS(c) FIELD(void *, c, 33200)

/* CPUClass */
#define CLASS_UNALIGNED_ACCESS(k) FIELD(void *, k, 24)

/* CPUX86State lies within the structure that begins with its CPUState. */
#define ENV_OFFSET 35408
#define CPU_OF(e) ((cpu *)((char *)(e) - ENV_OFFSET))
#define ICOUNT_OFFSET (ENV_OFFSET - 16)
#define LEAVE_BLOCK(c) FIELD(volatile uint16_t, c, ICOUNT_OFFSET + 2)

/* CPUX86State */
#define ENV_REGS(e) (&FIELD(uint64_t, e, 0)) /* RAX RCX RDX RBX RSP RBP RSI RDI R8 ... R15 */
#define EIP_OFFSET 128
#define ENV_EIP(e) FIELD(uint64_t, e, EIP_OFFSET)
#define ENV_EFLAGS(e) FIELD(uint64_t, e, 136) /* without the arithmetic flags and DF */
#define ENV_CC_DST(e) FIELD(uint64_t, e, 144)
#define ENV_CC_SRC(e) FIELD(uint64_t, e, 152)
#define ENV_CC_SRC2(e) FIELD(uint64_t, e, 160)
#define ENV_CC_OP(e) FIELD(uint32_t, e, 168)
#define ENV_DF(e) FIELD(int32_t, e, 172) /* 1, or -1 while the direction flag is set */
#define ENV_HFLAGS(e) FIELD(uint32_t, e, 176)
#define ENV_HFLAGS2(e) FIELD(uint32_t, e, 180)
#define ENV_SEGMENT(e, n) (&FIELD(struct segment, e, 184 + 24 * (n)))
#define ENV_TR(e) (&FIELD(struct segment, e, 352))
#define ENV_CR(e, n) FIELD(uint64_t, e, 424 + 8 * (n))
#define ENV_EFER(e) FIELD(uint64_t, e, 592)
#define ENV_FPSTT(e) FIELD(uint32_t, e, 604)  /* which register is ST(0) */
#define ENV_FPTAGS(e) (&FIELD(uint8_t, e, 612)) /* 1 for each register that is empty */
#define ENV_X87(e, n) FIELD(struct x87, e, 624 + 16 * (n))
#define ENV_FT0(e) FIELD(struct x87, e, 784) /* QEMU's second operand */
/* Ours, in the padding behind it: */
#define FT0_EMPTY(e) FIELD(uint8_t, e, 794)    /* it came from an empty register */
#define FT0_DENORMAL(e) FIELD(uint8_t, e, 795) /* ... or from a denormal number of a shorter format */
#define JUST_PUSHED(e) FIELD(uint8_t, e, 796)  /* x87_stack.c */
#define ENV_FPUS(e) FIELD(uint16_t, e, 608) /* the x87's status word */
#define ENV_FPUC(e) FIELD(uint16_t, e, 610) /* and control word */
#define ENV_MXCSR(e) FIELD(uint32_t, e, 816)
#define ENV_XMM(e, n) ((void *)&FIELD(char, e, 824 + 64 * (n)))
#define ENV_SYSENTER_CS(e) FIELD(uint32_t, e, 4800)
#define ENV_SYSENTER_ESP(e) FIELD(uint64_t, e, 4808)
#define ENV_SYSENTER_EIP(e) FIELD(uint64_t, e, 4816)
#define ENV_STAR(e) FIELD(uint64_t, e, 4824)
#define ENV_LSTAR(e) FIELD(uint64_t, e, 4840)
#define ENV_FMASK(e) FIELD(uint64_t, e, 4856)
#define ENV_EXCEPTION_IS_INT(e) FIELD(int32_t, e, 5388)
#define ENV_VENDOR(e) (&FIELD(uint32_t, e, 5616)) /* EBX EDX ECX of leaf 0 */
#define ENV_FEATURES(e) (&FIELD(uint64_t, e, 5632))
#define ENV_TSC_ADJUST(e) FIELD(uint64_t, e, 4880)
#define ENV_TSC_DEADLINE(e) FIELD(uint64_t, e, 4888)
#define ENV_SYSTEM_TIME(e) FIELD(uint64_t, e, 5336) /* kvm-clock's registers, which QEMU keeps for KVM */
#define ENV_WALL_CLOCK(e) FIELD(uint64_t, e, 5344)
#define ENV_TSC_OFFSET(e) FIELD(uint64_t, e, 5512)
#define ENV_UC(e) FIELD(uc *, e, 7000)

/* One segment register with its hidden part; `flags` is the high half of the descriptor, as in memory. */
struct segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags;
};

struct x87 {
    uint64_t significand;
    uint16_t exponent;
} __attribute__((packed));

enum { ES, CS, SS, DS, FS, GS };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R11 = 11 };

/* QEMU's words of features that leaves of ours give; all others are none. */
enum { FEATURES_1_EDX, FEATURES_1_ECX, FEATURES_7_EBX, FEATURES_80000001_EDX = 6, FEATURES_80000001_ECX = 7 };
#define FEATURE_WORDS 24 /* up to FEAT_ARCH_CAPABILITIES */

#define SEGMENT_G (1u << 23)
#define SEGMENT_B (1u << 22)
#define SEGMENT_L (1u << 21)
#define SEGMENT_P (1u << 15)
#define SEGMENT_S (1u << 12)
#define SEGMENT_DPL_SHIFT 13
#define SEGMENT_CODE (1u << 11)
#define SEGMENT_RW (1u << 9)
#define SEGMENT_ACCESSED (1u << 8)
#define SEGMENT_TYPE(flags) ((flags) >> 8 & 15)
#define TSS_32_BUSY_OR_NOT(flags) ((SEGMENT_TYPE(flags) & ~2u) == 9)

#define HFLAGS_CPL 3u
#define HFLAGS_INHIBIT_IRQ (1u << 3) /* the shadow of STI and MOV SS */
#define HFLAGS_CS32 (1u << 4)
#define HFLAGS_SS32 (1u << 5)
#define HFLAGS_ADDSEG (1u << 6)
#define HFLAGS_EM (1u << 10)
#define HFLAGS_TS (1u << 11)
#define HFLAGS_LMA (1u << 14)
#define HFLAGS_CS64 (1u << 15)
#define HFLAGS_SMM (1u << 19)
#define HFLAGS_SMAP (1u << 23)
#define HFLAGS2_NPT (1u << 3)
#define HFLAGS_X87_UNMASKED (1u << 28) /* ours: QEMU uses none from 27 on */

#define FLAG_ZF (1u << 6)
#define FLAG_TF (1u << 8)
#define FLAG_IF (1u << 9)
#define FLAG_DF (1u << 10)
#define FLAG_OF (1u << 11)
#define FLAG_RF (1u << 16)
#define FLAG_VM (1u << 17)
#define FLAG_AC (1u << 18)
#define FLAGS_IOPL(flags) ((flags) >> 12 & 3)
#define FLAGS_ARITHMETIC 0x8D5u /* OF SF ZF AF PF CF */
#define CC_OP_EFLAGS 1          /* the arithmetic flags are in cc_src */

#define CR0_PE 1u
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define CR4_PGE (1u << 7)
#define CR4_LA57 (1u << 12)
#define CR4_SMEP (1u << 20)
#define CR4_PKE (1u << 22)
#define EFER_SCE 1u
#define EFER_NXE (1u << 11)

/* Bits of CPUState.interrupt_request. VIRQ is QEMU's and free here, because no guest has SVM; STOP is ours. */
#define REQUEST_VIRQ 0x100u
#define REQUEST_STOP 0x1000000u

/* CPUState.exception_index from here on are no exceptions of the processor. */
#define EXIT_INTERRUPT 0x10000
#define EXIT_HALT 0x10001

#define INVALID_OPCODE 6
#define NOT_PRESENT 11
#define GENERAL_PROTECTION 13

#endif
