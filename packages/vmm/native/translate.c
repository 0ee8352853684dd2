/* A look at each instruction before QEMU translates it.
 *
 * - VEX instructions are AVX, which CPUID does not offer, but QEMU executes some as the SSE instructions that
 *   they resemble: the translator reads UD2 in their place.
 * - SSE operands of 16 bytes in memory must be aligned, with a few exceptions.
 * - STMXCSR reads flags that live in the host's MXCSR; they are fetched just before. */

#include "sse.h"

#define PREFIX_DATA 1u
#define PREFIX_REPZ 2u
#define PREFIX_REPNZ 4u
#define INSTRUCTION_BYTES_MAX 15
#define ALIGN_16 0x40 /* of QEMU's MemOp */
#define SIZE_MASK 3
#define SIZE_64 3
#define ESCAPE 0x0F
#define UD2 0x0B

/* For this thread's translation, which is of one instruction at a time. */
static __thread __attribute__((tls_model("initial-exec"))) struct {
    void *translate_instruction; /* QEMU's */
    uint64_t vex_at;             /* the address of a VEX prefix; -1 if there is none */
    bool align;                  /* the next access of 8 bytes is the first half of an aligned operand */
} current = {NULL, UINT64_MAX, false};

struct instruction {
    unsigned prefixes;
    int map; /* 0x0F, 0x38 or 0x3A; 0 for the one-byte map */
    uint8_t opcode;
};

/* One bit for each opcode of a row of sixteen. */
static bool in_rows(const uint16_t rows[16], uint8_t opcode)
{
    return rows[opcode >> 4] >> (opcode & 15) & 1;
}

/* Whether an operand in memory must be aligned (SDM vol. 2, "Exceptions Type" 1, 2 and 4 of the legacy forms).
 * Not so those that load less than 16 bytes, and MOVUPS, MOVUPD, MOVDQU, LDDQU, PCMPxSTRx. */
static bool demands_alignment(const struct instruction *instruction)
{
    static const uint16_t none[16] = {
        [0x1] = 0x0030,                 /* UNPCKxPS */
        [0x2] = 0x0B00,                 /* MOVAPS, MOVNTPS */
        [0x5] = 0xFBFE & ~0x0400,       /* SQRTPS ... MAXPS without CVTPS2PD */
        [0xC] = 0x0044,                 /* CMPPS, SHUFPS */
    };
    static const uint16_t data[16] = {
        [0x1] = 0x0030,                 /* UNPCKxPD */
        [0x2] = 0x3B00,                 /* MOVAPD, MOVNTPD, CVTxPD2PI */
        [0x5] = 0xFFF2,                 /* SQRTPD, ANDPD ... MAXPD */
        [0x6] = 0xBFFF,                 /* PUNPCKxxx ... MOVDQA, without MOVD */
        [0x7] = 0xB071,                 /* PSHUFD, PCMPEQx, HADDPD, HSUBPD, MOVDQA */
        [0xC] = 0x0044,                 /* CMPPD, SHUFPD */
        [0xD] = 0xFFBF, [0xE] = 0xFFFF, /* without MOVQ */
        [0xF] = 0x7F7E,                 /* without MASKMOVDQU */
    };
    static const uint16_t repz[16] = {
        [0x1] = 0x0044,                 /* MOVSLDUP, MOVSHDUP */
        [0x5] = 0x0800,                 /* CVTTPS2DQ */
        [0x7] = 0x0001,                 /* PSHUFHW */
    };
    static const uint16_t repnz[16] = {
        [0x7] = 0x3001,                 /* PSHUFLW, HADDPS, HSUBPS */
        [0xD] = 0x0001,                 /* ADDSUBPS */
        [0xE] = 0x0040,                 /* CVTPD2DQ */
    };
    static const uint16_t data_38[16] = {
        [0x0] = 0x0FFF,                 /* SSSE3 */
        [0x1] = 0x70B1,                 /* PBLENDVB, BLENDVPx, PTEST, PABSx */
        [0x2] = 0x0F00,                 /* PMULDQ, PCMPEQQ, MOVNTDQA, PACKUSDW */
        [0x3] = 0xFF80,                 /* PCMPGTQ, PMINx, PMAXx */
        [0x4] = 0x0003,                 /* PMULLD, PHMINPOSUW */
        [0xD] = 0xF800,                 /* AES */
    };
    static const uint16_t data_3a[16] = {
        [0x0] = 0xF300,                 /* ROUNDPx, BLENDPx, PBLENDW, PALIGNR */
        [0x4] = 0x0017,                 /* DPPx, MPSADBW, PCLMULQDQ */
        [0xD] = 0x8000,                 /* AESKEYGENASSIST */
    };
    uint8_t opcode = instruction->opcode;

    switch (instruction->map) {
    case 0x0F:
        if (instruction->prefixes & PREFIX_DATA)
            return in_rows(data, opcode);
        if (instruction->prefixes & PREFIX_REPZ)
            return in_rows(repz, opcode);
        return in_rows(instruction->prefixes & PREFIX_REPNZ ? repnz : none, opcode);
    case 0x38: return (instruction->prefixes & PREFIX_DATA) && in_rows(data_38, opcode);
    case 0x3A: return (instruction->prefixes & PREFIX_DATA) && in_rows(data_3a, opcode);
    default: return false;
    }
}

