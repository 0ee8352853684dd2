"""Ports and pages find their devices; where nothing is, reads give all ones."""

import pytest

from nitro_vmm.machine.bus import AddressSpace


class Register:
    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.asked.append((offset, size))
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        self.asked.append((offset, size, value))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_nothing_is_there(size: int) -> None:
    space = AddressSpace()
    space.write_port(0x80, size, 1)
    space.write_memory(0xFED0_0000, size, 1)

    assert space.read_port(0x80, size) == (1 << 8 * size) - 1
    assert space.read_memory(0xFED0_0000, size) == (1 << 8 * size) - 1


def test_ports() -> None:
    space, device = AddressSpace(), Register()
    space.add_ports(0x3F8, 8, device)

    assert space.read_port(0x3FF, 1) == 0x5A
    assert space.read_port(0x400, 1) == 0xFF
    space.write_port(0x3F8, 1, 7)
    assert device.asked == [(7, 1), (0, 1, 7)]


def test_two_ports_apart_of_one_device() -> None:
    space, device = AddressSpace(), Register()
    space.add_ports(0x60, 1, device, device_base=0x60)
    space.add_ports(0x64, 1, device, device_base=0x60)

    space.read_port(0x64, 1)
    assert space.read_port(0x61, 1) == 0xFF
    assert device.asked == [(4, 1)]


def test_pages() -> None:
    space, device = AddressSpace(), Register()
    space.add_page(0xFEC0_0000, device)

    assert space.read_memory(0xFEC0_0FFC, 4) == 0x5A
    assert space.read_memory(0xFEC0_1000, 4) == 0xFFFF_FFFF
    space.write_memory(0xFEC0_0010, 4, 9)
    assert device.asked == [(0xFFC, 4), (0x10, 4, 9)]
