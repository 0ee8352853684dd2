"""The machine: processor, memory and devices, wired as `address_map` says.

Sans sockets and files: the console and the end of the machine are callables, the security module and the
vsock device come from outside. `Machine.run` is the processor's thread.
"""

import mmap
import time
from collections.abc import Callable
from enum import Enum

from nitro_nsm import Nsm
from nitro_vmm import address_map as at
from nitro_vmm.accel.state import EntryState
from nitro_vmm.accel.unicorn import Cpu, Stopped
from nitro_vmm.bus import AddressSpace
from nitro_vmm.devices.acpi_power import AcpiPower
from nitro_vmm.devices.i8042 import I8042
from nitro_vmm.devices.rtc import Rtc
from nitro_vmm.devices.serial import Serial
from nitro_vmm.devices.virtio_mmio import VirtioDevice, VirtioMmio
from nitro_vmm.devices.virtio_nsm import NsmDevice
from nitro_vmm.interrupts import Interrupts
from nitro_vsock import GuestMemory

I8042_PORTS = (at.I8042_DATA, at.I8042_COMMAND)
RTC_PORTS = 2
COM1_PORTS = 8
ACPI_PORTS = 3


class End(Enum):
    """How a machine came to its end; the values are for people."""

    POWER_OFF = "powered off"
    REBOOT = "rebooted"
    HALTED = "halted for good"
    TRIPLE_FAULT = "crashed with a triple fault"
    CRASHED = "crashed"
    STOPPED = "was stopped"


class Memory:
    """The guest's RAM: anonymous, or of a file that other processes can map."""

    def __init__(self, memory_bytes: int, *, fd: int = -1) -> None:
        self.ranges = at.ram_ranges(memory_bytes)
        offsets, position = [], 0
        for _, size in self.ranges:
            offsets.append(position)
            position += size
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.buffers = [
            mmap.mmap(fd, size, flags=flags, offset=0 if fd < 0 else offset)
            for (_, size), offset in zip(self.ranges, offsets, strict=True)
        ]
        if fd < 0:
            for buffer in self.buffers:
                buffer.madvise(mmap.MADV_HUGEPAGE)
        self.guest = GuestMemory(
            (address, memoryview(buffer))
            for (address, _), buffer in zip(self.ranges, self.buffers, strict=True)
        )


class Machine:
    """One enclave's machine.

    Args:
        memory: Its RAM, with the kernel loaded.
        tsc_hz: The frequency of the time stamp counter.
        nsm: The security module, virtio device 0.
        console: Called with what the guest prints, in the processor's thread; it may wait, for the bus
            lock is not held.
        console_ready: Called when the console takes input again after it has refused some.

    Raises:
        HostError: Unicorn is not the one that we know.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        tsc_hz: int,
        nsm: Nsm,
        console: Callable[[bytes], None],
        console_ready: Callable[[], None],
    ) -> None:
        self.end: End | None = None
        self._memory = memory
        self._interrupts = Interrupts(timer_hz=tsc_hz)
        self._devices = AddressSpace()
        self._slots = 0
        line = self._interrupts.io_apic.line
        self._console = console
        self._printed = bytearray()
        self._serial = Serial(line(at.COM1_IRQ), self._printed.extend, console_ready)
        self._devices.add_ports(at.COM1, COM1_PORTS, self._serial)
        i8042 = I8042(lambda: self._finish(End.REBOOT))
        for port in I8042_PORTS:
            self._devices.add_ports(port, 1, i8042, device_base=at.I8042_DATA)
        self._devices.add_ports(at.CMOS_INDEX, RTC_PORTS, Rtc(time.time_ns))
        power = AcpiPower(lambda: self._finish(End.POWER_OFF), lambda: self._finish(End.REBOOT))
        self._devices.add_ports(at.ACPI_SLEEP_CONTROL, ACPI_PORTS, power)
        self._devices.add_page(at.LOCAL_APIC, self._interrupts.local_apic)
        self._devices.add_page(at.IO_APIC, self._interrupts.io_apic)
        self.add_virtio(NsmDevice(nsm, memory.guest), name="nsm")
        ram = list(zip(memory.ranges, memory.buffers, strict=True))
        self._cpu = Cpu(ram, self, tsc_hz=tsc_hz)

    def add_virtio(self, device: VirtioDevice, *, name: str) -> None:
        """Put a device into the next virtio slot; before the machine runs."""
        slot = at.virtio_slot(self._slots)
        self._slots += 1
        transport = VirtioMmio(device, self._interrupts.io_apic.line(slot.irq), name=name)
        self._devices.add_page(slot.address, transport)

    def locked(self, function: Callable[[], None]) -> None:
        """Call a function that touches devices under the bus lock; not for the processor's thread."""
        self._interrupts.locked(function)

    def type(self, data: bytes) -> int:
        """Give the console input, from another thread than the processor's; returns how much it took."""
        taken = 0

        def receive() -> None:
            nonlocal taken
            taken = self._serial.receive(data)

        self._interrupts.locked(receive)
        return taken

    def run(self, entry: EntryState) -> tuple[End, str]:
        """Run the guest to its end, in this thread; returns how it ended, and details of a crash."""
        cpu, interrupts = self._cpu, self._interrupts
        cpu.enter(entry)
        interrupts.start(cpu)
        try:
            while self.end is None:
                match cpu.run():
                    case Stopped.HALTED if not cpu.interrupts_enabled:
                        self._finish(End.HALTED)
                    case Stopped.HALTED:
                        interrupts.wait()
                    case Stopped.TRIPLE_FAULT:
                        self._finish(End.TRIPLE_FAULT)
                    case Stopped.CRASHED:
                        self._finish(End.CRASHED)
                    case Stopped.ASKED:
                        pass
        finally:
            interrupts.close()
        return self.end, cpu.crash

    def stop(self) -> None:
        """Let `run` return soon; from another thread, until it has."""
        self._finish(End.STOPPED)
        self._interrupts.wake()

    def _finish(self, end: End) -> None:
        if self.end is None:
            self.end = end
        self._cpu.stop()

    # What the processor calls: `nitro_vmm.accel.unicorn.Bus`.

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        self._interrupts.enter()
        try:
            return self._devices.read_port(port, size)
        finally:
            self._interrupts.leave()

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._interrupts.enter()
        try:
            self._devices.write_port(port, size, value)
        finally:
            self._interrupts.leave()
        if self._printed:
            data = bytes(self._printed)
            self._printed.clear()
            self._console(data)

    def read_memory(self, address: int, size: int) -> int:
        """A load outside RAM."""
        self._interrupts.enter()
        try:
            return self._devices.read_memory(address, size)
        finally:
            self._interrupts.leave()

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store outside RAM."""
        self._interrupts.enter()
        try:
            self._devices.write_memory(address, size, value)
        finally:
            self._interrupts.leave()