/* Emit a call that fetches the flags: QEMU knows the helpers of its own table only, so it is STGI's, which no
 * guest has a use for because CPUID offers no SVM. */
static void fetch_flags_first(uc *engine)
{
    char *tcg = UC_TCG(engine);
    void *argument = TCG_ENV(tcg);

    original.tcg_gen_callN_x86_64(tcg, (void *)helper_stgi_x86_64, NULL, 1, &argument);
}

void helper_stgi_x86_64(env *registers)
{
    if (machine_of(registers) == NULL)
        original.helper_stgi_x86_64(registers);
    else
        collect_mxcsr(registers);
}

/* Each byte that is read here belongs to the instruction, so a fault is one that QEMU would raise, too. */
static void inspect(uint64_t address, uint32_t flags, env *registers)
{
    struct instruction found = {0, 0, 0};
    uint64_t end = address + INSTRUCTION_BYTES_MAX;
    uint8_t byte;

#define NEXT() original.cpu_ldub_code_x86_64(registers, address++)
    for (;;) {
        byte = NEXT();
        switch (byte) {
        case 0x66: found.prefixes |= PREFIX_DATA; break;
        case 0xF3: found.prefixes |= PREFIX_REPZ; break;
        case 0xF2: found.prefixes |= PREFIX_REPNZ; break;
        case 0xF0: case 0x67: case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: break;
        default:
            if (!(flags & HFLAGS_CS64) || (byte & 0xF0) != 0x40)
                goto opcode;
        }
        if (address >= end)
            return;
    }
opcode:
    if (byte == 0xC4 || byte == 0xC5) {
        uint64_t at = address - 1;
        /* In 32-bit code a memory operand makes it LES or LDS. */
        if ((flags & HFLAGS_CS64) || ((flags & HFLAGS_CS32) && !(flags & FLAG_VM) && (NEXT() & 0xC0) == 0xC0))
            current.vex_at = at;
        return;
    }
    if (byte != ESCAPE)
        return;
    found.map = ESCAPE;
    found.opcode = NEXT();
    if (found.opcode == 0x38 || found.opcode == 0x3A) {
        found.map = found.opcode;
        found.opcode = NEXT();
    } else if (found.opcode == 0xAE && !found.prefixes) {
        uint8_t modrm = NEXT();
        if (modrm < 0xC0 && (modrm >> 3 & 7) == 3)
            fetch_flags_first(ENV_UC(registers));
        return;
    }
    current.align = demands_alignment(&found);
#undef NEXT
}

static void translate_instruction(void *disassembly, cpu *processor)
{
    current.vex_at = UINT64_MAX;
    current.align = false;
    inspect(DISASSEMBLY_NEXT(disassembly), BLOCK_FLAGS(DISASSEMBLY_BLOCK(disassembly)), CPU_ENV(processor));
    ((void (*)(void *, cpu *))current.translate_instruction)(disassembly, processor);
    current.align = false;
}

void translator_loop_x86_64(const void *operations, void *disassembly, cpu *processor, void *block, int max)
{
    void *const *theirs = operations;
    void *ours[TRANSLATOR_OPERATIONS];

    current.vex_at = UINT64_MAX;
    current.align = false;
    if (CPU_MACHINE(processor) != NULL) {
        for (int at = 0; at < TRANSLATOR_OPERATIONS; at++)
            ours[at] = theirs[at];
        current.translate_instruction = theirs[TRANSLATE_INSTRUCTION];
        ours[TRANSLATE_INSTRUCTION] = (void *)translate_instruction;
        operations = ours;
    }
    original.translator_loop_x86_64(operations, disassembly, processor, block, max);
}

uint8_t cpu_ldub_code_x86_64(env *registers, uint64_t address)
{
    if (__builtin_expect(address - current.vex_at < 2, 0))
        return address == current.vex_at ? ESCAPE : UD2;
    return original.cpu_ldub_code_x86_64(registers, address);
}

static int aligned(int operation)
{
    if (!current.align || (operation & SIZE_MASK) != SIZE_64)
        return operation;
    current.align = false;
    return operation | ALIGN_16;
}

void tcg_gen_qemu_ld_i64_x86_64(void *tcg, void *value, void *address, uint64_t mmu_index, int operation)
{
    original.tcg_gen_qemu_ld_i64_x86_64(tcg, value, address, mmu_index, aligned(operation));
}

void tcg_gen_qemu_st_i64_x86_64(void *tcg, void *value, void *address, uint64_t mmu_index, int operation)
{
    original.tcg_gen_qemu_st_i64_x86_64(tcg, value, address, mmu_index, aligned(operation));
}

void on_unaligned_access(cpu *processor, uint64_t address, int access, int mmu_index, uintptr_t return_address)
{
    (void)address, (void)access, (void)mmu_index;
    raise_exception(CPU_ENV(processor), GENERAL_PROTECTION, 0, return_address);
}
