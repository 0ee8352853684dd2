"""A virtual machine on KVM: the host's processor, and the interrupt controllers of the host's kernel."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from nitro_vmm.accel import Attended, Bus, Line, Ram
from nitro_vmm.accel.kvm import cpuid, ioctl
from nitro_vmm.accel.kvm.collected import PAGE_BYTES, CollectedWrites
from nitro_vmm.accel.kvm.debug import KvmDebug
from nitro_vmm.accel.kvm.ioctl import System, VmFile
from nitro_vmm.accel.kvm.state import (
    KvmState,
    restore_clock,
    restore_controllers,
    save_clock,
    save_controllers,
)
from nitro_vmm.accel.kvm.stops import Stops
from nitro_vmm.accel.kvm.structures import CPUID_ENTRY, CpuidEntry
from nitro_vmm.accel.kvm.vcpu import INTERRUPTED, KvmVcpu
from nitro_vmm.accel.state import VmState
from nitro_vmm.address_map import COM1, IO_APIC_PINS, PROCESSORS_MAX
from nitro_vmm.errors import HostError, StateError

TSS_ADDRESS: Final = 0xFFFB_D000
"""Three pages below the PC's BIOS at the end of 32-bit addresses, where nothing else is."""

LOOK_S_MIN: Final = 0.02
LOOK_S_MAX: Final = 1.0
"""How long processors may be quiet before it is looked whether they sleep for good, seconds. It is short
after an exit, so that a halt is noticed soon, and doubles with each look, so that a guest that computes is
left alone."""

OUTPUT_S_MAX: Final = 0.1
"""How long something that was printed may wait for an exit, seconds."""


class Kvm:
    """The accelerator.

    Args:
        system: The kernel's KVM; opened if not given.

    Raises:
        HostError: This host has no KVM, or does not let this user have it.
    """

    name: Final = "kvm"
    processors_default: Final = 2
    """As many as an enclave on Nitro gets at least: one core with its two threads."""
    processors_max: Final = PROCESSORS_MAX

    vm_state: type[VmState] = KvmState
    """See `SavesMachines.vm_state`."""

    def __init__(self, system: System | None = None) -> None:
        self._system = system or System()

    @property
    def processor(self) -> str:
        """See `SavesMachines.processor`: its name, and a digest of all that CPUID answers."""
        entries = _entries(self._system, processors=1)
        return f"{cpuid.name(entries)} (CPUID {hashlib.sha256(_table(entries)).hexdigest()[:16]})"

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> "KvmVm":
        """See `Accelerator.create_vm`.

        Args:
            ram: The guest's memory.
            bus: Everything else that it can reach.
            processors: How many processors it gets.

        Raises:
            HostError: The kernel refuses.
        """
        return KvmVm(self._system, ram, bus, processors=processors)


