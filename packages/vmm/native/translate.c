/* A look at each instruction before QEMU translates it.
 *
 * - Instructions that CPUID does not offer but QEMU executes, as some others that resemble them or wrongly:
 *   the translator reads UD2 in their place (refuse.c). So it does for a few that emulate.c executes.
 * - SSE operands of 16 bytes in memory must be aligned, with a few exceptions (alignment.c).
 * - STMXCSR reads flags that live in the host's MXCSR; they are fetched just before.
 * - FCMOV looks at its operands even if it moves nothing.
 * - While an x87 exception is unmasked, each instruction that waits for the x87 looks whether one is pending.
 * - A write to an MMX register changes the x87's state.
 * - CMPXCHG of 32 bits leaves RAX alone when it finds what it expects; QEMU clears the upper half.
 * - At each block's start Unicorn calls a function that looks whether somebody wants the processor. Here it is
 *   a load and a branch, and only in blocks that may end with a jump backwards. Each loop has one of these, or
 *   comes by `helper_lookup_tb_ptr`, which looks, too.
 * - QEMU's optimizer costs an eighth of a translation, and makes code a little faster. A booting kernel runs most
 *   of its code once or twice, so it is left out until there is a program.
 * - Jumps of a kernel to another page are linked like those within a page (links.c).
 * - Repeated MOVS and STOS do at once what lies in one page (strings.c).
 * - LOCK NEG leaves wrong flags; with one processor it is the same without LOCK.
 * - Blocks of many x87 operations are cut, because QEMU writes past a table after a few hundred of them. */

#include "alignment.h"
#include "links.h"
#include "refuse.h"
#include "strings.h"
#include "x87.h"

#define ALIGN_16 0x40 /* of QEMU's MemOp */
#define SIZE_MASK 3
#define SIZE_64 3
#define TYPE_I64 1    /* QEMU's TCGType */
#define TYPE_I32 0
#define CONDITION_EQ 8
#define CONDITION_LT 2
#define OPERATION_SET_LABEL 1 /* of QEMU's TCGOpcode */
#define OPERATION_LD_I32 13
#define OPERATION_MOVI_I64 0x40
#define OPERATION_ST_I64 0x4D
#define WAYS_MAX 2 /* out of a block, which can be linked */
#define EXIT_REQUESTED 3
#define LABEL_PRESENT(label) (FIELD(uint32_t, label, 0) |= 1)
#define UD2 0x0B
#define REPZ_BYTE 0xF3
#define NOWHERE UINT64_MAX
/* QEMU's translator forgets to give temporaries back, two of them for each x87 operation between registers. A block
 * has a table of 512, and nobody looks whether it is full. So a block ends where there may be too few left for one
 * more instruction. */
#define TEMPORARIES_MAX 400

/* For this thread's translation, which is of one instruction at a time. */
static __thread __attribute__((tls_model("initial-exec"))) struct {
    void *translate_instruction; /* QEMU's */
    uint64_t refused_at;         /* where UD2 is read instead */
    uint64_t lock_at;            /* where a prefix without meaning is read instead */
    bool wanted_check;           /* the block's start has still to be translated */
    void *leave_label;           /* where a block goes whose processor is wanted; NULL if it has none */
    void *check;                 /* QEMU's operation that goes there */
    bool in_haste;               /* it is not worth to optimize the block */
    bool may_loop;               /* the block may go on with itself or an earlier one, without any detour */
    struct machine *machine;     /* NULL if it is for an engine that is not ours */
    void *block;                 /* what is translated */
    bool jumps;                  /* the instruction is a jump or a call to a place that it names */
    unsigned ways;               /* out of the block that are linked, a bit for each */
    unsigned linked[WAYS_MAX];   /* the pages that they lead to, if they are others */
    bool align;                  /* the next access of 8 bytes is the first half of an aligned operand */
} current = {.refused_at = NOWHERE, .lock_at = NOWHERE};

static void forget_instruction(void)
{
    current.refused_at = current.lock_at = NOWHERE;
    current.align = current.jumps = false;
}

