"""What a saved machine keeps of its processors and interrupt controllers on KVM.

The kernel gives each part as a structure of its own, most of which are kept as they are. A state fits only a
processor that answers CPUID as the one where it was saved: a guest's kernel looks at that once, and then uses
whatever it has found.

The guest's clocks, kvm-clock and the time stamp counter, go on from where they were.
"""

from typing import Final, NamedTuple

from nitro_vmm.accel.kvm.ioctl import MSRS_MAX, Request, VcpuFile, VmFile
from nitro_vmm.accel.kvm.structures import CLOCK, CPUID_ENTRY, EVENTS_FLAGS, IRQCHIP, CpuidEntry
from nitro_vmm.address_map import PROCESSORS_MAX
from nitro_vmm.devices.state import is_tuple_of, is_whole, require, require_bytes, require_whole
from nitro_vmm.errors import HostError, StateError

CONTROLLERS: Final = (0, 1, 2)
"""``KVM_IRQCHIP_...``: the two halves of the PC's old controller, and the IO-APIC."""
XSAVE_BYTES_MAX: Final = 1 << 20
CPUID_BYTES_MAX: Final = 256 * CPUID_ENTRY.size
MSR_TSC: Final = 0x10
MTRRS: Final = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x277, 0x2FF)
"""Memory types (Intel SDM vol. 3A, "Memory Type Range Registers"), which kernels before 6.4 do not list."""
EVENTS_VALID: Final = 3
"""That the structure's pending NMI and start-up address are to be taken (``KVM_VCPUEVENT_VALID_...``)."""
FAR: Final = 1 << 40
"""Ticks; some minutes at any frequency."""
TSC_HZ_TOLERANCE: Final = 1000
"""Two measurements of one host differ by less than a thousandth; another host's processor by more."""


class _Part(NamedTuple):
    field: str
    get: Request
    put: Request


# In the order in which they are put back. Whether a processor runs comes first, because the kernel carries
# out a start that is under way when it is asked. The model-specific registers follow, then the events.
PARTS: Final = (
    _Part("mp_state", Request.GET_MP_STATE, Request.SET_MP_STATE),
    _Part("registers", Request.GET_REGS, Request.SET_REGS),
    _Part("system_registers", Request.GET_SREGS, Request.SET_SREGS),
    _Part("extended_controls", Request.GET_XCRS, Request.SET_XCRS),
    _Part("debug_registers", Request.GET_DEBUGREGS, Request.SET_DEBUGREGS),
    _Part("local_apic", Request.GET_LAPIC, Request.SET_LAPIC),
)


class VcpuState(NamedTuple):
    """One processor. Bytes are the kernel's structures of api.rst."""

    mp_state: bytes
    """Whether it runs, sleeps, or waits for its start."""
    registers: bytes
    """``struct kvm_regs``."""
    system_registers: bytes
    """``struct kvm_sregs``."""
    extended_controls: bytes
    """``struct kvm_xcrs``."""
    debug_registers: bytes
    """``struct kvm_debugregs``."""
    local_apic: bytes
    """``struct kvm_lapic_state``."""
    events: bytes
    """``struct kvm_vcpu_events``: what waits to be delivered."""
    extended: bytes
    """``struct kvm_xsave``: x87, SSE, AVX and so on."""
    msrs: tuple[tuple[int, int], ...]
    """Model-specific registers: number and value."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        for part in PARTS:
            require_bytes(self, part.field, part.get.size, least=part.get.size)
        require_bytes(self, "events", EVENTS.size, least=EVENTS.size)
        require_bytes(self, "extended", XSAVE_BYTES_MAX, least=Request.GET_XSAVE.size)
        good = is_tuple_of(_is_msr, self.msrs, MSRS_MAX)
        require(self, "msrs", good, "pairs of a register's number and its value")


EVENTS: Final = Request.GET_VCPU_EVENTS


def _is_msr(value: object) -> bool:
    match value:
        case (number, content):
            return is_whole(number, (1 << 32) - 1) and is_whole(content, (1 << 64) - 1)
    return False


class KvmState(NamedTuple):
    """See `VmState`."""

    cpuid: bytes
    """What CPUID answers on the first processor: ``struct kvm_cpuid_entry2``, several."""
    tsc_hz: int
    """What the time stamp counter counts at."""
    clock_ns: int
    """What kvm-clock reads, nanoseconds."""
    controllers: tuple[bytes, ...]
    """``struct kvm_irqchip``, one for each of `CONTROLLERS`."""
    vcpus: tuple[VcpuState, ...]
    """The processors."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        require_bytes(self, "cpuid", CPUID_BYTES_MAX)
        require_whole(self, tsc_hz=(1 << 48) - 1, clock_ns=(1 << 63) - 1)
        good = is_tuple_of(_is_controller, self.controllers, len(CONTROLLERS), least=len(CONTROLLERS))
        require(self, "controllers", good, f"{len(CONTROLLERS)} structures of {IRQCHIP.size} bytes")
        good = is_tuple_of(lambda vcpu: isinstance(vcpu, VcpuState), self.vcpus, PROCESSORS_MAX, least=1)
        require(self, "vcpus", good, f"1 to {PROCESSORS_MAX} processors")

    def check_fits(self, *, cpuid: bytes, tsc_hz: int, processors: int, xsave_bytes: int) -> None:
        """Whether a machine can go on with this.

        Args:
            cpuid: What CPUID answers there, as in `cpuid`.
            tsc_hz: What its time stamp counter counts at.
            processors: How many it has.
            xsave_bytes: How much the kernel will read of `VcpuState.extended`.

        Raises:
            StateError: It cannot.
        """
        if len(self.vcpus) != processors:
            raise StateError(
                f"the machine was saved with {len(self.vcpus)} processors, and this one has {processors}"
            )
        if self.cpuid != cpuid:
            raise StateError(f"the machine was saved on another processor ({_difference(self.cpuid, cpuid)})")
        if any(len(vcpu.extended) != xsave_bytes for vcpu in self.vcpus):
            raise StateError(f"the machine was saved with other registers than XSAVE's {xsave_bytes} bytes")
        if abs(self.tsc_hz - tsc_hz) * TSC_HZ_TOLERANCE > tsc_hz:
            raise StateError(
                f"the machine was saved where the counter runs at {self.tsc_hz} Hz, here at {tsc_hz}"
            )


