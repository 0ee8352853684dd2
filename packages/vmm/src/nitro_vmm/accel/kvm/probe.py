"""Tries whether this host's KVM can run Linux: by opening it, making a machine, and running a small guest.

That ``/dev/kvm`` opens does not say much. Where KVM itself runs in a virtual machine it may be switched off,
or be of a kind that runs small guests and gets stuck in Linux. So a guest does here what Linux does when it
starts, one kind of instruction after the other, and says before each which one comes.
"""

import mmap
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from nitro_vmm.accel import Bus, Ram, Vcpu, Vm
from nitro_vmm.accel.kvm.ioctl import System
from nitro_vmm.accel.kvm.structures import CpuidEntry
from nitro_vmm.accel.kvm.vm import KvmVm
from nitro_vmm.accel.state import EntryState, Exit, ExitReason
from nitro_vmm.address_map import BOOT_PAGE_TABLES, MIB, RamRange
from nitro_vmm.errors import HostError

RAM_BYTES: Final = 4 * MIB
PATIENCE_S: Final = 2.0
"""How long the guest may take, seconds. It takes a few milliseconds, and tens under an emulated processor."""
STEP_PORT: Final = 0x10
MMIO: Final = 0xD000_0000
MMIO_ANSWER: Final = 0x1234_5678

CODE: Final = 0x20_0000
IDT: Final = 0x20_2000
TSS: Final = 0x20_3000
GDT: Final = 0x20_3100
GDT_POINTER: Final = 0x20_3200
IDT_POINTER: Final = 0x20_3210
HANDLERS: Final = 0x20_6000
STACK: Final = 0x20_8000
CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18

# Selectors as Linux has them: code 0x10, data 0x18, user data 0x28, user code 0x30, task 0x40 (two entries).
DESCRIPTORS: Final = (
    0,
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_FB00_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
    0,
    0x0000_8920_3000_0067,
    0,
)
INTERRUPT_GATE: Final = 0x8E00
BREAKPOINT, PAGE_FAULT, TIMER = 3, 14, 0x40
PRESENT_WRITABLE_USER: Final = 0x7
LARGE_PAGE: Final = 0x80
XSAVE: Final = 1 << 26
"""Of CPUID function 1, ECX."""


class Step(NamedTuple):
    """One kind of what Linux does."""

    what: str
    """For people."""
    code: str
    """Instructions, in hexadecimal; each line is one or a few."""