/* Emit a call. QEMU knows the helpers of its own table only, so these are some of SVM's, which no guest has a use
 * for because CPUID does not offer it. */
static void call(char *tcg, void *helper)
{
    void *argument = TCG_ENV(tcg);

    original.tcg_gen_callN_x86_64(tcg, helper, NULL, 1, &argument);
}

static void call_with(char *tcg, void *helper, int32_t number)
{
    void *constant = tcg + original.tcg_const_i32_x86_64(tcg, number);
    void *arguments[] = {TCG_ENV(tcg), constant};

    original.tcg_gen_callN_x86_64(tcg, helper, NULL, 2, arguments);
    original.tcg_temp_free_internal_x86_64(tcg, constant);
}

void helper_stgi_x86_64(env *registers)
{
    if (machine_of(registers) == NULL)
        original.helper_stgi_x86_64(registers);
    else
        collect_mxcsr(registers);
}

void helper_clgi_x86_64(env *registers)
{
    if (machine_of(registers) == NULL)
        original.helper_clgi_x86_64(registers);
    else
        raise_pending(registers, RETURN_ADDRESS);
}

void helper_vmload_x86_64(env *registers, int index)
{
    if (machine_of(registers) == NULL)
        original.helper_vmload_x86_64(registers, index);
    else
        check_conditional_move(registers, index, RETURN_ADDRESS);
}

/* A write to an MMX register makes the x87's a number that is none, of all of its registers valid ones, and the
 * first of them the top (SDM vol. 1, "MMX Instructions and the x87 FPU Tag Word"). */
void helper_vmsave_x86_64(env *registers, int number)
{
    if (machine_of(registers) == NULL)
        original.helper_vmsave_x86_64(registers, number);
    else
        finish_mmx(registers, number);
}

void helper_invlpga_x86_64(env *registers, int operation)
{
    if (machine_of(registers) == NULL)
        original.helper_invlpga_x86_64(registers, operation);
    else
        repeat_string(registers, operation);
}

/* What `repeat_string` is to do for an instruction; 0 if it is another one. With the trap flag set each round traps,
 * and a debugger's step is one round. */
static int repeated_string(const struct instruction *instruction)
{
    bool stores = (instruction->opcode & 0xFE) == 0xAA, words = instruction->opcode & 1;
    unsigned barred = PREFIX_ADDRESS | PREFIX_LOCK | PREFIX_FS_GS;

    if (instruction->map != 0 || !(stores || (instruction->opcode & 0xFE) == 0xA4)
        || !(instruction->prefixes & (PREFIX_REPZ | PREFIX_REPNZ)) || (instruction->prefixes & barred)
        || !(instruction->flags & HFLAGS_CS64) || (instruction->flags & FLAG_TF)
        || !UC_NO_EXIT_REQUEST(ENV_UC(instruction->registers)))
        return 0;
    int size = !words ? 1 : instruction->rex & REX_W ? 8 : instruction->prefixes & PREFIX_DATA ? 2 : 4;
    return size | (stores ? STRING_STORES : 0);
}

static bool is_stmxcsr(struct instruction instruction)
{
    if (instruction.map != ESCAPE || instruction.opcode != 0xAE
        || (instruction.prefixes & (PREFIX_DATA | PREFIX_REPZ | PREFIX_REPNZ)))
        return false;
    uint8_t modrm = read_code(&instruction);
    return is_memory(modrm) && modrm_reg(modrm) == 3;
}

static bool is_cmpxchg_of_32_bits(const struct instruction *instruction)
{
    return instruction->map == ESCAPE && instruction->opcode == 0xB1 && (instruction->flags & HFLAGS_CS64)
        && !(instruction->prefixes & PREFIX_DATA) && !(instruction->rex & REX_W);
}

static bool is_lock_neg(struct instruction instruction)
{
    return instruction.map == 0 && (instruction.opcode & 0xFE) == 0xF6 && (instruction.prefixes & PREFIX_LOCK)
        && modrm_reg(read_code(&instruction)) == 3;
}

