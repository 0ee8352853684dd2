"""The structures that KVM's requests carry.

Sources: Linux, include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h (stable since Linux 2.6.22). A
structure stands here once, beside a check of its size: a wrong size would also make a wrong request number,
because the number contains it.
"""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

# struct kvm_userspace_memory_region: slot flags guest_phys_addr memory_size userspace_addr
MEMORY_REGION: Final = struct.Struct("<IIQQQ")
# struct kvm_irq_level: irq level
IRQ_LEVEL: Final = struct.Struct("<II")
# struct kvm_irq_routing: nr flags, then struct kvm_irq_routing_entry: gsi type flags pad, irqchip pin,
# padding
ROUTING_HEADER: Final = struct.Struct("<II")
ROUTING_ENTRY: Final = struct.Struct("<IIII II 24x")
# struct kvm_ioeventfd: datamatch addr len fd flags, padding
IOEVENTFD: Final = struct.Struct("<QQIiI36x")
# struct kvm_coalesced_mmio_zone: addr size pio
COALESCED_ZONE: Final = struct.Struct("<QII")
# struct kvm_cpuid2: nent padding, then struct kvm_cpuid_entry2: function index flags eax ebx ecx edx, padding
CPUID_HEADER: Final = struct.Struct("<II")
CPUID_ENTRY: Final = struct.Struct("<7I12x")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags
REGS: Final = struct.Struct("<18Q")
# struct kvm_segment: base limit selector type present dpl db s l g avl unusable padding
SEGMENT: Final = struct.Struct("<QIH9Bx")
# struct kvm_dtable: base limit padding
TABLE: Final = struct.Struct("<QH6x")
# The end of struct kvm_sregs: cr0 cr2 cr3 cr4 cr8 efer apic_base, interrupt_bitmap
CONTROL: Final = struct.Struct("<7Q32x")
SREGS_BYTES: Final = 8 * SEGMENT.size + 2 * TABLE.size + CONTROL.size
# struct kvm_mp_state: mp_state
MP_STATE: Final = struct.Struct("<I")
# struct kvm_signal_mask: len, then a sigset of the kernel
SIGNAL_MASK: Final = struct.Struct("<IQ")
# struct kvm_msr_list: nmsrs, then as many numbers
MSR_LIST_HEADER: Final = struct.Struct("<I")
# struct kvm_msrs: nmsrs pad, then struct kvm_msr_entry: index reserved data
MSRS_HEADER: Final = struct.Struct("<I4x")
MSR_ENTRY: Final = struct.Struct("<I4xQ")
# struct kvm_translation: linear_address physical_address valid, writeable usermode and padding
TRANSLATION: Final = struct.Struct("<QQB7x")
# struct kvm_guest_debug: control and padding, eight debug registers
GUEST_DEBUG: Final = struct.Struct("<I4x8Q")
# struct kvm_irqchip: chip_id pad, its state
IRQCHIP: Final = struct.Struct("<I4x512s")
# struct kvm_clock_data: clock flags pad realtime host_tsc, padding
CLOCK: Final = struct.Struct("<QII QQ 16x")
# struct kvm_vcpu_events begins with exception, interrupt, nmi and sipi_vector, four bytes each but the first
EVENTS_FLAGS: Final = struct.Struct("<20xI")
EVENTS_BYTES: Final = 64
# Structures that are only saved and put back.
LAPIC_BYTES: Final = 1024
DEBUG_REGISTERS_BYTES: Final = 128
XCRS_BYTES: Final = 392
XSAVE_BYTES: Final = 4096
"""Of a processor without tile registers. `VmFile.xsave_bytes` has the size that is right for all."""

# struct kvm_run, the memory that is shared with the kernel; offsets of what is used.
RUN_EXIT_REASON: Final = struct.Struct("<8xI")
RUN_EXIT: Final = 32
"""Where the union begins that says more about an exit."""
# direction size port count data_offset
RUN_IO: Final = struct.Struct("<BBHIQ")
# phys_addr data len is_write
RUN_MMIO: Final = struct.Struct("<Q8sIB")
RUN_MMIO_DATA: Final = RUN_EXIT + 8
# hardware_entry_failure_reason
RUN_FAIL_ENTRY: Final = struct.Struct("<Q")
# suberror ndata; for an instruction that was not emulated: flags insn_size insn_bytes
RUN_INTERNAL: Final = struct.Struct("<I4xQB15s")

assert (MEMORY_REGION.size, IRQ_LEVEL.size, ROUTING_ENTRY.size, IOEVENTFD.size) == (32, 8, 48, 64)  # noqa: S101
assert (MSR_ENTRY.size, IRQCHIP.size, CLOCK.size, EVENTS_FLAGS.size) == (16, 520, 48, 24)  # noqa: S101
assert (TRANSLATION.size, GUEST_DEBUG.size) == (24, 72)  # noqa: S101
assert (CPUID_ENTRY.size, REGS.size, SEGMENT.size, TABLE.size, SREGS_BYTES) == (40, 144, 24, 16, 312)  # noqa: S101


class CpuidEntry(NamedTuple):
    """What CPUID answers for one leaf."""

    function: int
    """EAX as the guest asks."""
    subleaf: int
    """ECX as the guest asks, where ``flags`` says that it matters."""
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class Registers(NamedTuple):
    """The general registers."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


class Segment(NamedTuple):
    """A segment register with what it was loaded with (Intel SDM vol. 3A, "Segment Descriptors")."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the descriptor's own name
    g: int = 0
    avl: int = 0
    unusable: int = 0


class Table(NamedTuple):
    """A descriptor table: address, and size in bytes less one."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class SystemRegisters:
    """Segments, descriptor tables and control registers."""

    segments: tuple[Segment, ...]
    """CS, DS, ES, FS, GS, SS, TR, LDT."""
    gdt: Table
    idt: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    pending: bytes
    """Interrupts that wait to be delivered, a set of 256 bits."""

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Self:
        """Read ``struct kvm_sregs``."""
        segments = tuple(Segment(*SEGMENT.unpack_from(data, SEGMENT.size * number)) for number in range(8))
        place = 8 * SEGMENT.size
        gdt, idt = (Table(*TABLE.unpack_from(data, place + TABLE.size * number)) for number in range(2))
        place += 2 * TABLE.size
        cr0, cr2, cr3, cr4, cr8, efer, apic_base = CONTROL.unpack_from(data, place)
        return cls(segments, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, bytes(data[-32:]))

    def pack(self) -> bytes:
        """Make ``struct kvm_sregs``."""
        segments = b"".join(SEGMENT.pack(*segment) for segment in self.segments)
        tables = TABLE.pack(*self.gdt) + TABLE.pack(*self.idt)
        control = (self.cr0, self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.apic_base)
        return segments + tables + CONTROL.pack(*control)[:-32] + self.pending
