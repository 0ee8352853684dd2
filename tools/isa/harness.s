# Runs forms on inputs and writes down the state of the processor after each. The same code runs as a guest
# without a kernel (guest_entry) and as a process of Linux (host_entry). The symbols in capitals come from
# layout.py; the table of forms is appended:
#   quadwords: address of the form's code, defined flags, defined bits of the x87 status word, its inputs.

        .intel_syntax noprefix
        .code64
        .globl  guest_entry, host_entry
        .text

        .set    FIRST_FORM, CONTROL
        .set    FORMS, CONTROL+8
        .set    COUNT, CONTROL+16
        .set    RESULT, CONTROL+24
        .set    ENTRY, CONTROL+32               # the current line of the table
        .set    LEFT, CONTROL+40                # inputs left
        .set    INPUT, CONTROL+48
        .set    CODE, CONTROL+56                # the form's first byte
        .set    CALLER_STACK, CONTROL+64
        .set    CALLER_FS, CONTROL+72
        .set    CALLER_GS, CONTROL+80

        jmp     guest_entry                     # at BASE
        .balign 16
        jmp     host_entry                      # at BASE+16

# Run all forms that CONTROL names; clobbers everything.
run:    mov     rsp, SCRATCH_STACK
        mov     rbx, [FIRST_FORM]
        shl     rbx, 5
        add     rbx, offset table
        mov     [ENTRY], rbx
        call    ask_features
next_form:
        cmp     qword ptr [FORMS], 0
        je      done
        dec     qword ptr [FORMS]
        mov     rbx, [ENTRY]
        mov     rax, [rbx]
        mov     [CODE], rax
        mov     rax, [rbx+24]
        mov     [INPUT], rax
        mov     rax, [COUNT]
        mov     [LEFT], rax
next_input:
        mov     rsi, [INPUT]
        lea     rsi, [rsi+704]
        mov     rdi, MEM
        mov     ecx, 16
        rep movsq
        mov     rsp, SCRATCH_STACK
        mov     rsi, [INPUT]
        fxrstor64 [rsi]
        mov     dword ptr [STATE+648], -1       # no exception
        mov     dword ptr [STATE+652], 0
        mov     qword ptr [STATE+656], 0
        push    qword ptr [rsi+640]
        mov     rsp, rsi
        mov     rcx, [rsp+520]
        mov     rdx, [rsp+528]
        mov     rbx, [rsp+536]
        mov     rbp, [rsp+552]
        mov     rdi, [rsp+568]
        mov     r8, [rsp+576]
        mov     r9, [rsp+584]
        mov     r10, [rsp+592]
        mov     r11, [rsp+600]
        mov     r12, [rsp+608]
        mov     r13, [rsp+616]
        mov     r14, [rsp+624]
        mov     r15, [rsp+632]
        mov     rax, [rsp+512]
        mov     rsi, [rsp+560]
        mov     rsp, SCRATCH_STACK-8
        popfq
        mov     rsp, [INPUT]
        mov     rsp, [rsp+544]
        jmp     [CODE]

# The form is done, or has faulted.
save:   mov     [STATE+512], rax
        mov     [STATE+520], rcx
        mov     [STATE+528], rdx
        mov     [STATE+536], rbx
        mov     [STATE+544], rsp
        mov     [STATE+552], rbp
        mov     [STATE+560], rsi
        mov     [STATE+568], rdi
        mov     [STATE+576], r8
        mov     [STATE+584], r9
        mov     [STATE+592], r10
        mov     [STATE+600], r11
        mov     [STATE+608], r12
        mov     [STATE+616], r13
        mov     [STATE+624], r14
        mov     [STATE+632], r15
        mov     rsp, SCRATCH_STACK
        pushfq
        pop     qword ptr [STATE+640]
        cld
        stmxcsr [STATE+664]
        fxsave64 [STATE]
        mov     rbx, [ENTRY]
        mov     rax, [rbx+8]
        and     [STATE+640], rax
        mov     eax, [rbx+16]
        and     [STATE+2], ax
        xor     eax, eax                        # what no two processors write alike: FOP, FIP, FDP,
        mov     [STATE+5], al                   # MXCSR_MASK, reserved bytes
        mov     [STATE+6], ax
        mov     [STATE+8], rax
        mov     [STATE+16], rax
        mov     [STATE+28], eax
        .irp    number, 0, 1, 2, 3, 4, 5, 6, 7
        mov     [STATE+42+16*\number], eax
        mov     [STATE+46+16*\number], ax
        .endr
        mov     rsi, MEM
        mov     edi, STATE+704
        mov     ecx, 16
        rep movsq
        mov     esi, STATE
        mov     rdi, [RESULT]
        mov     ecx, 104
        rep movsq
        mov     [RESULT], rdi
        add     qword ptr [INPUT], 832
        dec     qword ptr [LEFT]
        jnz     next_input
        add     qword ptr [ENTRY], 32
        jmp     next_form