STEPS: Final = (
    Step(
        "descriptor tables (LGDT, LIDT, LTR)",
        """
        0f01142500322000                    # lgdt [GDT_POINTER]
        0f011c2510322000                    # lidt [IDT_POINTER]
        66b84000 0f00d8                     # mov ax,0x40; ltr ax
        """,
    ),
    Step("exceptions (INT3, IRETQ)", "cc"),
    Step(
        "SSE (CR0, CR4, FXSAVE, FXRSTOR)",
        """
        0f20e0 0d00060000 0f22e0            # mov rax,cr4; or eax,0x600; mov cr4,rax
        0f20c0 24fb 0c02 0f22c0             # mov rax,cr0; and al,0xfb; or al,2; mov cr0,rax
        0f11042500442000                    # movups [0x204400],xmm0
        480fae0425004020 00                 # fxsave64 [0x204000]
        480fae0c25004020 00                 # fxrstor64 [0x204000]
        """,
    ),
    Step(
        "paging (CR3, INVLPG, page faults)",
        """
        0f20d8 0f22d8                       # mov rax,cr3; mov cr3,rax
        0f013c2500402000                    # invlpg [0x204000]
        48bb0000000070000000 488b1b         # mov rbx,0x7000000000; mov rbx,[rbx]
        """,
    ),
    Step(
        "model-specific registers and CPUID (WRMSR, RDMSR, RDTSC)",
        """
        b9810000c0 31c0 ba10002300 0f30     # mov ecx,STAR; xor eax,eax; mov edx,0x230010; wrmsr
        0f32                                # rdmsr
        ffc1 b860602000 31d2 0f30           # inc ecx (LSTAR); mov eax,HANDLERS+0x60; xor edx,edx; wrmsr
        b9840000c0 b800020000 0f30          # mov ecx,FMASK; mov eax,0x200; wrmsr
        b9800000c0 0f32 0c01 0f30           # mov ecx,EFER; rdmsr; or al,1; wrmsr
        0f31 b801000000 0fa2                # rdtsc; mov eax,1; cpuid
        """,
    ),
    Step(
        "user mode (SWAPGS, SYSRET, SYSCALL)",
        """
        0f01f8 0f01f8                       # swapgs; swapgs
        4c8d250e000000                      # lea r12,[after the sysret]
        b980602000 41bb02000000 480f07      # mov ecx,HANDLERS+0x80; mov r11d,2; sysretq
        48c7c400802000                      # mov rsp,STACK
        """,
    ),
    Step(
        "interrupts (local APIC, STI, HLT)",
        """
        bb0000e0fe                          # mov ebx,0xfee00000
        c783f0000000 ff010000               # mov dword [rbx+0xf0],0x1ff: enable
        c783e0030000 0b000000               # mov dword [rbx+0x3e0],0xb: divide by 1
        c78320030000 40000000               # mov dword [rbx+0x320],0x40: vector, once
        c78380030000 00100000               # mov dword [rbx+0x380],0x1000: start
        fb f4 fa                            # sti; hlt; cli
        """,
    ),
    Step(
        "device memory",
        """
        bb000000d0 8b03 894304              # mov ebx,MMIO; mov eax,[rbx]; mov [rbx+4],eax
        """,
    ),
)
XSAVE_STEP: Final = Step(
    "AVX state (XSETBV, XSAVE, XRSTOR)",
    """
    0f20e0 0d00000400 0f22e0                # mov rax,cr4; or eax,0x40000; mov cr4,rax
    31c9 31d2 b803000000 0f01d1             # xor ecx,ecx; xor edx,edx; mov eax,3; xsetbv
    480fae2425004020 00                     # xsave64 [0x204000]
    480fae2c25004020 00                     # xrstor64 [0x204000]
    """,
)
"""Only where the processor has it."""

ENTRIES: Final = {
    0x00: "48cf",  # of INT3: iretq
    0x20: "4883442408 03 4883c408 48cf",  # of the page fault: add qword [rsp+8],3; add rsp,8; iretq
    0x40: "c783b0000000 00000000 48cf",  # of the timer: mov dword [rbx+0xb0],0; iretq
    0x60: "41ffe4",  # of system calls: jmp r12
    0x80: "0f05",  # in user mode: syscall
}
"""Code by its offset from `HANDLERS`. A page fault ends behind the instruction of three bytes that made
it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether KVM can be used here."""

    usable: bool
    reason: str = ""
    """Why not, for people; empty if it can."""
    hint: str = ""
    """What to do about it; empty where nothing can be done."""


def probe(open_system: Callable[[], System] = System) -> Verdict:
    """Try KVM out; takes some milliseconds, and up to `PATIENCE_S` where it hangs.

    Args:
        open_system: Opens the kernel's KVM.
    """
    try:
        system = open_system()
    except HostError as error:
        return Verdict(usable=False, reason=str(error), hint=error.hint)
    try:
        return run_steps(steps_for(system.supported_cpuid()), lambda ram, bus: KvmVm(system, ram, bus))
    except HostError as error:
        return Verdict(usable=False, reason=f"this KVM makes no machines: {error}")
    finally:
        system.close()


def steps_for(cpuid: Iterable[CpuidEntry]) -> tuple[Step, ...]:
    """What the guest is to do on a processor that says this of itself."""
    has_xsave = any(entry.function == 1 and entry.ecx & XSAVE for entry in cpuid)
    return (*STEPS, XSAVE_STEP) if has_xsave else STEPS