/* Nothing is emitted where the instruction will raise #NM or #UD, which come first. */
static void look_at_x87(char *tcg, struct instruction instruction)
{
    if (instruction.flags & (HFLAGS_EM | HFLAGS_TS))
        return;
    if ((instruction.flags & HFLAGS_X87_UNMASKED) && waits_for_x87(instruction))
        call(tcg, (void *)helper_clgi_x86_64);
    if (instruction.map == 0 && (instruction.opcode & 0xFE) == 0xDA) {
        uint8_t modrm = read_code(&instruction);
        if (!is_memory(modrm) && modrm_reg(modrm) < 4)
            call_with(tcg, (void *)helper_vmload_x86_64, modrm & 7);
    }
}

/* Whether it may be a jump backwards. The last byte of a distance tells its direction. */
static bool may_loop(struct instruction instruction)
{
    uint8_t opcode = instruction.opcode;
    int distance_bytes;

    if (!(instruction.flags & HFLAGS_CS64) || (instruction.prefixes & PREFIX_DATA))
        return true; /* the address may wrap */
    if (instruction.map == 0 && (instruction.prefixes & (PREFIX_REPZ | PREFIX_REPNZ)))
        return true; /* QEMU makes a loop of each repeated instruction */
    if (instruction.map == 0 && ((opcode & 0xF0) == 0x70 || (opcode & 0xFC) == 0xE0 || opcode == 0xEB))
        distance_bytes = 1;
    else if (instruction.map == 0 ? (opcode & 0xFE) == 0xE8 : instruction.map == ESCAPE && (opcode & 0xF0) == 0x80)
        distance_bytes = 4;
    else
        return false;
    instruction.next += (uint64_t)distance_bytes - 1;
    return (instruction.next & 0xFFF) < (uint64_t)distance_bytes - 1 /* it lies in two pages */
        || (int8_t)read_code(&instruction) < 0;
}

static bool is_direct_jump(const struct instruction *instruction)
{
    uint8_t opcode = instruction->opcode;

    if (instruction->map == 0)
        return (opcode & 0xF0) == 0x70 || opcode == 0xE8 || opcode == 0xE9 || opcode == 0xEB;
    return instruction->map == ESCAPE && (opcode & 0xF0) == 0x80;
}

/* Remove a block's operations from one backwards to the one behind another. */
static void remove_operations(void *tcg, void *last, const void *before)
{
    while (last != before) {
        void *next = OPERATION_BEFORE(last);
        original.tcg_op_remove_x86_64(tcg, last);
        last = next;
    }
}

