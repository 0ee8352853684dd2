"""What the processor calls for an access that is not to RAM: each holds the bus lock while it is served."""

from typing import Final

from nitro_vmm.accel import Bus
from nitro_vmm.accel.unicorn.interrupts import Interrupts
from nitro_vmm.address_map import IO_APIC, LOCAL_APIC, PAGE_BITS

OFFSET_MASK: Final = (1 << PAGE_BITS) - 1
LOCAL_APIC_PAGE: Final = LOCAL_APIC >> PAGE_BITS
IO_APIC_PAGE: Final = IO_APIC >> PAGE_BITS


class LockedBus:
    """The interrupt controllers, and all else on the machine's bus.

    Each access holds the bus lock, within which interrupts are acknowledged and offered.

    Args:
        bus: All else.
        interrupts: Who has the lock and the controllers.
    """

    def __init__(self, bus: Bus, interrupts: Interrupts) -> None:
        self._bus = bus
        self._interrupts = interrupts
        self._local_apic = interrupts.local_apic
        self._io_apic = interrupts.io_apic

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        self._interrupts.enter()
        try:
            return self._bus.read_port(port, size)
        finally:
            self._interrupts.leave()

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        self._interrupts.enter()
        try:
            self._bus.write_port(port, size, value)
        finally:
            self._interrupts.leave()
        self._bus.finish_output()

    def read_memory(self, address: int, size: int) -> int:
        """A load outside RAM."""
        self._interrupts.enter()
        try:
            page = address >> PAGE_BITS
            if page == LOCAL_APIC_PAGE:
                return self._local_apic.read(address & OFFSET_MASK, size)
            if page == IO_APIC_PAGE:
                return self._io_apic.read(address & OFFSET_MASK, size)
            return self._bus.read_memory(address, size)
        finally:
            self._interrupts.leave()

    def write_bytes(self, port: int, data: bytes) -> None:
        """OUT of one byte after the other."""
        self._interrupts.enter()
        try:
            for byte in data:
                self._bus.write_port(port, 1, byte)
        finally:
            self._interrupts.leave()
        self._bus.finish_output()

    def arm_timer(self, ticks: int) -> None:
        """The time stamp counter's deadline."""
        self._interrupts.enter()
        try:
            self._interrupts.local_apic.arm_deadline(ticks)
        finally:
            self._interrupts.leave()

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store outside RAM."""
        self._interrupts.enter()
        try:
            page = address >> PAGE_BITS
            if page == LOCAL_APIC_PAGE:
                self._local_apic.write(address & OFFSET_MASK, size, value)
            elif page == IO_APIC_PAGE:
                self._io_apic.write(address & OFFSET_MASK, size, value)
            else:
                self._bus.write_memory(address, size, value)
        finally:
            self._interrupts.leave()
