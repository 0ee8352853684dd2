"""KVM's numbers and structures, against Linux's own header where there is a C compiler; no KVM is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nitro_vmm.accel.kvm import debug, ioctl, state, structures
from nitro_vmm.accel.kvm.ioctl import Request
from nitro_vmm.accel.kvm.structures import CpuidEntry, Registers, Segment, SystemRegisters, Table
from nitro_vmm.accel.kvm.vm import TSS_ADDRESS
from nitro_vmm.address_map import MIB, ram_ranges, virtio_slot

HEADER = Path("/usr/include/linux/kvm.h")
PAGE = 4096

NUMBERS: dict[str, int] = {
    **{f"KVM_{request.name}": int(request) for request in Request if request is not Request.SET_SIGNAL_MASK},
    "KVM_API_VERSION": ioctl.API_VERSION,
    "KVM_CAP_COALESCED_MMIO": ioctl.CAP_COALESCED_MMIO,
    "KVM_CAP_TSC_DEADLINE_TIMER": ioctl.CAP_TSC_DEADLINE_TIMER,
    "KVM_CAP_COALESCED_PIO": ioctl.CAP_COALESCED_PIO,
    "KVM_CAP_SET_GUEST_DEBUG2": ioctl.CAP_SET_GUEST_DEBUG2,
    "KVM_CAP_XSAVE2": ioctl.CAP_XSAVE2,
    "KVM_EXIT_IO": ioctl.EXIT_IO,
    "KVM_EXIT_DEBUG": ioctl.EXIT_DEBUG,
    "KVM_EXIT_MMIO": ioctl.EXIT_MMIO,
    "KVM_EXIT_SHUTDOWN": ioctl.EXIT_SHUTDOWN,
    "KVM_EXIT_FAIL_ENTRY": ioctl.EXIT_FAIL_ENTRY,
    "KVM_EXIT_INTR": ioctl.EXIT_INTR,
    "KVM_EXIT_INTERNAL_ERROR": ioctl.EXIT_INTERNAL_ERROR,
    "KVM_EXIT_IO_OUT": ioctl.IO_OUT,
    "KVM_INTERNAL_ERROR_EMULATION": ioctl.INTERNAL_EMULATION,
    "KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES": ioctl.INTERNAL_HAS_BYTES,
    "KVM_IOEVENTFD_FLAG_DATAMATCH": ioctl.IOEVENTFD_DATAMATCH,
    "KVM_IRQ_ROUTING_IRQCHIP": ioctl.ROUTING_IRQCHIP,
    "KVM_IRQCHIP_IOAPIC": ioctl.IRQCHIP_IOAPIC,
    "KVM_MP_STATE_UNINITIALIZED": ioctl.MP_STATE_UNINITIALIZED,
    "KVM_MP_STATE_HALTED": ioctl.MP_STATE_HALTED,
    "KVM_GUESTDBG_ENABLE": debug.ENABLE,
    "KVM_GUESTDBG_SINGLESTEP": debug.SINGLE_STEP,
    "KVM_GUESTDBG_USE_HW_BP": debug.HARDWARE_BREAKPOINTS,
    "KVM_GUESTDBG_BLOCKIRQ": debug.BLOCK_INTERRUPTS,
    "KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR": state.EVENTS_VALID,
    "sizeof(struct kvm_lapic_state)": structures.LAPIC_BYTES,
    "sizeof(struct kvm_debugregs)": structures.DEBUG_REGISTERS_BYTES,
    "sizeof(struct kvm_xcrs)": structures.XCRS_BYTES,
    "sizeof(struct kvm_vcpu_events)": structures.EVENTS_BYTES,
    "sizeof(struct kvm_sregs)": structures.SREGS_BYTES,
    "offsetof(struct kvm_run, exit_reason) + 4": structures.RUN_EXIT_REASON.size,
    "offsetof(struct kvm_run, io)": structures.RUN_EXIT,
    "offsetof(struct kvm_run, mmio.data)": structures.RUN_MMIO_DATA,
    "offsetof(struct kvm_vcpu_events, flags) + 4": structures.EVENTS_FLAGS.size,
}


SEGMENT_FIELDS = [
    "base",
    "limit",
    "selector",
    "type",
    "present",
    "dpl",
    "db",
    "s",
    "l",
    "g",
    "avl",
    "unusable",
]
REGS_FIELDS = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "rflags",
]

# Our bytes with the numbers 1, 2, ... and the C fields that must have them.
STRUCTURES: dict[str, tuple[bytes, str]] = {
    "kvm_userspace_memory_region": (
        structures.MEMORY_REGION.pack(1, 2, 3, 4, 5),
        "slot flags guest_phys_addr memory_size userspace_addr",
    ),
    "kvm_irq_level": (structures.IRQ_LEVEL.pack(1, 2), "irq level"),
    "kvm_irq_routing": (structures.ROUTING_HEADER.pack(1, 2), "nr flags"),
    "kvm_irq_routing_entry": (
        structures.ROUTING_ENTRY.pack(1, 2, 3, 0, 4, 5),
        "gsi type flags u.irqchip.irqchip u.irqchip.pin",
    ),
    "kvm_ioeventfd": (structures.IOEVENTFD.pack(1, 2, 3, 4, 5), "datamatch addr len fd flags"),
    "kvm_coalesced_mmio_zone": (structures.COALESCED_ZONE.pack(1, 2, 3), "addr size pio"),
    "kvm_cpuid2": (structures.CPUID_HEADER.pack(1, 0), "nent"),
    "kvm_cpuid_entry2": (
        structures.CPUID_ENTRY.pack(*CpuidEntry(1, 2, 3, 4, 5, 6, 7)),
        "function index flags eax ebx ecx edx",
    ),
    "kvm_regs": (
        structures.REGS.pack(*Registers(**{name: at for at, name in enumerate(REGS_FIELDS, 1)})),
        " ".join(REGS_FIELDS),
    ),
    "kvm_segment": (
        structures.SEGMENT.pack(*Segment(**{name: at for at, name in enumerate(SEGMENT_FIELDS, 1)})),
        " ".join(SEGMENT_FIELDS),
    ),
    "kvm_sregs": (
        SystemRegisters(
            tuple(Segment(selector=number) for number in range(1, 9)),
            gdt=Table(9, 10),
            idt=Table(11, 12),
            cr0=13,
            cr2=14,
            cr3=15,
            cr4=16,
            cr8=17,
            efer=18,
            apic_base=19,
            pending=bytes([20]) + bytes(31),
        ).pack(),
        (
            "cs.selector ds.selector es.selector fs.selector gs.selector ss.selector tr.selector ldt.selector"
            " gdt.base gdt.limit idt.base idt.limit cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap[0]"
        ),
    ),
    "kvm_mp_state": (structures.MP_STATE.pack(1), "mp_state"),
    "kvm_msr_list": (structures.MSR_LIST_HEADER.pack(1), "nmsrs"),
    "kvm_msrs": (structures.MSRS_HEADER.pack(1), "nmsrs"),
    "kvm_msr_entry": (structures.MSR_ENTRY.pack(1, 2), "index data"),
    "kvm_translation": (structures.TRANSLATION.pack(1, 2, 3), "linear_address physical_address valid"),
    "kvm_guest_debug": (
        structures.GUEST_DEBUG.pack(*range(1, 10)),
        "control " + " ".join(f"arch.debugreg[{number}]" for number in range(8)),
    ),
    "kvm_irqchip": (structures.IRQCHIP.pack(1, b"\2"), "chip_id chip.dummy[0]"),
    "kvm_clock_data": (structures.CLOCK.pack(1, 2, 0, 3, 4), "clock flags realtime host_tsc"),
    "kvm_run.io": (structures.RUN_IO.pack(1, 2, 3, 4, 5), "direction size port count data_offset"),
    "kvm_run.mmio": (structures.RUN_MMIO.pack(1, b"\2", 3, 4), "phys_addr data[0] len is_write"),
    "kvm_run.fail_entry": (structures.RUN_FAIL_ENTRY.pack(1), "hardware_entry_failure_reason"),
    "kvm_run.emulation_failure": (
        structures.RUN_INTERNAL.pack(1, 2, 3, b"\4"),
        "suberror flags insn_size insn_bytes[0]",
    ),
}


def compiled(tmp_path: Path, body: str) -> list[str]:
    """What a C program prints that has the header."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip("there is no C compiler, or no header of the kernel")
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n"
        f"int main(void) {{\n{body}\nreturn 0; }}\n"
    )
    program = tmp_path / "numbers"
    built = subprocess.run(
        [compiler, "-o", program, source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the header is of another kernel: {built.stderr[:200]}")
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def test_numbers_and_sizes_are_the_headers(tmp_path: Path) -> None:
    lines = compiled(
        tmp_path, "\n".join(f'printf("%llu\\n", (unsigned long long)({name}));' for name in NUMBERS)
    )

    assert dict(zip(NUMBERS, map(int, lines), strict=True)) == NUMBERS


def test_structures_have_the_headers_fields(tmp_path: Path) -> None:
    body, wanted = [], []
    for name, (data, fields) in STRUCTURES.items():
        kind, _, member = name.partition(".")
        inner = f"{member}." if member else ""
        content = ",".join(map(str, data))
        body.append(f"{{ struct {kind} it; unsigned char data[] = {{{content}}}; memset(&it, 0, sizeof it);")
        place = f"&it.{member}" if member else "&it"
        body.append(f"memcpy({place}, data, sizeof data);")
        if not member:
            # The size is part of a request's number, but for what comes as often as it is counted.
            body.append(f'printf("{name}: %d\\n", (int)(sizeof data == sizeof it));')
            wanted.append(f"{name}: 1")
        for number, field in enumerate(fields.split(), 1):
            body.append(f'printf("{name}.{field} %llu\\n", (unsigned long long)it.{inner}{field});')
            wanted.append(f"{name}.{field} {number}")
        body.append("}")

    assert compiled(tmp_path, "\n".join(body)) == wanted


@pytest.mark.parametrize("memory_bytes", [64 * MIB, 3 << 30, 64 << 30])
def test_the_pages_that_kvm_keeps_to_itself_are_free(memory_bytes: int) -> None:
    """Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR."""
    start, end = TSS_ADDRESS, TSS_ADDRESS + 3 * PAGE
    taken = [(address, address + size) for address, size in ram_ranges(memory_bytes)]
    taken += [(address, address + PAGE) for address in (0xFEE0_0000, 0xFEC0_0000)]
    taken += [(slot.address, slot.address + slot.size) for slot in map(virtio_slot, range(8))]
    taken.append((0xFFFB_C000, 0xFFFB_D000))  # the identity map, where nobody says another place

    assert start % PAGE == 0
    assert end <= 1 << 32
    assert [place for place in taken if place[0] < end and start < place[1]] == []
