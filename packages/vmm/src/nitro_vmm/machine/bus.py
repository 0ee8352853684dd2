"""Which device answers at which port and address."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from nitro_vmm.address_map import PAGE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable


class Device(Protocol):
    """A device's registers: accesses of 1, 2, 4 or 8 bytes, at offsets from where it was put."""

    def read(self, offset: int, size: int) -> int:
        """What the guest reads."""

    def write(self, offset: int, size: int, value: int) -> None:
        """What the guest writes."""


class _Place(NamedTuple):
    device: Device
    base: int


class AddressSpace:
    """Ports, and memory by pages. Where nothing is, reads give all ones and writes are lost, as on a PC."""

    def __init__(self) -> None:
        self.output: Callable[[], None] = lambda: None
        """Called after each OUT, once the bus lock is free; it may wait."""
        self._ports: dict[int, _Place] = {}
        self._pages: dict[int, _Place] = {}

    def add_ports(self, base: int, count: int, device: Device, *, device_base: int | None = None) -> None:
        """Put a device at ``count`` ports from ``base``; offsets count from ``device_base`` or ``base``."""
        for port in range(base, base + count):
            self._ports[port] = _Place(device, base if device_base is None else device_base)

    def add_page(self, address: int, device: Device) -> None:
        """Put a device on the 4 KiB page at ``address``."""
        self._pages[address >> PAGE_BITS] = _Place(device, address)

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        place = self._ports.get(port)
        return (1 << 8 * size) - 1 if place is None else place.device.read(port - place.base, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        if (place := self._ports.get(port)) is not None:
            place.device.write(port - place.base, size, value)

    def read_memory(self, address: int, size: int) -> int:
        """A load."""
        place = self._pages.get(address >> PAGE_BITS)
        return (1 << 8 * size) - 1 if place is None else place.device.read(address - place.base, size)

    def write_memory(self, address: int, size: int, value: int) -> None:
        """A store."""
        if (place := self._pages.get(address >> PAGE_BITS)) is not None:
            place.device.write(address - place.base, size, value)

    def finish_output(self) -> None:
        """See `Bus.finish_output`."""
        self.output()
