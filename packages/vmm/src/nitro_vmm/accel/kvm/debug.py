"""What a debugger needs of a machine on KVM: registers, breakpoints, single steps.

The debugger sees one processor: the first one, and from the first stop on the one that has stopped.
Breakpoints are the host processor's own, of which there are four, and hold for all processors; the guest's
memory stays as it is, and nothing need be mapped there yet. While one processor does a step, the others stand
still.

Source: Linux, Documentation/virt/kvm/api.rst, "KVM_SET_GUEST_DEBUG", and Intel SDM vol. 3B, "Debug
Registers".
"""

from dataclasses import replace
from typing import Final

from nitro_vmm.accel.kvm.ioctl import VcpuFile
from nitro_vmm.accel.kvm.structures import XSAVE_BYTES, Registers, Segment

ENABLE: Final = 1
SINGLE_STEP: Final = 2
HARDWARE_BREAKPOINTS: Final = 1 << 17
BLOCK_INTERRUPTS: Final = 1 << 20
"""``KVM_GUESTDBG_...`` (Linux, uapi/linux/kvm.h); the last one since Linux 5.15."""
BREAKPOINTS_MAX: Final = 4
DR7_ALWAYS_SET: Final = 1 << 10

MSR_KERNEL_GS_BASE: Final = 0xC000_0102
SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss")
CONTROL: Final = frozenset({"cr0", "cr2", "cr3", "cr4", "efer"})
# The legacy region of XSAVE (Intel SDM vol. 1, "Legacy Region of an XSAVE Area"): offset and size.
FLOATING: Final = {
    "fctrl": (0, 2),
    "fstat": (2, 2),
    "mxcsr": (24, 4),
    **{f"st{number}": (32 + 16 * number, 10) for number in range(8)},
    **{f"xmm{number}": (160 + 16 * number, 16) for number in range(16)},
}
TAGS_PLACE: Final = 4
TAG_EMPTY: Final = 3
"""In GDB's register, which has two bits for each; XSAVE has one, which says that it is not empty."""


class KvmDebug:
    """See `Debug`; for all processors of one machine.

    Args:
        file: The kernel's side of the first one.
        flags: Which flags of ``KVM_SET_GUEST_DEBUG`` the kernel knows.
    """

    def __init__(self, file: VcpuFile, flags: int) -> None:
        self._file = file
        self._flags = flags
        self._has_stopped = False
        """Whether one has stopped since they were told to go on. The others that do stop there once more."""
        self._breakpoints: list[int] = []
        self._step_due = False
        self._applied: dict[VcpuFile, tuple[int, tuple[int, ...]]] = {}

    def holds(self, file: VcpuFile) -> bool:
        """Whether a processor must not run, because another one does a step."""
        return self._step_due and file is not self._file

    def apply(self, file: VcpuFile) -> None:
        """Let a processor that is about to run stop where it has to."""
        control, registers = 0, [0] * 8
        if self._breakpoints:
            control |= ENABLE | HARDWARE_BREAKPOINTS
            registers[7] = DR7_ALWAYS_SET
            for number, address in enumerate(self._breakpoints):
                registers[number] = address
                registers[7] |= 2 << 2 * number
        if self._step_due:
            control = ENABLE | SINGLE_STEP | BLOCK_INTERRUPTS & self._flags
            registers = [0] * 8
        wanted = control, tuple(registers)
        if self._applied.get(file, (0, (0,) * 8)) != wanted:
            file.set_guest_debug(*wanted)
            self._applied[file] = wanted

    def stopped(self, file: VcpuFile) -> None:
        """A processor has come to a breakpoint, or has done its step."""
        if not self._has_stopped:
            self._has_stopped = True
            self._file = file

    def read_register(self, name: str) -> int:
        """See `Debug`."""
        if name in FLOATING:
            offset, size = FLOATING[name]
            return int.from_bytes(self._file.xsave(XSAVE_BYTES)[offset : offset + size], "little")
        if name == "ftag":
            tags = self._file.xsave(XSAVE_BYTES)[TAGS_PLACE]
            return sum(0 if tags >> number & 1 else TAG_EMPTY << 2 * number for number in range(8))
        if name == "kernel_gs_base":
            return dict(self._file.msrs((MSR_KERNEL_GS_BASE,))).get(MSR_KERNEL_GS_BASE, 0)
        if (field := _general(name)) is not None:
            return int(getattr(self._file.registers(), field))
        system = self._file.system_registers()
        if name in CONTROL:
            return int(getattr(system, name))
        register, _, base = name.partition("_")
        if register not in SEGMENTS:
            return 0
        segment = system.segments[SEGMENTS.index(register)]
        return segment.base if base else segment.selector

    def write_register(self, name: str, value: int) -> None:
        """See `Debug`."""
        if (field := _general(name)) is not None:
            self._file.set_registers(self._file.registers()._replace(**{field: value}))
        elif name in {"fs_base", "gs_base"}:
            system = self._file.system_registers()
            segments: list[Segment] = list(system.segments)
            index = SEGMENTS.index(name[:2])
            segments[index] = segments[index]._replace(base=value)
            self._file.set_system_registers(replace(system, segments=tuple(segments)))

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        """See `Debug`."""
        if len(addresses) > BREAKPOINTS_MAX:
            return False
        self._breakpoints = sorted(addresses)
        return True

    def step(self, *, due: bool) -> None:
        """See `Debug`."""
        self._step_due = due
        self._has_stopped = False

    def forget_code(self) -> None:
        """See `Debug`; a processor sees by itself that memory has changed."""


def _general(name: str) -> str | None:
    """The field of `Registers` for GDB's name."""
    field = "rflags" if name == "eflags" else name
    return field if field in Registers._fields else None