class KvmVm:
    """One guest; a `Vm`.

    Args:
        system: The kernel's KVM.
        ram: The guest's memory.
        bus: Everything else that it can reach, but for the interrupt controllers.
        processors: How many it gets.

    Raises:
        HostError: The kernel refuses.
    """

    def __init__(self, system: System, ram: Ram, bus: Bus, *, processors: int = 1) -> None:
        self._lock = threading.RLock()
        self._file_lock = threading.Lock()
        """Held while the descriptor must stay open; taken after the bus lock."""
        self._file = system.create_vm()
        self._closing = threading.Event()
        self._bus = bus
        self._collected: CollectedWrites | None = None
        self.vcpus: list[KvmVcpu] = []
        """The processors; the first one boots, and the guest starts the others."""
        try:
            self._build(system, ram, processors)
        except BaseException:
            self._give_back()
            raise
        self._watch = threading.Thread(target=self._look_for_halts, name="halt watch", daemon=True)
        self._watch.start()

    def _build(self, system: System, ram: Ram, processors: int) -> None:
        vm = self._file
        vm.set_tss_address(TSS_ADDRESS)
        vm.create_irqchip()
        # Only to the IO-APIC: the kernel's PC also has a PIC, of which this machine's guest does not know.
        vm.route_to_io_apic(IO_APIC_PINS)
        for slot, (place, memory) in enumerate(ram):
            vm.set_memory(slot, place.address, memory)
        self.kvm_clock = cpuid.offers_kvm_clock(system.supported_cpuid())
        """Whether the guest has kvm-clock."""
        self._stops = Stops(vm, ram)
        for number in range(processors):
            file = vm.create_vcpu(number)
            if not number:
                debug = KvmDebug(file, system.extension(ioctl.CAP_SET_GUEST_DEBUG2))
            vcpu = KvmVcpu(
                file,
                self._bus,
                self._lock,
                stops=self._stops,
                debug=debug,
                halted=self._all_sleep,
                collected=self._carry_out_collected,
            )
            self.vcpus.append(vcpu)
            if not number and system.extension(ioctl.CAP_COALESCED_PIO):
                # What the guest prints. Without this, each byte would take an exit of its own.
                vm.collect_writes(COM1)
                page = system.extension(ioctl.CAP_COALESCED_MMIO)
                self._collected = CollectedWrites(file.shared, page * PAGE_BYTES)
            entries = _entries(system, processors=processors, number=number)
            file.set_cpuid(entries)
            if not number:
                self._cpuid = _table(entries)
            self.tsc_hz = file.tsc_khz() * 1000
            """The frequency of the guest's time stamp counter."""
        self._msrs = system.msrs()
        self._xsave_bytes = vm.xsave_bytes()

    def line(self, irq: int) -> Line:
        """See `Vm.line`."""
        vm: VmFile = self._file

        def set_level(level: bool) -> None:  # noqa: FBT001 - the shape of a line
            if not self._closing.is_set():
                vm.set_irq_line(irq, int(level))

        return set_level

    def signal_on_write(self, address: int, value: int, eventfd: int) -> None:
        """See `Vm.signal_on_write`. The kernel does it, and the guest goes on at once.

        Nothing happens after `close`: a guest may have ended before its devices were there.
        """
        # Not under the bus lock: the guest may hold it while it waits for this very device.
        with self._file_lock:
            if not self._closing.is_set():
                self._file.signal_on_write(address, value, eventfd)

    def share_word(self, address: int, word: memoryview) -> None:
        """See `Vm.share_word`; what costs is that the guest is left, whoever answers."""

    def attend(self, device: Attended) -> None:
        """See `Vm.attend`; the processors wait in the kernel."""

    def exits(self) -> Counter[str]:
        """How often the guest was left so far, by what for; also after `close`, and from any thread."""
        return sum((vcpu.exits for vcpu in self.vcpus), start=Counter())

    def locked(self, function: Callable[[], None]) -> None:
        """See `Vm.locked`."""
        with self._lock:
            function()

    def state(self) -> VmState:
        """See `Vm.state`."""
        self._stops.remove()  # because the guest's memory is saved as well
        # The processors first, because the kernel delivers what is on its way to them when it is asked.
        vcpus = tuple(vcpu.state(self._msrs, self._xsave_bytes) for vcpu in self.vcpus)
        return KvmState(
            cpuid=self._cpuid,
            tsc_hz=self.tsc_hz,
            clock_ns=save_clock(self._file),
            controllers=save_controllers(self._file),
            vcpus=vcpus,
        )

    def restore(self, state: VmState) -> None:
        """See `Vm.restore`. The guest's clocks go on from where they were."""
        if not isinstance(state, KvmState):
            raise StateError("the machine was not saved by KVM")
        state.check_fits(
            cpuid=self._cpuid,
            tsc_hz=self.tsc_hz,
            processors=len(self.vcpus),
            xsave_bytes=self._xsave_bytes,
        )
        try:
            restore_controllers(self._file, state.controllers)
            for number, (vcpu, saved) in enumerate(zip(self.vcpus, state.vcpus, strict=True)):
                vcpu.restore(saved, is_first=not number)
            restore_clock(self._file, state.clock_ns)
            self._stops.kernel_is_up = True
        except HostError as error:
            raise StateError(f"KVM does not take the saved machine: {error}") from error

    def close(self) -> None:
        """See `Vm.close`."""
        self._closing.set()
        self._watch.join()
        self._give_back()

    def _give_back(self) -> None:
        with self._lock, self._file_lock:
            self._closing.set()
            for vcpu in self.vcpus:
                vcpu.close()
            self._file.close()

    def _carry_out_collected(self) -> None:
        if not self._collected:
            return
        with self._lock:
            for port, size, value in self._collected.take():
                self._bus.write_port(port, size, value)
        self._bus.finish_output()

    def _all_sleep(self) -> bool:
        # One that was seen asleep may have been woken by one that was looked at later. If that was so, the
        # next look sees it awake.
        looks = 1 if len(self.vcpus) == 1 else 2
        return all(vcpu.looks_asleep >= looks for vcpu in self.vcpus)

    def _look_for_halts(self) -> None:
        look_s, quiet_s, exits = LOOK_S_MIN, 0.0, 0
        while not self._closing.wait(tick_s := min(look_s, OUTPUT_S_MAX)):
            exits, before = sum(vcpu.exits.total() - vcpu.exits[INTERRUPTED] for vcpu in self.vcpus), exits
            if exits != before:
                look_s, quiet_s = LOOK_S_MIN, 0.0
                continue
            quiet_s += tick_s
            if quiet_s >= look_s or self._collected:
                look_s, quiet_s = min(2 * look_s, LOOK_S_MAX), 0.0
                for vcpu in self.vcpus:
                    vcpu.look_for_halt()


def _entries(system: System, *, processors: int, number: int = 0) -> list[CpuidEntry]:
    """What CPUID answers on one of a guest's processors."""
    tsc_deadline = bool(system.extension(ioctl.CAP_TSC_DEADLINE_TIMER))
    supported = system.supported_cpuid()
    return list(cpuid.for_guest(supported, apic_id=number, processors=processors, tsc_deadline=tsc_deadline))


def _table(entries: list[CpuidEntry]) -> bytes:
    return b"".join(CPUID_ENTRY.pack(*entry) for entry in entries)