ask_features:
        mov     edi, FEATURES
        mov     eax, 1
        xor     ecx, ecx
        call    ask
        mov     eax, 7
        xor     ecx, ecx
        call    ask
        mov     eax, 0x80000001
        call    ask
        ret
ask:    cpuid
        mov     [rdi], eax
        mov     [rdi+4], ebx
        mov     [rdi+8], ecx
        mov     [rdi+12], edx
        add     rdi, 16
        ret

done:   mov     rsp, [CALLER_STACK]
        test    rsp, rsp
        jnz     host_exit
        cli
        hlt

# As a guest: 64-bit mode, ring 0, memory mapped one to one.

guest_entry:
        mov     rsp, SCRATCH_STACK
        mov     rax, cr0
        and     eax, ~0xC                       # no EM, no TS
        or      eax, 0x10022                    # MP, NE, WP
        mov     cr0, rax
        mov     rax, cr4
        or      eax, 0x10600                    # OSFXSR, OSXMMEXCPT, FSGSBASE
        mov     cr4, rax
        mov     eax, offset stubs
        mov     edi, offset idt
        mov     ecx, 32
gate:   mov     [rdi], ax
        mov     word ptr [rdi+2], 0x10
        mov     word ptr [rdi+4], 0x8E01        # interrupt gate, IST 1
        mov     edx, eax
        shr     edx, 16
        mov     [rdi+6], dx
        add     eax, 128
        add     edi, 16
        loop    gate
        mov     eax, offset tss
        mov     [gdt+0x22], ax
        shr     eax, 16
        mov     [gdt+0x24], al
        mov     [gdt+0x27], ah
        lgdt    [gdt_pointer]
        lidt    [idt_pointer]
        mov     eax, 0x20
        ltr     ax
        mov     qword ptr [CALLER_STACK], 0
        jmp     run

        .macro  stub vector, code=0
        .balign 128
        .if     \code
        pop     qword ptr [STATE+652]           # what it writes beyond the field is written again below
        .endif
        mov     dword ptr [STATE+648], \vector
        push    rax
        mov     rax, [rsp+8]
        sub     rax, [CODE]
        mov     [STATE+656], rax
        pop     rax
        mov     qword ptr [rsp], offset save
        iretq
        .endm
        .balign 128
stubs:
        .altmacro
        .set    vector, 0
        .rept   32
        .if     vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
        stub    %vector, 1
        .else
        stub    %vector
        .endif
        .set    vector, vector+1
        .endr
        .noaltmacro

        .balign 16
idt:    .zero   32*16
idt_pointer:
        .word   32*16-1
        .quad   idt
        .balign 16
gdt:    .quad   0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
        .quad   0x0000890000000067, 0           # the TSS
gdt_pointer:
        .word   6*8-1
        .quad   gdt
        .balign 16
tss:    .long   0
        .quad   0, 0, 0, 0
        .quad   EXCEPTION_STACK                 # IST1
        .zero   0x68-44

# As a process of Linux; System V calling convention.

host_entry:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        mov     [CALLER_STACK], rsp
        rdfsbase rax
        mov     [CALLER_FS], rax
        rdgsbase rax
        mov     [CALLER_GS], rax
        mov     edi, offset signal_stack
        xor     esi, esi
        mov     eax, 131                        # sigaltstack
        syscall
        .irp    signal, 4, 5, 7, 8, 11          # ILL TRAP BUS FPE SEGV
        mov     edi, \signal
        mov     esi, offset action
        xor     edx, edx
        mov     r10d, 8
        mov     eax, 13                         # rt_sigaction
        syscall
        .endr
        jmp     run
host_exit:
        mov     rax, [CALLER_FS]
        wrfsbase rax
        mov     rax, [CALLER_GS]
        wrgsbase rax
        fninit
        mov     dword ptr [STATE], 0x1F80
        ldmxcsr [STATE]
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        xor     eax, eax
        ret

handler:                                        # rdx: struct ucontext
        mov     eax, [rdx+200]                  # the exception's number
        mov     [STATE+648], eax
        mov     rcx, [rdx+192]                  # its error code, but not that user code ran
        and     ecx, ~4
        mov     [STATE+652], ecx
        mov     rax, [rdx+168]                  # RIP
        sub     rax, [CODE]
        mov     [STATE+656], rax
        mov     eax, offset save
        mov     [rdx+168], rax
        ret
restorer:
        mov     eax, 15                         # rt_sigreturn
        syscall

        .balign 8
action: .quad   handler, 0x4C000004, restorer, 0        # SIGINFO, RESTORER, ONSTACK, NODEFER
signal_stack:
        .quad   SIGNAL_STACK, 0, SIGNAL_STACK_BYTES
