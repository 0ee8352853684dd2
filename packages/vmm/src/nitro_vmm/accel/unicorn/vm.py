"""A virtual machine on Unicorn: one emulated processor, and interrupt controllers in software."""

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nitro_vmm.accel import Attended, Bus, Line, Ram, Vcpu
from nitro_vmm.accel.state import VmState
from nitro_vmm.accel.unicorn.cpu import Cpu
from nitro_vmm.accel.unicorn.interrupts import Interrupts
from nitro_vmm.accel.unicorn.locked_bus import LockedBus
from nitro_vmm.accel.unicorn.native import LIBRARY, MISSING
from nitro_vmm.accel.unicorn.private import SAVED_BYTES, UNICORN_VERSION
from nitro_vmm.accel.unicorn.tsc import measure_tsc_hz, read_tsc
from nitro_vmm.accel.unicorn.vcpu import UnicornVcpu
from nitro_vmm.address_map import LOCAL_APIC, MIB
from nitro_vmm.devices.io_apic_registers import IoApicState
from nitro_vmm.devices.local_apic_registers import LocalApicState
from nitro_vmm.devices.state import require_bytes, require_flags, require_whole
from nitro_vmm.errors import HostError, StateError

logger = logging.getLogger(__name__)
_said = False

ADDRESS_SPACE_BYTES: Final = 320 * MIB
"""What Unicorn reserves: 256 MiB for translated code, which it takes up as it needs it, and some for threads.
Where it gets less, the library prints a line and exits the process, so we look first."""


PROCESSOR: Final = UNICORN_VERSION + (" with the native part" if LIBRARY else "")
"""What a saved machine goes on with, because with the native part CPUID offers more."""


def _say_once_what_is_missing() -> None:
    global _said  # noqa: PLW0603
    if MISSING and not _said:
        _said = True
        logger.warning(
            "the emulated processor runs without its native part, because %s: it is slower, and some of the "
            "guest's instructions are wrong or not offered",
            MISSING,
        )


class Unicorn:
    """The accelerator.

    Args:
        clock_ns: A monotonic clock, nanoseconds.

    Raises:
        HostError: There is not enough address space.
    """

    name: Final = "unicorn"
    processors_default: Final = 1
    processors_max: Final = 1
    processor: Final = PROCESSOR

    def __init__(self, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        _check_address_space()
        _say_once_what_is_missing()
        if LIBRARY is not None:  # else nothing notices where a machine can be saved
            self.vm_state: type[VmState] = UnicornState
            """See `SavesMachines.vm_state`."""
        self._clock_ns = clock_ns
        # The counter's frequency is had from two looks at it. The image is loaded in between.
        self._tsc = read_tsc()

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> "UnicornVm":  # noqa: ARG002
        """See `Accelerator.create_vm`; there is one processor.

        Raises:
            HostError: Unicorn is not the one that we know, or there is not enough address space.
        """
        _check_address_space()
        return UnicornVm(ram, bus, tsc_hz=measure_tsc_hz(self._tsc), clock_ns=self._clock_ns)


class UnicornState(NamedTuple):
    """See `VmState`."""

    unicorn_version: str
    """Whose registers these are."""
    registers: bytes
    """Of the processor, as this build of Unicorn keeps them."""
    halted: bool
    """Whether the processor waits in HLT."""
    tsc: int
    """What the guest's time stamp counter read."""
    tsc_hz: int
    """What it counts at."""
    local_apic: LocalApicState
    """The processor's interrupt controller."""
    io_apic: IoApicState
    """The devices' one."""

    def check(self) -> None:
        """See `nitro_vmm.devices.state`."""
        require_bytes(self, "registers", SAVED_BYTES, least=SAVED_BYTES)
        require_flags(self, "halted")
        require_whole(self, tsc=(1 << 64) - 1, tsc_hz=(1 << 32) - 1)


TSC_HZ_TOLERANCE: Final = 1000
"""Two measurements of one host differ by less than a thousandth; another host's processor by more."""


class UnicornVm:
    """One guest.

    Args:
        ram: See `Accelerator.create_vm`.
        bus: Everything but RAM and the interrupt controllers.
        tsc_hz: What the time stamp counter and the local APIC's timer count at.
        clock_ns: A monotonic clock, nanoseconds.

    Raises:
        HostError: Unicorn is not the one that we know.
    """

    def __init__(self, ram: Ram, bus: Bus, *, tsc_hz: int, clock_ns: Callable[[], int]) -> None:
        self.tsc_hz = tsc_hz
        self.kvm_clock = LIBRARY is not None
        self._interrupts = Interrupts(timer_hz=tsc_hz, clock_ns=clock_ns)
        self._cpu = Cpu(ram, LockedBus(bus, self._interrupts), tsc_hz=tsc_hz)
        self._interrupts.attach(self._cpu)
        for offset, word in self._interrupts.local_apic.words():
            self._cpu.share_word(LOCAL_APIC + offset, word)
        self._vcpu = UnicornVcpu(self._cpu, self._interrupts)
        self.vcpus: Sequence[Vcpu] = (self._vcpu,)

    def line(self, irq: int) -> Line:
        """See `Vm.line`."""
        return self._interrupts.io_apic.line(irq)

    def signal_on_write(self, address: int, value: int, eventfd: int) -> None:
        """See `Vm.signal_on_write`; an access costs the same here, whatever it does."""

    def share_word(self, address: int, word: memoryview) -> None:
        """See `Vm.share_word`."""
        self._cpu.share_word(address, word)

    def attend(self, device: Attended) -> None:
        """See `Vm.attend`."""
        self._interrupts.attend(device)

    def locked(self, function: Callable[[], None]) -> None:
        """See `Vm.locked`."""
        self._interrupts.locked(function)

    def state(self) -> VmState:
        """See `Vm.state`."""
        self._interrupts.withdraw()
        return UnicornState(
            unicorn_version=PROCESSOR,
            registers=self._cpu.save(),
            halted=self._vcpu.halted,
            tsc=read_tsc().ticks + self._cpu.tsc_offset & (1 << 64) - 1,
            tsc_hz=self.tsc_hz,
            local_apic=self._interrupts.local_apic.state(),
            io_apic=self._interrupts.io_apic.state(),
        )

    def restore(self, state: VmState) -> None:
        """See `Vm.restore`. The time stamp counter goes on from where it was."""
        if not isinstance(state, UnicornState) or state.unicorn_version != PROCESSOR:
            raise StateError(f"the machine was not saved by Unicorn {PROCESSOR}")
        if abs(state.tsc_hz - self.tsc_hz) * TSC_HZ_TOLERANCE > self.tsc_hz:
            raise StateError(
                f"the machine was saved where the counter runs at {state.tsc_hz} Hz, here at {self.tsc_hz}"
            )
        self._interrupts.local_apic.restore(state.local_apic)
        self._interrupts.io_apic.restore(state.io_apic)
        self._cpu.load(state.registers, tsc_offset=_signed(state.tsc - read_tsc().ticks))
        self._vcpu.halted = state.halted

    def close(self) -> None:
        """See `Vm.close`."""
        self._interrupts.close()


def _check_address_space() -> None:
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mmap.mmap(-1, ADDRESS_SPACE_BYTES, flags=flags, prot=0).close()
    except OSError:
        raise HostError(
            f"the emulated processor needs {ADDRESS_SPACE_BYTES // MIB} MiB of address space besides the "
            "enclave's memory, and this process may not have as much",
            hint="raise the limit (ulimit -v), or give the enclave less memory",
            code="M20",
        ) from None


def _signed(value: int) -> int:
    """A number modulo 2**64 as a signed one."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