static void translate_instruction(void *disassembly, cpu *processor)
{
    char *tcg = UC_TCG(CPU_UC(processor));
    uint64_t start = DISASSEMBLY_NEXT(disassembly);
    void *theirs = TCG_LAST_OPERATION(tcg), *ours;
    struct instruction instruction;
    void *saved = NULL;
    int mmx = NO_MMX_REGISTER, string;

    forget_instruction();
    if (decode(&instruction, CPU_ENV(processor), start,
               BLOCK_FLAGS(DISASSEMBLY_BLOCK(disassembly)))) {
        current.may_loop |= may_loop(instruction);
        current.jumps = is_direct_jump(&instruction);
        if (is_refused(instruction) || is_emulated(instruction)) {
            current.refused_at = instruction.opcode_at;
        } else if (is_cmpxchg_of_32_bits(&instruction)) {
            saved = original.tcg_temp_new_internal_x86_64(tcg, TYPE_I64, false);
            original.tcg_gen_addi_i64_x86_64(tcg, TCG_VALUE(tcg, saved), TCG_RAX(tcg), 0);
        } else if ((string = repeated_string(&instruction)) != 0) {
            call_with(tcg, (void *)helper_invlpga_x86_64, string);
        } else if (is_stmxcsr(instruction)) {
            call(tcg, (void *)helper_stgi_x86_64);
        } else if (is_lock_neg(instruction)) {
            current.lock_at = instruction.lock_at;
        } else {
            current.align = demands_alignment(&instruction);
            look_at_x87(tcg, instruction);
            mmx = mmx_destination(instruction);
        }
    } else {
        current.may_loop = true;
    }
    ours = TCG_LAST_OPERATION(tcg);
    ((void (*)(void *, cpu *))current.translate_instruction)(disassembly, processor);
    if (DISASSEMBLY_NEXT(disassembly) == start) { /* there is a breakpoint, and the instruction is not to be begun */
        remove_operations(tcg, ours, theirs);
        forget_instruction();
        return;
    }
    if (mmx != NO_MMX_REGISTER)
        call_with(tcg, (void *)helper_vmsave_x86_64, mmx);
    if (saved != NULL) {
        /* QEMU has put into RAX what was in memory. If that is what RAX held, RAX stays as it was. */
        void *low = original.tcg_temp_new_internal_x86_64(tcg, TYPE_I64, false);
        original.tcg_gen_ext32u_i64_x86_64(tcg, TCG_VALUE(tcg, low), TCG_VALUE(tcg, saved));
        original.tcg_gen_movcond_i64_x86_64(tcg, CONDITION_EQ, TCG_RAX(tcg), TCG_VALUE(tcg, low), TCG_RAX(tcg),
                                            TCG_VALUE(tcg, saved), TCG_RAX(tcg));
        original.tcg_temp_free_internal_x86_64(tcg, low);
        original.tcg_temp_free_internal_x86_64(tcg, saved);
    }
    if (TCG_TEMPORARIES(tcg) > TEMPORARIES_MAX)
        DISASSEMBLY_INSTRUCTIONS_MAX(disassembly) = DISASSEMBLY_INSTRUCTIONS(disassembly);
    forget_instruction();
}

void translator_loop_x86_64(const void *operations, void *disassembly, cpu *processor, void *block, int max)
{
    struct machine *machine = CPU_MACHINE(processor);
    void *const *theirs = operations;
    void *ours[TRANSLATOR_OPERATIONS];

    current.leave_label = current.check = NULL;
    current.may_loop = current.in_haste = false;
    current.wanted_check = machine != NULL;
    current.machine = machine;
    current.block = block;
    current.ways = current.linked[0] = current.linked[1] = 0;
    forget_instruction(); /* a fault may have ended the last translation */
    if (machine != NULL) {
        machine->had_programs |= (BLOCK_FLAGS(block) & HFLAGS_CPL) == HFLAGS_CPL;
        current.in_haste = !machine->had_programs;
        for (int at = 0; at < TRANSLATOR_OPERATIONS; at++)
            ours[at] = theirs[at];
        current.translate_instruction = theirs[TRANSLATE_INSTRUCTION];
        ours[TRANSLATE_INSTRUCTION] = (void *)translate_instruction;
        operations = ours;
    }
    original.translator_loop_x86_64(operations, disassembly, processor, block, max);
    if (current.check != NULL && !current.may_loop)
        original.tcg_op_remove_x86_64(UC_TCG(CPU_UC(processor)), current.check); /* what leads to it goes with it */
    for (int way = 0; way < WAYS_MAX; way++) {
        if (current.linked[way] != 0)
            note_link(machine, block, current.linked[way]);
    }
}

void tcg_optimize_x86_64(void *tcg)
{
    if (!current.in_haste)
        original.tcg_optimize_x86_64(tcg);
}

void helper_check_exit_request_x86_64(uc *engine, uint32_t in_delay_slot)
{
    original.helper_check_exit_request_x86_64(engine, in_delay_slot);
}

