"""Accelerators: what runs the guest's instructions.

Each has a folder, and nothing outside of that folder knows the library or the kernel interface behind it. The
rest of the machine knows the protocols below: an `Accelerator` makes a `Vm`, which is one guest's processors
with their interrupt controllers, and each `Vcpu` of it runs in a thread of its own.

A new accelerator is a folder here that implements the three, and a line in `open_accelerator`.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from nitro_vmm.accel.state import EntryState, Exit, ExitReason, ProgramState, VmState
from nitro_vmm.address_map import RamRange
from nitro_vmm.errors import UsageError

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Attended",
    "Bus",
    "Debug",
    "EntryState",
    "Exit",
    "ExitReason",
    "Line",
    "ProgramState",
    "Ram",
    "SavesMachines",
    "StopsAtPrograms",
    "Vcpu",
    "Vm",
    "VmState",
    "open_accelerator",
]

ACCELERATORS: Final = ("kvm", "unicorn")
"""The names that `open_accelerator` knows."""
KVM_DEVICE: Final = "/dev/kvm"

Line = Callable[[bool], None]
"""Sets the level of an interrupt line; called under the bus lock."""

Ram = Sequence[tuple[RamRange, mmap.mmap]]
"""Where the guest's RAM is in its physical memory, and the memory itself."""


class Bus(Protocol):
    """Where the guest's accesses go that are not to RAM.

    A `Vm` calls the first four under its bus lock, in the thread of the processor that makes the access.
    Sizes are 1, 2, 4 or 8 bytes.
    """

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        ...

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        ...

    def read_memory(self, address: int, size: int) -> int:
        """A load."""
        ...

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store."""
        ...

    def finish_output(self) -> None:
        """Called after each OUT, once the bus lock is free again.

        What may wait happens here, because a reader of the console who does not read must hold up the guest
        and nobody else.
        """
        ...


class Attended(Protocol):
    """A device that a processor's thread serves while the processor waits in HLT, in the main loop's place.

    What comes for the guest then needs no thread to wake another one.
    """

    def work_fileno(self) -> int:
        """Readable when `assist` has something to do."""
        ...

    def claim(self, *, mine: bool) -> None:
        """The caller waits for `work_fileno` from now on, so that the main loop need not; or no longer."""
        ...

    def assist(self) -> None:
        """Do what there is to do, and do not wait."""
        ...

    @property
    def holds(self) -> bool:
        """Whether an interrupt is held back, see `release`."""
        ...

    def release(self) -> None:
        """Raise the interrupt that `assist` has held back, because another one might have followed at once.

        To be called when the guest has waited for a moment and nothing came, or is at something else.
        """
        ...


class Debug(Protocol):
    """What a debugger needs of a processor; all but the constructor while no `Vcpu.run` goes on."""

    def read_register(self, name: str) -> int:
        """A register by GDB's name, see `nitro_vmm.gdb.registers`; 0 for one that it does not have."""
        ...

    def write_register(self, name: str, value: int) -> None:
        """Change one."""
        ...

    def set_breakpoints(self, addresses: frozenset[int]) -> bool:
        """End runs with `ExitReason.DEBUG` before the instructions at these virtual addresses.

        Returns:
            Whether it does; false, and nothing is changed, if these are more than the processor has.
        """
        ...

    def step(self, *, due: bool) -> None:
        """Let the next run end with `ExitReason.DEBUG` after one instruction, or let it not.

        Interrupts wait meanwhile.
        """
        ...

    def forget_code(self) -> None:
        """The guest's memory was changed, and there may have been code."""
        ...


class Vcpu(Protocol):
    """One virtual processor."""

    def debug(self) -> Debug | None:
        """What a debugger needs; `None` where there is nothing of the kind.

        Unicorn's takes long to import, so it is made when it is asked for first. This is not a property,
        because `isinstance` with a protocol reads all properties before Python 3.12.
        """
        ...

    def enter(self, entry: EntryState) -> None:
        """Set the registers for the kernel's first instruction; before the first `run`."""
        ...

    def run(self) -> Exit:
        """Run guest code, and wait in HLT, until there is a reason to stop.

        The thread that calls this is the processor's. It may be called again after `ExitReason.KICKED`.
        """
        ...

    def kick(self) -> None:
        """Let the `run` that goes on, or else the next one, return `ExitReason.KICKED` soon.

        From any thread. It is enough to call it once, whatever the guest does.
        """
        ...


@runtime_checkable
class StopsAtPrograms(Vcpu, Protocol):
    """A `Vcpu` that stops where a program of the guest's is about to run, and can act in the program's name.

    All methods are for the processor's thread, while `Vcpu.run` does not go on.
    """

    def watch_programs(self, *, wanted: bool) -> bool:
        """Let `Vcpu.run` return `ExitReason.PROGRAM` whenever the kernel has returned to a 64-bit program.

        Returns:
            Whether this processor can do what is wanted.
        """
        ...

    def watch_page(self, address: int) -> bool:
        """Let `Vcpu.run` return `ExitReason.PAGE` soon after the guest has touched a page, once.

        What a kernel does before it has armed its timer for the first time does not count: Linux looks into
        its ramdisk early, for microcode and tables.

        Args:
            address: Guest-physical, of the page's beginning.

        Returns:
            Whether this processor can.
        """
        ...

    @property
    def program(self) -> ProgramState | None:
        """The program before whose next instruction the processor stands; `None` if it is in the kernel."""
        ...

    def set_general(self, values: Sequence[int]) -> None:
        """Change the general registers, in the order of `ProgramState.general`."""
        ...

    def enter_system_call(self) -> bool:
        """Go on as if the program had executed SYSCALL, with its next instruction behind that.

        Returns:
            False if there is no program.
        """
        ...