def _is_controller(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == IRQCHIP.size


def _difference(saved: bytes, here: bytes) -> str:
    """Which answers differ, for people."""
    if len(saved) % CPUID_ENTRY.size:
        return "its CPUID is no table"
    tables = [
        {entry.function: entry for entry in map(CpuidEntry._make, CPUID_ENTRY.iter_unpack(table))}
        for table in (saved, here)
    ]
    leaves = sorted(
        leaf for leaf in tables[0].keys() | tables[1].keys() if tables[0].get(leaf) != tables[1].get(leaf)
    )
    return f"CPUID differs in {', '.join(f'{leaf:#x}' for leaf in leaves) or 'the order of its leaves'}"


def save_vcpu(file: VcpuFile, msrs: list[int], xsave_bytes: int) -> VcpuState:
    """Save a processor that does not run.

    Args:
        file: The kernel's side of it.
        msrs: Which model-specific registers there may be.
        xsave_bytes: See `VmFile.xsave_bytes`.

    Raises:
        HostError: The kernel refuses.
    """
    parts = {part.field: file.get(part.get) for part in PARTS}
    return VcpuState(
        **parts,
        events=file.get(EVENTS),
        extended=file.xsave(xsave_bytes),
        msrs=file.msrs(sorted({*msrs, *MTRRS})),
    )


def restore_vcpu(file: VcpuFile, state: VcpuState, *, is_first: bool) -> None:
    """Put a saved processor back, before it runs.

    Args:
        file: The kernel's side of it.
        state: What was saved.
        is_first: Whether it is the first one of its machine; the others follow in their order.

    Raises:
        HostError: The kernel refuses.
    """
    for part in PARTS:
        file.put(part.put, getattr(state, part.field))
    file.put(Request.SET_XSAVE, state.extended)
    _restore_msrs(file, dict(state.msrs), is_first=is_first)
    events = bytearray(state.events)
    (flags,) = EVENTS_FLAGS.unpack_from(events)
    events[EVENTS_FLAGS.size - 4 : EVENTS_FLAGS.size] = (flags | EVENTS_VALID).to_bytes(4, "little")
    file.put(Request.SET_VCPU_EVENTS, bytes(events))


def _restore_msrs(file: VcpuFile, msrs: dict[int, int], *, is_first: bool) -> None:
    # The counter before its deadline. The kernel takes a counter that is about what it expects for an attempt
    # to have several processors count alike, and leaves it as it is. That is wanted of all but the first.
    tsc = msrs.pop(MSR_TSC, None)
    if tsc is not None:
        if is_first:
            file.set_msrs([(MSR_TSC, tsc + FAR & (1 << 64) - 1)])
        file.set_msrs([(MSR_TSC, tsc)])
    waiting = list(msrs.items())
    while waiting:
        done = file.set_msrs(waiting)
        if done == len(waiting):
            return
        number, value = waiting[done]
        # Some can only be read. That is all right where they are what they were.
        if file.msrs([number]) != ((number, value),):
            raise HostError(f"the model-specific register {number:#x} cannot be set to {value:#x}")
        waiting = waiting[done + 1 :]


def save_controllers(file: VmFile) -> tuple[bytes, ...]:
    """Save the interrupt controllers.

    Raises:
        HostError: The kernel refuses.
    """
    return tuple(file.controller(number) for number in CONTROLLERS)


def restore_controllers(file: VmFile, controllers: tuple[bytes, ...]) -> None:
    """Put saved interrupt controllers back.

    Raises:
        HostError: The kernel refuses.
    """
    for controller in controllers:
        file.put(Request.SET_IRQCHIP, controller)


def save_clock(file: VmFile) -> int:
    """What kvm-clock reads, nanoseconds.

    Raises:
        HostError: The kernel refuses.
    """
    clock_ns, *_ = CLOCK.unpack(file.get(Request.GET_CLOCK))
    return int(clock_ns)


def restore_clock(file: VmFile, clock_ns: int) -> None:
    """Let kvm-clock go on from here.

    Raises:
        HostError: The kernel refuses.
    """
    file.put(Request.SET_CLOCK, CLOCK.pack(clock_ns, 0, 0, 0, 0))