/* LEAVE_BLOCK is the sign of this word. */
static void check_inline(char *tcg)
{
    void *word = original.tcg_temp_new_internal_x86_64(tcg, TYPE_I32, false);

    current.leave_label = original.gen_new_label_x86_64(tcg);
    original.tcg_gen_op3_x86_64(tcg, OPERATION_LD_I32, (uint64_t)word, (uint64_t)TCG_ENV(tcg),
                                (uint64_t)(ICOUNT_OFFSET - ENV_OFFSET));
    original.tcg_gen_brcondi_i32_x86_64(tcg, CONDITION_LT, TCG_VALUE(tcg, word), 0, current.leave_label);
    current.check = TCG_LAST_OPERATION(tcg);
    original.tcg_temp_free_internal_x86_64(tcg, word);
}

void tcg_gen_callN_x86_64(void *tcg, void *function, void *result, int count, void **arguments)
{
    if (current.wanted_check && function == (void *)helper_check_exit_request_x86_64) {
        current.wanted_check = false;
        check_inline(tcg);
    } else {
        original.tcg_gen_callN_x86_64(tcg, function, result, count, arguments);
    }
}

/* The last thing in a block is its way out when the processor is wanted; until now nothing led there. */
void tcg_gen_exit_tb_x86_64(void *tcg, void *block, unsigned way)
{
    if (way == EXIT_REQUESTED && current.leave_label != NULL) {
        LABEL_PRESENT(current.leave_label);
        original.tcg_gen_op1_x86_64(tcg, OPERATION_SET_LABEL, (uint64_t)current.leave_label);
        current.leave_label = NULL;
    }
    original.tcg_gen_exit_tb_x86_64(tcg, block, way);
}

void tcg_gen_goto_tb_x86_64(void *tcg, unsigned way)
{
    current.ways |= 1u << way;
    original.tcg_gen_goto_tb_x86_64(tcg, way);
}

/* A block ends with a jump out of its page, or an indirect one. QEMU has just written the address into RIP. If that
 * is a constant, the jump may become one like those within a page: a way out that can be linked, and behind it what
 * is done as long as it is not. Of a conditional jump, QEMU translates way 0 first. */
void tcg_gen_lookup_and_goto_ptr_x86_64(void *tcg)
{
    void *store = TCG_LAST_OPERATION((char *)tcg), *constant = OPERATION_BEFORE(store);
    unsigned way = current.ways & 1, page = 0;

    if (current.machine != NULL && current.jumps && current.ways != 3 && BLOCK_BASE(current.block) == 0
        && OPERATION_NUMBER(store) == OPERATION_ST_I64 && OPERATION_ARGUMENT(store, 2) == EIP_OFFSET
        && OPERATION_NUMBER(constant) == OPERATION_MOVI_I64
        && OPERATION_ARGUMENT(store, 0) == OPERATION_ARGUMENT(constant, 0))
        page = linked_page(current.machine, BLOCK_FLAGS(current.block), OPERATION_ARGUMENT(constant, 1));
    if (page == 0) {
        original.tcg_gen_lookup_and_goto_ptr_x86_64(tcg);
        return;
    }
    uint64_t rip = OPERATION_ARGUMENT(constant, 0), address = OPERATION_ARGUMENT(constant, 1);
    original.tcg_op_remove_x86_64(tcg, store);
    original.tcg_op_remove_x86_64(tcg, constant);
    tcg_gen_goto_tb_x86_64(tcg, way);
    original.tcg_gen_op2_x86_64(tcg, OPERATION_MOVI_I64, rip, address);
    original.tcg_gen_op3_x86_64(tcg, OPERATION_ST_I64, rip, (uint64_t)TCG_ENV((char *)tcg), EIP_OFFSET);
    original.tcg_gen_exit_tb_x86_64(tcg, current.block, way);
    current.linked[way] = page;
}

uint32_t cpu_ldub_code_x86_64(env *registers, uint64_t address)
{
    if (__builtin_expect(address - current.refused_at < 2, 0))
        return address == current.refused_at ? ESCAPE : UD2;
    if (__builtin_expect(address == current.lock_at, 0))
        return REPZ_BYTE;
    return machine_of(registers) == NULL ? original.cpu_ldub_code_x86_64(registers, address)
                                         : read_code_byte(registers, address);
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