class Vm(Protocol):
    """One guest's processors and interrupt controllers."""

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """The processors; the first one boots, and the guest starts the others."""
        ...

    @property
    def tsc_hz(self) -> int:
        """The frequency of the guest's time stamp counter."""
        ...

    @property
    def kvm_clock(self) -> bool:
        """Whether CPUID offers kvm-clock, from which the guest then has its time of day."""
        ...

    def line(self, irq: int) -> Line:
        """The interrupt line of this number, which is an input of the IO-APIC."""
        ...

    def signal_on_write(self, address: int, value: int, eventfd: int) -> None:
        """Signal an eventfd when the guest writes this value to four bytes of a device.

        An accelerator for which that is no cheaper does nothing, and the write goes to the bus as any other.
        """
        ...

    def share_word(self, address: int, word: memoryview) -> None:
        """Let the guest read a device's register of four bytes without asking the device.

        Reading must have no effect there. An accelerator for which that is no cheaper does nothing. The guest
        may run already.

        Args:
            address: The register's.
            word: One 32-bit number of this host's, which the device keeps up to date.
        """
        ...

    def attend(self, device: Attended) -> None:
        """Let a processor's thread serve a device while the processor waits in HLT.

        An accelerator whose processors wait elsewhere does nothing. It is for one device. The guest may run
        already.
        """
        ...

    def locked(self, function: Callable[[], None]) -> None:
        """Call a function that touches devices under the bus lock; not for a processor's thread."""
        ...

    def state(self) -> VmState:
        """What a saved machine keeps of the processors and controllers; while no `Vcpu.run` goes on."""
        ...

    def restore(self, state: VmState) -> None:
        """Continue where ``state`` was taken; instead of `Vcpu.enter`, before the first `Vcpu.run`.

        Raises:
            StateError: The state is not one of this accelerator, or cannot be.
        """
        ...

    def close(self) -> None:
        """End threads and give back what the host gave; after the last `Vcpu.run`."""
        ...


class Accelerator(Protocol):
    """Makes virtual machines.

    It is opened first of all, because some measure the host's clocks while the image is loaded.
    """

    @property
    def name(self) -> str:
        """One of `ACCELERATORS`."""
        ...

    @property
    def processors_default(self) -> int:
        """How many processors a guest gets when nobody asks for a number."""
        ...

    @property
    def processors_max(self) -> int:
        """How many processors a guest can have."""
        ...

    def create_vm(self, ram: Ram, bus: Bus, *, processors: int = 1) -> Vm:
        """Make the processors of one guest.

        Args:
            ram: The guest's memory, as `address_map.ram_ranges` lays it out.
            bus: Everything else that the guest can reach.
            processors: How many it gets, up to `processors_max`.

        Raises:
            HostError: The host cannot run it.
        """
        ...


@runtime_checkable
class SavesMachines(Accelerator, Protocol):
    """An `Accelerator` whose machines have a state that can be kept in a file."""

    @property
    def vm_state(self) -> type[VmState]:
        """The class of what `Vm.state` gives."""
        ...

    @property
    def processor(self) -> str:
        """Which processor its guests find, and whatever else a saved machine can only go on with."""
        ...


def open_accelerator(name: str, *, say: Callable[[str], None] = lambda _text: None) -> Accelerator:
    """Open an accelerator.

    Args:
        name: One of `ACCELERATORS`, or "auto": KVM where it can run Linux, else Unicorn.
        say: Told why "auto" does not use KVM, for people.

    Raises:
        UsageError: There is none of this name.
        HostError: This host does not have it.
    """
    match name:
        case "auto":
            return _open_best(say)
        case "unicorn":
            from nitro_vmm.accel.unicorn import Unicorn  # noqa: PLC0415 - nobody else needs to load the library

            return Unicorn()
        case "kvm":
            from nitro_vmm.accel.kvm import Kvm  # noqa: PLC0415 - nobody else needs the kernel's interface

            return Kvm()
    raise UsageError(f"there is no accelerator {name!r}", hint=f"one of: auto, {', '.join(ACCELERATORS)}")


def _open_best(say: Callable[[str], None]) -> Accelerator:
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # Most hosts without KVM say so at once, and need not wait for the rest to be imported.
        say(f"the processor is emulated: {KVM_DEVICE}: {error.strerror}")
        return open_accelerator("unicorn")
    from nitro_vmm.accel.kvm.probe import probe  # noqa: PLC0415 - only here

    verdict = probe()
    if verdict.usable:
        return open_accelerator("kvm")
    say(f"the processor is emulated: {verdict.reason}")
    return open_accelerator("unicorn")