def run_steps(steps: tuple[Step, ...], create_vm: Callable[[Ram, Bus], Vm]) -> Verdict:
    """Run the guest.

    Args:
        steps: What it does.
        create_vm: Makes its machine, of the accelerator that is tried.

    Raises:
        HostError: The machine cannot be made.
    """
    memory = mmap.mmap(-1, RAM_BYTES)
    bus = _Bus(len(steps))
    _fill(memory, steps)
    vm = create_vm([(RamRange(0, RAM_BYTES), memory)], bus)
    try:
        vcpu = vm.vcpus[0]
        bus.finished = vcpu.kick
        vcpu.enter(
            EntryState(
                rip=CODE,
                rsi=0,
                rsp=STACK,
                cr3=BOOT_PAGE_TABLES,
                gdt_address=GDT,
                gdt_limit=8 * len(DESCRIPTORS) - 1,
                code_selector=CODE_SELECTOR,
                data_selector=DATA_SELECTOR,
                command_line=b"",
            )
        )
        exit_ = _run(vcpu)
    finally:
        vm.close()
    if bus.step == len(steps) and bus.stored == MMIO_ANSWER:
        return Verdict(usable=True)
    failed = steps[min(bus.step, len(steps) - 1)].what
    how = exit_.details or {
        ExitReason.KICKED: f"it hangs for {PATIENCE_S} s",
        ExitReason.TRIPLE_FAULT: "the guest crashes",
    }.get(exit_.reason, "it does something else")
    return Verdict(
        usable=False,
        reason=f"this KVM cannot run Linux: {failed}: {how}",
        hint="if this is a virtual machine, ask for nested virtualization by hardware on its host",
    )


def _run(vcpu: Vcpu) -> Exit:
    timer = threading.Timer(PATIENCE_S, vcpu.kick)
    timer.start()
    try:
        return vcpu.run()
    finally:
        timer.cancel()


class _Bus:
    """What the guest can reach: a port to say how far it is, and a device's register."""

    def __init__(self, steps: int) -> None:
        self.step = 0
        """How many steps are done."""
        self.finished: Callable[[], None] = lambda: None
        """Called after the last step, because it takes a while to notice that a guest halts for good."""
        self._steps = steps
        self.stored: int | None = None

    def read_port(self, port: int, size: int) -> int:  # noqa: ARG002
        """See `Bus`."""
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        """See `Bus`."""
        if port == STEP_PORT:
            self.step = value
            if value == self._steps:
                self.finished()

    def read_memory(self, address: int, size: int) -> int:  # noqa: ARG002
        """See `Bus`."""
        return MMIO_ANSWER if address == MMIO else 0

    def write_memory(self, address: int, size: int, value: int) -> None:  # noqa: ARG002
        """See `Bus`."""
        if address == MMIO + 4:
            self.stored = value

    def finish_output(self) -> None:
        """See `Bus`."""


def assemble(code: str) -> bytes:
    """The bytes of a step's code, without its comments."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in code.splitlines()))


def _fill(ram: mmap.mmap, steps: tuple[Step, ...]) -> None:
    def put(address: int, data: bytes) -> None:
        ram[address : address + len(data)] = data

    # Four gigabytes, one to one, in pages of 2 MiB, which user mode may use as well.
    tables = [BOOT_PAGE_TABLES + 0x1000 * number | PRESENT_WRITABLE_USER for number in range(1, 6)]
    put(BOOT_PAGE_TABLES, struct.pack("<Q", tables[0]))
    put(BOOT_PAGE_TABLES + 0x1000, struct.pack("<4Q", *tables[1:]))
    pages = (number << 21 | LARGE_PAGE | PRESENT_WRITABLE_USER for number in range(4 * 512))
    put(BOOT_PAGE_TABLES + 0x2000, struct.pack(f"<{4 * 512}Q", *pages))

    put(GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS))
    put(GDT_POINTER, struct.pack("<HQ", 8 * len(DESCRIPTORS) - 1, GDT))
    put(IDT_POINTER, struct.pack("<HQ", 0xFFF, IDT))
    put(TSS + 4, struct.pack("<Q", STACK))
    for vector, offset in ((BREAKPOINT, 0x00), (PAGE_FAULT, 0x20), (TIMER, 0x40)):
        address = HANDLERS + offset
        gate = struct.pack("<HHHHII", address & 0xFFFF, CODE_SELECTOR, INTERRUPT_GATE, address >> 16, 0, 0)
        put(IDT + 16 * vector, gate)
    for offset, code in ENTRIES.items():
        put(HANDLERS + offset, bytes.fromhex(code))
    # Each step is followed by mov al,NUMBER; out STEP_PORT,al. Behind the last one: cli; hlt.
    done = [
        assemble(step.code) + bytes([0xB0, number, 0xE6, STEP_PORT]) for number, step in enumerate(steps, 1)
    ]
    put(CODE, b"".join(done) + b"\xfa\xf4")
